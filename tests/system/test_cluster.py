"""Two processes on one database."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.system.database import Database
from tests.system.ledger import judge, read
from tests.system.process import Gateway
from tests.system.waiting import until

JOBS = 5000

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.timeout(300)]


async def insert_jobs(database: Database, handler: str, count: int, body: dict[str, Any]) -> None:
    """Insert jobs as a SQL user does."""
    rows = [{"id": str(uuid.uuid4()), "handler": handler, "payload": json.dumps(body)} for _ in range(count)]
    await database.execute("INSERT INTO queue_jobs (id, handler, payload) VALUES (:id, :handler, :payload)", rows)


async def test_two_processes_run_each_of_5000_jobs_once_though_one_is_killed(
    server_database_url: str, tmp_path: Path
) -> None:
    one, two = Gateway(tmp_path, server_database_url, name="one"), Gateway(tmp_path, server_database_url, name="two")
    async with Database(server_database_url) as database:
        await one.prepare(database)
        await insert_jobs(database, "example.effect", JOBS // 2, {})
        await insert_jobs(database, "example.deferred", JOBS // 2, {})

        async def half_done() -> bool:
            return int(await database.value("SELECT count(*) FROM queue_jobs WHERE statusid = 3")) > JOBS // 3

        try:
            one.start()
            two.start()
            await asyncio.gather(one.ready(), two.ready())
            await until(half_done, within=60, what="a third of the jobs is done")
            one.kill()
            await database.rest()
            assert await two.stop() == 0, two.tail()
        finally:
            one.kill()
            two.kill()
        ledger = await read(database, {})
        workers = await database.rows("SELECT DISTINCT executedby FROM job_histories WHERE statusid = 3")
    assert judge(ledger) == []
    assert len(ledger.effects) == JOBS
    assert {str(row["executedby"]).split("/")[0] for row in workers} == {"one", "two"}


async def test_the_jobs_of_a_killed_process_run_on_the_other_at_once(
    server_database_url: str, tmp_path: Path, record_property: Any
) -> None:
    victim, heir = (
        Gateway(tmp_path, server_database_url, name="victim"),
        Gateway(tmp_path, server_database_url, name="heir"),
    )
    claimed = "SELECT id FROM queue_jobs WHERE statusid = 2 AND claimedby LIKE 'victim/%'"
    async with Database(server_database_url) as database:
        await victim.prepare(database)
        await insert_jobs(database, "example.slow", 8, {"seconds": 12})

        async def all_claimed() -> bool:
            return len(await database.rows(claimed)) == 8

        async def none_left() -> bool:
            taken = "SELECT count(*) FROM queue_jobs WHERE statusid IN (2, 3) AND claimedby LIKE 'heir/%'"
            return int(await database.value(taken)) == 8

        try:
            victim.start()
            await victim.ready()
            await until(all_claimed, within=20, what="the victim works on all jobs")
            heir.start()
            await heir.ready()
            assert len(await database.rows(claimed)) == 8, "the jobs ended before the victim could be killed"
            victim.kill()
            seconds = await until(none_left, within=15, what="the heir works on the victim's jobs")
            await database.rest()
            assert await heir.stop() == 0, heir.tail()
        finally:
            victim.kill()
            heir.kill()
        retries = await database.value("SELECT sum(retrycount) FROM queue_jobs")
        ledger = await read(database, {})
    print(f"the jobs of a killed process ran elsewhere after {seconds:.2f} s")
    record_property("rescue_seconds", seconds)
    assert judge(ledger) == []
    assert retries == 0, "a crash used up an attempt"
