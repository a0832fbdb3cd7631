"""Three instances on one database, under everything that can befall them at once."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.caches import CacheServer
from tests.conftest import SERVERS
from tests.databases import fresh_database
from tests.services import Server
from tests.system.conftest import started
from tests.system.fleet import TICKER, Fleet
from tests.system.ledger import judge, judge_ticks, lost_attempts, read, ticks_of
from tests.system.process import run_for
from tests.system.strangers import Load, Receiver

SOAK = float(os.environ.get("SOAK_SECONDS", "0")) / 30
LEASE = 10.0 if SOAK else 2.0
"""Seconds; in a soak the one that everybody has, to see how long rescues take with it."""
MESSAGES = (
    ("/effect", {}), ("/slow", {"seconds": 0.4}), ("/publish", {"failures": 1}), ("/slow", {"seconds": 0.2}),
    ("/deferred", {}), ("/plain", {}),
)  # fmt: skip

CACHES = ("none", "redis", "memcached")
CASES = (
    tuple(product(SERVERS, CACHES))
    if SOAK
    else (("postgresql", "none"), ("postgresql", "redis"), ("mariadb", "memcached"))
)

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.timeout(300)]


@pytest.fixture
def cache(request: pytest.FixtureRequest) -> Iterator[CacheServer | None]:
    """A cache of the fleet's own; None: it does without."""
    if request.param == "none":
        yield None
    else:
        yield from started(request.param)


@pytest.mark.parametrize(("own_server", "cache"), CASES, indirect=True)
async def test_each_message_and_each_tick_has_one_effect_whatever_befalls_the_fleet(
    own_server: Server, cache: CacheServer | None, tmp_path: Path, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with fresh_database(own_server.url) as url:
        async with (
            Receiver(refuse_every=40) as receiver,
            Fleet(own_server, url, tmp_path, out=receiver.url, lease=LEASE, cache=cache) as fleet,
            fleet.client() as client,
        ):
            load = Load(*MESSAGES)
            await fleet.tick()
            flood = asyncio.create_task(client.flood(load, clients=30, pause=0.05))
            await befall(fleet, random.Random(seed))
            load.stop()
            await fleet.tick_no_more()
            await fleet.cache_connected()
            await asyncio.wait_for(flood, 60)
            await fleet.database.rest()
            await fleet.stop()
            ledger = await read(
                fleet.database, client.accepted, received=receiver.received, children={"example.publish": 2}
            )
            ticks = await ticks_of(fleet.database, TICKER)
            lost = await lost_attempts(fleet.database)
            workers = await fleet.database.rows("SELECT DISTINCT executedby FROM job_histories WHERE statusid = 3")
            rescued = await fleet.database.value("SELECT count(*) FROM queue_jobs WHERE crashcount > 0")
    print(f"{len(client.accepted)} messages, {client.repeated} repeated, {len(ticks)} ticks, {rescued} jobs rescued")
    report(fleet, record_property)
    assert judge(ledger) == []
    assert judge_ticks(ticks) == []
    assert lost == []
    assert rescued > 0
    assert len(ticks) > 3
    assert {row["executedby"].split("/")[0] for row in workers} == {"one", "two", "three"}


async def befall(fleet: Fleet, chance: random.Random) -> None:
    """Let each kind of fault happen once, to another instance each time; in a soak again and again."""
    until = time.monotonic() + SOAK
    while True:
        one, two, three = chance.sample(fleet.members, 3)
        await asyncio.gather(one.die(), two.freeze())
        await asyncio.gather(three.fall_silent(), one.lose_connections(), fleet.lose_cache())
        await fleet.restart_database()
        if time.monotonic() >= until:
            return
        await run_for(2)  # until all have been back for long enough to call another one dead
        await measure(fleet, chance)


async def measure(fleet: Fleet, chance: random.Random) -> None:
    """Have many rescues: kills one after the other, cuts two by two."""
    for _ in range(10):
        await chance.choice(fleet.members).die()
    for _ in range(2):
        await asyncio.gather(*(member.fall_silent() for member in chance.sample(fleet.members, 2)))


def report(fleet: Fleet, record_property: Any) -> None:
    """Tell how long rescues took."""
    for fault in ("kill", "pause", "cut"):
        seconds = sorted(each for member in fleet.members for kind, each in member.rescues if kind == fault)
        if seconds:
            p99 = seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
            print(f"rescued after a {fault}: {len(seconds)} times, p50 {seconds[len(seconds) // 2]:.2f} s, ", end="")
            print(f"p99 {p99:.2f} s, at most {seconds[-1]:.2f} s")
            record_property(f"rescue_seconds_{fault}", p99)
