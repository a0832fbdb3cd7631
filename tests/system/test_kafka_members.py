"""Three gateways of one Kafka group that come and go under load: each record is one job."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.services import Server
from tests.system.brokers import KafkaBroker
from tests.system.database import Database
from tests.system.ledger import judge
from tests.system.process import Gateway, run_for
from tests.system.strangers import Producer

SOAK = float(os.environ.get("SOAK_SECONDS", "0"))
CHANGES = 16
LASTS = min(SOAK, 300.0)
"""Seconds for which they come and go at least."""

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.timeout(300 + SOAK)]


async def test_members_that_come_and_go_make_one_job_of_each_record(
    kafka_server: Server, postgresql_url: str, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with KafkaBroker(kafka_server) as broker, Database(postgresql_url) as database:
        await broker.prepare("effect")
        producer, over = Producer(broker, ("effect", {})), asyncio.Event()
        out = broker.connector(broker.entry("effect", handler="example.effect", instance_id=None))
        members = [Gateway(tmp_path, postgresql_url, name=name, out=out) for name in ("one", "two", "three")]
        await members[0].prepare(database)
        try:
            for member in members:
                member.start()
            for member in members:
                await member.connected()
            flow = asyncio.create_task(producer.flow(over, least=500, pause=0.01))
            changes = await come_and_go(members, random.Random(seed))
            over.set()
            await asyncio.wait_for(flow, 60)
            await producer.all_there(database)
            for member in members:
                assert await member.stop() == 0, member.tail()
        finally:
            for member in members:
                member.kill()
        ledger = await producer.ledger(database)
        received = await database.rows(
            "SELECT partition, nextoffset FROM source_positions WHERE connector = 'out' ORDER BY partition"
        )
    print(f"{len(producer.confirmed)} records, {changes} changes")
    assert judge(ledger) == []
    assert sum(row["nextoffset"] for row in received) == len(ledger.jobs)


async def come_and_go(members: list[Gateway], chance: random.Random) -> int:
    """Kill or stop one that runs, or start one that does not; one is always left, and at the end all run."""
    end, changes = asyncio.get_running_loop().time() + LASTS, 0
    while changes < CHANGES or asyncio.get_running_loop().time() < end:
        changes += 1
        running = [member for member in members if member.code is None]
        member = chance.choice(members)
        if member not in running:
            member.start()
        elif len(running) > 1 and chance.random() < 0.5:
            member.kill()
        elif len(running) > 1:
            assert await member.stop() == 0, member.tail()
        await run_for(chance.uniform(0.3, 1.5))
    for member in members:
        if member.code is not None:
            member.start()
        await member.connected()
    return changes
