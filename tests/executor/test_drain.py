import asyncio
import threading
import time

import pytest

from gateway.errors import StoreUnavailable
from gateway.handler import Handler
from gateway.job import JobStatus
from gateway.store import Lane
from tests.executor.bench import bench, effect, enqueue, note, running, statuses, until


@pytest.fixture
async def b(sqlite_url):
    async with bench(sqlite_url) as made:
        yield made


async def test_a_drain_lets_running_handlers_end_and_gives_the_rest_back(b):
    gate = asyncio.Event()

    async def wait(context):
        await context.session.execute(effect, {"job": context.job.id, "note": context.job.id})
        await gate.wait()

    b.handlers["h"] = Handler.of("h", wait)
    jobs = await enqueue(b, 6)
    executor = b.executor(workers=1)
    async with running(executor):
        await until(lambda: executor.running == 1)
        drain = asyncio.create_task(executor.drain(5.0))
        await asyncio.sleep(0)
        gate.set()
        drained = await drain
    assert drained.abandoned == 0
    assert sorted(await statuses(b, jobs)) == [JobStatus.PENDING] * 5 + [JobStatus.COMPLETED]


async def test_a_drain_beyond_its_grace_rolls_back_and_costs_no_attempt(b):
    async def wait(context):
        if context.job.payload == b"own":
            await context.session.execute(effect, {"job": context.job.id, "note": context.job.id})
        await asyncio.Event().wait()

    def plain(_):
        over.wait(20)

    over = threading.Event()
    b.handlers |= {"h": Handler.of("h", wait), "plain": Handler.of("plain", plain)}
    jobs = await enqueue(b, 2) + await enqueue(b, 1, "plain") + await enqueue(b, 1, payload=b"own")
    executor = b.executor(workers=5)
    async with running(executor):
        await until(lambda: executor.running == 4)
        started = time.monotonic()
        drained = await executor.drain(0.1)
        assert time.monotonic() - started < 1.2
        over.set()
    assert drained == (4, 1)
    rows = [await b.store.get(job) for job in jobs]
    assert [(row.status, row.retry_count, row.crash_count) for row in rows] == [(JobStatus.QUEUED, 0, 0)] * 4
    assert await b.effects() == []


async def test_nothing_is_claimed_once_a_drain_has_begun(b):
    b.handlers["h"] = Handler.of("h", note)
    executor = b.executor(poll_interval=0.01)
    async with running(executor):
        await executor.drain(0.0)
        jobs = await enqueue(b, 3)
        b.wake.set(Lane.RUN)
        beat = executor.beat
        await until(lambda: executor.beat > beat)
    assert await statuses(b, jobs) == [JobStatus.PENDING] * 3


async def test_a_drain_while_the_database_is_away_still_ends_in_time(b, monkeypatch):
    b.handlers["h"] = Handler.of("h", note)

    async def away(*_):
        raise StoreUnavailable("away")

    for verb in ("finish", "release"):
        monkeypatch.setattr(b.store, verb, away)
    await enqueue(b, 3)
    executor = b.executor()
    task = asyncio.create_task(executor.run())
    await until(lambda: b.told("store.unavailable"))
    started = time.monotonic()
    await executor.drain(0.1)
    assert time.monotonic() - started < 1.3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_run_that_is_cancelled_as_it_drains_gives_every_transaction_back(b):
    async def wait(context):
        await context.session.execute(effect, {"job": context.job.id, "note": context.job.id})
        opened.set()
        await asyncio.Event().wait()

    opened = asyncio.Event()
    b.handlers["h"] = Handler.of("h", wait)
    (job,) = await enqueue(b, 1)
    executor = b.executor(workers=1)
    async with running(executor):
        await opened.wait()
        drain = asyncio.create_task(executor.drain(0.1))
        await asyncio.sleep(0)
    assert (await drain).released == 1
    assert b.store.engine.pool.checkedout() == 0
    assert await statuses(b, [job]) == [JobStatus.QUEUED]


async def test_running_leaves_no_task_behind(b):
    b.handlers["h"] = Handler.of("h", note)
    before = asyncio.all_tasks()
    await enqueue(b, 3)
    async with running(b.executor()):
        await until(lambda: len(b.told("job.finished")) == 3)
    assert asyncio.all_tasks() == before
