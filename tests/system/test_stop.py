"""A stop loses nothing and costs no attempt."""

import asyncio
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.system.database import Database
from tests.system.process import Gateway, run_for
from tests.system.strangers import Client, Load
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def status(database: Database, job_id: str) -> int:
    return int(await database.value("SELECT statusid FROM queue_jobs WHERE id = :id", id=job_id))


async def begin(gateway: Gateway, database: Database, path: str, seconds: float) -> str:
    """Start a job that takes so long; return its id once it runs."""
    async with Client(gateway.web) as client:
        job_id = await client.post(path, {"seconds": seconds})

    async def runs() -> bool:
        return await status(database, job_id) == 2

    await until(runs, within=10, what="the job runs")
    return job_id


async def test_sigterm_lets_a_running_job_finish(database_url: str, tmp_path: Path) -> None:
    async with Database(database_url) as database:
        gateway = Gateway(tmp_path, database_url, grace=20)
        await gateway.prepare(database)
        try:
            gateway.start()
            await gateway.ready()
            job_id = await begin(gateway, database, "/slow", 1.5)
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
        assert await status(database, job_id) == 3


@pytest.mark.parametrize(("path", "most"), [("/slow", 2.5), ("/stubborn", 3), ("/asleep", 3), ("/blocking", 7)])
async def test_a_job_that_outlasts_the_grace_is_released_without_using_an_attempt(
    sqlite_url: str, tmp_path: Path, path: str, most: float
) -> None:
    async with Database(sqlite_url) as database:
        gateway = Gateway(tmp_path, sqlite_url, grace=0.5)
        await gateway.prepare(database)
        try:
            gateway.start()
            await gateway.ready()
            job_id = await begin(gateway, database, path, 60)
            code = await gateway.stop(within=most)
            assert code == 0 or (code == 1 and path == "/blocking"), gateway.tail()
            if path == "/slow":
                assert await status(database, job_id) in (0, 1)
            assert await database.value("SELECT count(*) FROM effects") == 0
            await database.execute("UPDATE queue_jobs SET payload = '{\"seconds\": 0.1}'")
            gateway.start()
            await database.rest()
        finally:
            gateway.kill()
        (row,) = await database.rows("SELECT statusid, retrycount FROM queue_jobs")
        assert row == {"statusid": 3, "retrycount": 0}


async def test_a_stop_under_load_waits_for_no_client(sqlite_url: str, tmp_path: Path) -> None:
    async with Database(sqlite_url) as database:
        gateway = Gateway(tmp_path, sqlite_url, grace=20)
        await gateway.prepare(database)
        async with Client(gateway.web) as client:
            flood = asyncio.create_task(client.flood(Load(("/effect", {})), pause=0))
            try:
                gateway.start()
                await until(lambda: len(client.accepted) > 50, within=30, what="messages come in")
                started = time.monotonic()
                assert await gateway.stop() == 0, gateway.tail()
                assert time.monotonic() - started < 1.5
            finally:
                gateway.kill()
                flood.cancel()
                await asyncio.gather(flood, return_exceptions=True)


async def test_a_second_sigterm_ends_at_once(sqlite_url: str, tmp_path: Path) -> None:
    async with Database(sqlite_url) as database:
        gateway = Gateway(tmp_path, sqlite_url, grace=60)
        await gateway.prepare(database)
        try:
            gateway.start()
            await gateway.ready()
            job_id = await begin(gateway, database, "/slow", 30)
            gateway.signal(signal.SIGTERM)

            async def intake_stopped() -> bool:
                return not await gateway.answers("/ready")

            await until(intake_stopped, within=5, what="it stops its intake")
            assert gateway.code is None, "it did not wait for its job"
            gateway.signal(signal.SIGTERM)
            await gateway.ended(within=5)
        finally:
            gateway.kill()
        assert await status(database, job_id) != 3
        assert await database.value("SELECT retrycount FROM queue_jobs") == 0


@pytest.mark.parametrize("after", [0.15, 0.3, 0.5, 0.8, 1.2])
async def test_sigterm_while_it_starts_ends_it(sqlite_url: str, tmp_path: Path, after: float) -> None:
    gateway = Gateway(tmp_path, sqlite_url)
    try:
        gateway.start()
        await run_for(after)
        gateway.signal(signal.SIGTERM)
        code = await gateway.ended(within=10)
    finally:
        gateway.kill()
    assert code in (0, -signal.SIGTERM), gateway.tail()
    assert "Traceback" not in gateway.tail()


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
async def test_sigterm_while_the_database_is_away_ends_it(tmp_path: Path, answers: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not answers:
            server.close()
        gateway = Gateway(tmp_path, f"postgresql://nobody@127.0.0.1:{port}/none")
        try:
            gateway.start()
            await until(lambda: gateway.answers("/live"), within=30, what="it waits for its database")
            assert await gateway.stop(within=3) == 0, gateway.tail()
        finally:
            gateway.kill()
    assert "Traceback" not in gateway.tail()
