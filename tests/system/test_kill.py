"""The main promise, under kill -9: every accepted message has exactly one effect."""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.system.database import Database
from tests.system.ledger import judge, read
from tests.system.process import Gateway, run_for
from tests.system.strangers import Client, Load, Receiver

KILLS = 30
SOAK_KILLS_PER_SECOND = 0.6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def kills() -> int:
    """Return how many kills there is time for."""
    return max(KILLS, int(float(os.environ.get("SOAK_SECONDS", "0")) * SOAK_KILLS_PER_SECOND / 10))


async def test_every_accepted_message_has_one_effect_under_kill_9(database_url: str, tmp_path: Path) -> None:
    await killed_and_judged(tmp_path, database_url, database_url, times=kills())


@pytest.mark.database
async def test_it_has_behind_a_pooler_too_where_only_the_lease_tells_of_a_death(
    pgbouncer_url: str, postgresql_url: str, tmp_path: Path
) -> None:
    await killed_and_judged(tmp_path, pgbouncer_url, postgresql_url, times=kills() // 4, lease=1.5)


async def killed_and_judged(folder: Path, url: str, beside: str, *, times: int, **jobs: Any) -> None:
    """Kill a gateway so many times under load; `beside` is where the judge finds its database."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with Receiver(refuse_every=40) as receiver, Database(beside) as database:
        gateway = Gateway(folder, url, out=receiver.url, **jobs)
        await gateway.prepare(database)
        async with Client(gateway.web) as client:
            load = Load(
                ("/effect", {}), ("/deferred", {}), ("/plain", {}), ("/publish", {}), ("/publish", {"failures": 2})
            )
            try:
                gateway.start()
                flood = asyncio.create_task(client.flood(load))
                await kill_again_and_again(gateway, random.Random(seed), times)
                load.stop()
                await gateway.ready()
                await asyncio.wait_for(flood, 60)
                await database.rest()
                assert await gateway.stop() == 0, gateway.tail()
            finally:
                gateway.kill()
            ledger = await read(database, client.accepted, received=receiver.received, children={"example.publish": 2})
    print(f"{len(client.accepted)} messages, {client.repeated} repeated, {len(receiver.received)} received")
    assert judge(ledger) == []
    assert len(client.accepted) > times


async def kill_again_and_again(gateway: Gateway, chance: random.Random, times: int) -> None:
    """Kill it while it starts, as soon as it is ready, and while it works."""
    for _ in range(times):
        if chance.random() < 0.8:
            await gateway.ready()
        await run_for(chance.uniform(0, 0.7))
        gateway.kill()
        gateway.start()
