"""The database goes away under load and comes back: work goes on by itself."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.databases import fresh_database
from tests.services import Server
from tests.system.database import Database
from tests.system.ledger import judge, read
from tests.system.process import Gateway, run_for
from tests.system.strangers import Client, Load, Receiver
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.timeout(300)]


async def test_a_restarted_database_heals_under_load(own_server: Server, tmp_path: Path, record_property: Any) -> None:
    with fresh_database(own_server.url) as url:
        async with Receiver() as receiver, Database(url) as database:
            gateway = Gateway(tmp_path, url, out=receiver.url)
            await gateway.prepare(database)
            try:
                gateway.start()
                await gateway.ready()
                async with Client(gateway.web) as client:
                    load = Load(("/effect", {}), ("/publish", {"failures": 1}), ("/deferred", {}))
                    flood = asyncio.create_task(client.flood(load, clients=8))
                    healed = [await restart(own_server, database, crash=crash) for crash in (False, True, True, False)]
                    load.stop()
                    await asyncio.wait_for(flood, 60)
                await database.rest()
                assert await gateway.stop() == 0, gateway.tail()
            finally:
                gateway.kill()
            ledger = await read(database, client.accepted, received=receiver.received, children={"example.publish": 2})
            failures = await database.rows(
                "SELECT h.errormessage FROM job_histories h JOIN queue_jobs q ON q.id = h.jobid"
                " WHERE q.handler = 'example.effect' AND h.statusid <> 3"
            )
    print(f"healed after {', '.join(f'{seconds:.2f}' for seconds in healed)} s; {len(client.accepted)} messages")
    record_property("heal_seconds", healed)
    assert judge(ledger) == []
    assert failures == [], "an outage of the database used up an attempt"


async def restart(server: Server, database: Database, *, crash: bool) -> float:
    """Take the database away for a while; return the seconds from its port's opening to the next finished job."""
    done = "SELECT count(*) FROM queue_jobs WHERE statusid = 3"
    before = int(await database.value(done))

    async def more_done() -> bool:
        return int(await database.value(done)) > before

    await until(more_done, within=30, what="jobs are being done")
    await asyncio.to_thread(server.kill if crash else server.stop)
    await run_for(1)
    await asyncio.to_thread(server.start)
    before = int(await database.value(done))
    return await until(more_done, within=20, what="jobs are being done again")
