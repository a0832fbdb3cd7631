"""Gateways with caches: what one has stored the other runs at once, and nothing depends on what a cache says."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.brokers.caches import CacheServer
from tests.system.conftest import started
from tests.system.database import Database
from tests.system.ledger import judge, read
from tests.system.process import Gateway, run_for
from tests.system.test_cluster import insert_jobs
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.timeout(180)]

NEVER = 3600
"""Seconds between two looks for jobs: only a wake-up finds one."""
IDLE = 2.5
"""Seconds after which an instance that had something to do looks for nothing more."""


@pytest.fixture(scope="module")
def redis() -> Iterator[Any]:
    yield from started("redis")


@pytest.fixture(params=["redis", "memcached"])
def cache(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from started(request.param)


async def test_a_job_stored_here_starts_there_at_once(mariadb_url: str, tmp_path: Path, cache: CacheServer) -> None:
    settings = {"url": cache.url, "timeout": 1}
    taker = Gateway(tmp_path, mariadb_url, name="taker", cache=settings, enabled=False, poll_interval=NEVER)
    runner = Gateway(tmp_path, mariadb_url, name="runner", cache=settings, poll_interval=NEVER)
    async with Database(mariadb_url) as database, aiohttp.ClientSession() as client:
        await taker.prepare(database)
        try:
            taker.start()
            runner.start()
            await asyncio.gather(taker.ready(), runner.ready())
            for gateway in (taker, runner):
                await until(lambda gateway=gateway: connected(gateway), within=20, what="the cache is connected")
            for number in range(2):
                await run_for(IDLE)
                async with client.post(f"{taker.web}/effect", json={"key": f"{number}"}) as answer:
                    assert answer.status == 202
                await database.rest(within=20)
            job = await database.value("SELECT min(id) FROM queue_jobs")
            await until(lambda: told(runner, job, "cache"), within=5, what="the cache knows that the job is completed")
            assert await told(taker, job, "cache"), "the other one does not know"
            assert await taker.stop() == await runner.stop() == 0
        finally:
            taker.kill()
            runner.kill()
        assert judge(await read(database, {})) == []


async def test_caches_that_forget_lie_and_hang_break_nothing(
    server_database_url: str, tmp_path: Path, redis: CacheServer
) -> None:
    forgetful = Gateway(tmp_path, server_database_url, name="one", cache={"url": redis.url})
    lying = Gateway(tmp_path, server_database_url, name="two", cache={"url": "chaos://anywhere"})
    kinds = ("example.effect", "example.deferred", "example.plain", "example.locked")
    async with Database(server_database_url) as database:
        await forgetful.prepare(database)

        async def add(count: int) -> None:
            for kind in kinds:
                await insert_jobs(database, kind, count, {})

        async def some_done() -> bool:
            return int(await database.value("SELECT count(*) FROM queue_jobs WHERE statusid = 3")) > 200

        try:
            forgetful.start()
            lying.start()
            await asyncio.gather(forgetful.ready(), lying.ready())
            async with flushing(redis):
                await add(150)
                await until(some_done, within=60, what="a third of the jobs is done")
                lying.kill()
                await database.rest()
            lying.start()
            with redis.paused():
                await add(50)
                await database.rest()
            assert await forgetful.stop() == 0, forgetful.tail()
            assert await lying.stop() == 0, lying.tail()
        finally:
            forgetful.kill()
            lying.kill()
        ledger = await read(database, {})
        results = await database.rows("SELECT result FROM queue_jobs WHERE handler = 'example.locked'")
    assert judge(ledger) == []
    assert len(ledger.effects) == 200 * len(kinds)
    fences = [json.loads(row["result"])["fence"] for row in results]
    assert len(set(fences)) == len(fences) == 200, "two jobs had the same number"


@asynccontextmanager
async def flushing(server: CacheServer) -> AsyncIterator[None]:
    """Have the cache forget everything ten times a second."""
    client = Redis(port=server.port)

    async def flush() -> None:
        while True:
            await client.flushall()
            await asyncio.sleep(0.1)

    task = asyncio.create_task(flush())
    try:
        yield
        assert not task.done(), "it was not flushed to the end"
    finally:
        task.cancel()
        await asyncio.wait({task})
        await client.aclose()


async def connected(gateway: Gateway) -> bool:
    return bool((await gateway.fetch("/health"))["cache"]["state"] == "connected")


async def told(gateway: Gateway, job: str, source: str) -> bool:
    found = await gateway.fetch(f"/api/jobs/{job}/status")
    return (found["status"], found["source"]) == ("completed", source)
