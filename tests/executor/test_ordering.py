"""Order per key, from the inbox to the handlers: on every database, over two executors that share it."""

import asyncio
import json
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from connectors.memory import MemoryEntry
from gateway import Retry
from gateway.executor import Executor
from gateway.handler import Handler
from gateway.inbox import InboxWriter
from gateway.janitor import Janitor
from gateway.job import JobStatus
from gateway.message import Message
from gateway.outcome import RetryPolicy
from tests.executor.bench import bench, other, running, until


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
async def b(request):
    async with bench(request.getfixturevalue(f"{request.param}_url")) as made:
        yield made


@asynccontextmanager
async def janitor(b, *executors: Executor):
    service = Janitor(
        b.store,
        held=lambda: {token for executor in executors for token in executor.held},
        wake=b.wake,
        retention_days=0,
    )
    task = asyncio.create_task(service.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def receive(b, bodies, batch=7, **rules):
    """Bring messages in through an inbox, a few at a time."""
    writer = InboxWriter(b.store, max_retries=lambda _: 50)
    entry = MemoryEntry(handler="h", topic="t", **rules)
    inbox = writer.connection("bus", "memory")
    receipts = []
    for start in range(0, len(bodies), batch):
        messages = [Message(topic="t", body=json.dumps(body).encode()) for body in bodies[start : start + batch]]
        receipts += await inbox.receive(messages, entry)
    await writer.close()
    return [receipt.job_id for receipt in receipts]


async def test_jobs_of_one_key_run_one_after_the_other_through_retries_and_two_executors(b):
    keys, per_key = "abcdef", 15
    bodies = [{"key": key, "n": n} for n in range(per_key) for key in keys]
    runs, busy, most, claimed_by, shared = defaultdict(list), set(), [0], set(), asyncio.Event()
    holders = 1 if b.url.startswith("sqlite") else 2

    async def work(context):
        body = context.message.json()
        assert body["key"] not in busy, "two jobs of one key at the same time"
        busy.add(body["key"])
        most[0] = max(most[0], len(busy))
        claimed_by.add(context.job.claimed_by)
        if len(claimed_by) == holders:
            shared.set()
        try:
            await shared.wait()  # until the other has some too
            await asyncio.sleep(0.002)
            runs[body["key"]].append(body["n"])
            if body["n"] % 4 == 1 and context.job.attempt < 3:
                raise Retry(delay=0.01)
        finally:
            busy.discard(body["key"])

    b.handlers["h"] = Handler.of("h", work)
    await receive(b, bodies, ordering="body.key", priority="body.n")  # by priority alone the last would be the first
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(other(b))
        executors = [each.executor(workers=4, poll_interval=0.05) for each in (b, second)]
        await stack.enter_async_context(janitor(b, *executors))
        for executor in executors:
            await stack.enter_async_context(running(executor))
        await until(lambda: all(len(runs[key]) == per_key + 2 * 4 for key in keys), 60)

    expected = [n for n in range(per_key) for _ in range(3 if n % 4 == 1 else 1)]
    assert dict(runs) == dict.fromkeys(keys, expected)
    assert most[0] > 1


async def test_a_retry_holds_back_its_own_key_and_a_failure_for_good_none(b):
    ran, mended = [], asyncio.Event()

    async def work(context):
        body = context.message.json()
        if body["id"] == "a1" and not mended.is_set():
            raise Retry(delay=0.05)
        if body["id"] == "b1":
            raise ValueError("for good")
        ran.append(body["id"])

    b.handlers["h"] = Handler.of("h", work)
    ids = ["a1", "b1", "a2", "b2", "c1", "none", "a3"]
    keys = {"a": "A", "b": "B", "c": "C", "n": None}
    jobs = await receive(b, [{"id": each, "key": keys[each[0]]} for each in ids], ordering="body.key")
    async with b.store.engine.begin() as connection:
        await connection.exec_driver_sql(f"UPDATE queue_jobs SET maxretries = 0 WHERE id = '{jobs[1]}'")
    executor = b.executor(policy=RetryPolicy(delay=0.01), poll_interval=0.05)
    async with janitor(b, executor), running(executor):
        await until(lambda: sorted(ran) == ["b2", "c1", "none"])
        await until(lambda: len([t for t in b.told("job.finished") if t["job"] == jobs[0]]) > 2)
        assert sorted(ran) == ["b2", "c1", "none"]
        mended.set()
        await until(lambda: len(ran) == 6)

    assert ran[3:] == ["a1", "a2", "a3"]
    assert (await b.store.get(jobs[1])).status is JobStatus.FAILED
