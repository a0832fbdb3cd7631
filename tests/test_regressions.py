"""The mistakes of the system that this one replaces: each is a sentence here, and may never come true again."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import pytest

from gateway.connector import InboundEntry
from gateway.errors import GatewayError
from gateway.handler import Handler
from gateway.inbox import InboxWriter
from gateway.janitor import Janitor
from gateway.job import JobStatus, NewJob
from gateway.message import Message, Position
from gateway.outbox import Outbox
from gateway.outcome import RetryPolicy
from gateway.store import Store
from gateway.store.migrate import migrate
from tests.executor.bench import bench, effect, enqueue, note, running, statuses, until
from tests.faulty import until_it_is
from tests.system.database import Database

PATIENCE = 30.0
"""Seconds after which something that must happen has not."""

DIE_HOLDING_A_JOB = """
import asyncio, os, signal, sys
from gateway.job import NewJob
from gateway.store import Lane, Store

async def main():
    store = await Store.open(sys.argv[1], instance="dying")
    await store.enqueue([NewJob(id="held", handler="h", max_retries=0)])
    assert await store.claim(Lane.RUN, 1, None)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture
async def b(database_url):
    async with bench(database_url) as made:
        yield made


@pytest.fixture
async def outside(database_url):
    async with Database(database_url) as database:
        yield database


async def completed(b, jobs):
    """Wait until all of them are Completed."""
    count = len(jobs)
    await until_it_is(lambda: _counted(b, count), PATIENCE)
    assert set(await statuses(b, jobs)) == {JobStatus.COMPLETED}


async def _counted(b, count):
    return (await b.store.statistics()).status_counts.get(int(JobStatus.COMPLETED), 0) >= count


@asynccontextmanager
async def working(b):
    """Run jobs, and keep the queue in order."""
    async with running(b.executor()) as executor:
        upkeep = asyncio.create_task(Janitor(b.store, held=lambda: executor.held, wake=b.wake).run())
        try:
            yield
        finally:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)


async def test_a_failed_job_runs_again(b):
    async def flaky(context):
        await note(context)
        if context.job.retry_count == 0:
            raise ValueError("not yet")

    job = await b.add(flaky, max_retries=1, priority=5)
    async with working(b):
        await completed(b, [job])

    assert [row.status for row in await b.store.history(job)] == [JobStatus.FAILED, JobStatus.COMPLETED]
    row = await b.store.get(job)
    assert (row.retry_count, row.priority) == (1, 4)
    assert await b.effects() == [(job, job)]


@pytest.mark.parametrize("status", [JobStatus.RETRYING, JobStatus.SCHEDULED])
async def test_a_job_that_waits_for_its_time_runs_when_it_comes(b, outside, status):
    b.handlers["h"] = Handler.of("h", note)
    insert = "INSERT INTO queue_jobs (id, handler, statusid, scheduledat) VALUES ('late', 'h', :status, :due)"
    due = "2020-01-01 00:00:00.000000" if outside.kind == "sqlite" else datetime(2020, 1, 1)  # noqa: DTZ001
    await outside.execute(insert, [{"status": int(status), "due": due}])
    async with working(b):
        await completed(b, ["late"])


async def test_an_unknown_handler_never_completes(b):
    [unknown] = await enqueue(b, 1, "nobody.knows", priority=9)
    known = await b.add(note)
    executor = b.executor()
    async with running(executor):
        await completed(b, [known])
        row = await b.store.get(unknown)
        assert (row.status, row.retry_count, row.result) == (JobStatus.PENDING, 0, None)
    assert await b.store.history(unknown) == []

    b.handlers["nobody.knows"] = Handler.of("nobody.knows", note)
    async with running(b.executor()):
        await completed(b, [known, unknown])


async def test_two_workers_never_run_one_row(b, outside):
    runs = Counter()

    async def count(context):
        runs[context.job.id] += 1
        await context.session.execute(effect, {"job": context.job.id, "note": context.job.claim_token})

    b.handlers["h"] = Handler.of("h", count)
    jobs = await enqueue(b, 200)
    async with AsyncExitStack() as stack:
        other = b.store
        if outside.kind != "sqlite":
            other = await Store.open(b.url, instance="other")
            stack.push_async_callback(other.close)
        for store in (b.store, other):
            b.store, mine = store, b.store
            await stack.enter_async_context(running(b.executor()))
            b.store = mine
        await completed(b, jobs)

    assert runs == dict.fromkeys(jobs, 1)
    assert sorted(job for job, _ in await b.effects()) == sorted(jobs)
    assert await outside.value("SELECT count(*) FROM job_histories") == len(jobs)


async def test_a_crash_leaves_no_job_processing(database_url, outside):
    await migrate(database_url)
    died = await asyncio.to_thread(die_holding_a_job, database_url)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert await outside.value("SELECT statusid FROM queue_jobs") == JobStatus.PROCESSING

    async with bench(database_url) as b:
        b.handlers["h"] = Handler.of("h", note)
        async with working(b):
            await completed(b, ["held"])
        row = await b.store.get("held")
        assert (row.crash_count, row.retry_count) == (1, 0)
        assert await b.effects() == [("held", "held")]


def die_holding_a_job(url):
    command = [sys.executable, "-c", DIE_HOLDING_A_JOB, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def own(context):
    await context.session.execute(effect, {"job": context.job.id, "note": context.job.id})


@pytest.mark.parametrize("write", [own, note], ids=["own", "deferred"])
async def test_outcome_history_and_writes_commit_together(b, outside, write):
    tried = asyncio.Event()

    async def try_(context):
        await write(context)
        await context.enqueue("child")
        tried.set()
        return "done"

    job = await b.add(try_, max_retries=1000)
    await outside.execute("ALTER TABLE job_histories RENAME TO no_histories")
    async with working(b):
        async with asyncio.timeout(PATIENCE):
            await tried.wait()
            await until(lambda: b.told("store.unavailable") or b.told("service.error") or b.told("job.failed"))
        row = await b.store.get(job)
        assert (row.status, row.result, await b.effects(), await b.children(job)) == (
            JobStatus.PROCESSING, None, [], [],
        )  # fmt: skip
        await outside.execute("ALTER TABLE no_histories RENAME TO job_histories")
        await completed(b, [job])

    assert (await b.store.get(job)).result == '"done"'
    assert [row.status for row in await b.store.history(job)][-1:] == [JobStatus.COMPLETED]
    assert (len(await b.effects()), len(await b.children(job))) == (1, 1)


async def test_rows_inserted_by_hand_with_nulls_do_not_block(b, outside):
    b.handlers["h"] = Handler.of("h", note)
    optional = "metadata, payload, method, protocol, direction, scheduledat, parentjobid, referenceid, createdby"
    nulls = ", ".join("NULL" for _ in optional.split(", "))
    await outside.execute(f"INSERT INTO queue_jobs (id, handler, priority, {optional}) VALUES ('1', 'h', 9, {nulls})")
    await outside.execute("INSERT INTO queue_jobs (id, handler) VALUES ('2', 'h')")
    await outside.execute("INSERT INTO queue_jobs (id, handler, priority, payload) VALUES ('?', 'h', 9, '% ? %s $1')")
    [after] = await enqueue(b, 1, payload=b"100 % of ?, $1 and :name", reference_id="?")
    async with running(b.executor()):
        await completed(b, ["1", "2", "?", after])

    assert (await b.store.get("1")).payload is None
    assert (await b.store.get("?")).payload == b"% ? %s $1"
    assert (await b.store.get(after)).payload == b"100 % of ?, $1 and :name"


async def test_throughput_is_not_workers_per_poll_interval(b):
    b.handlers["h"] = Handler.of("h", own)
    executor = b.executor(workers=1, poll_interval=60.0)
    async with running(executor):
        await until(lambda: executor.beat > 0)
        jobs = await enqueue(b, 100)
        await completed(b, jobs)


async def test_a_batch_enqueue_is_one_transaction(b, outside):
    good = [NewJob(handler="h", payload=b"%d" % n) for n in range(50)]
    with pytest.raises(GatewayError):
        await b.store.enqueue([*good, NewJob(handler=None)])
    assert await outside.value("SELECT count(*) FROM queue_jobs") == 0

    await b.store.enqueue(good)
    assert [(await b.store.get(job.id)).payload for job in good] == [job.payload for job in good]


async def test_outbound_jobs_are_sent_outside_any_open_transaction(b, outside):
    sending, gate, sent = asyncio.Event(), asyncio.Event(), []

    async def publish(message):
        sending.set()
        await gate.wait()
        sent.append((message.message_id, message.topic, message.body))

    async def order(context):
        await context.session.execute(effect, {"job": context.job.id, "note": "ordered"})
        await context.publish("out", topic="orders", body=b"\x00\xff")

    job = await b.add(order)
    outbox = Outbox(b.store, lambda: {"out": publish}, wake=b.wake, policy=RetryPolicy(), timeout=PATIENCE)
    async with running(b.executor()):
        await completed(b, [job])
    sender = asyncio.create_task(outbox.once("out"))
    async with asyncio.timeout(PATIENCE):
        await sending.wait()
        [message] = await b.children(job)
        await outside.execute("UPDATE queue_jobs SET modifiedby = 'somebody'")  # waits for whoever holds a row
        assert await outside.value("SELECT count(*) FROM effects") == 1
        assert (message.status, message.direction) == (JobStatus.PROCESSING, "outbound")
        gate.set()
        assert await sender == 1
    assert sent == [(message.id, "orders", b"\x00\xff")]
    assert await statuses(b, [message.id]) == [JobStatus.COMPLETED]


EVERY_BYTE = bytes(range(256))
BINARY = Message(
    topic="plant/7",
    body=EVERY_BYTE,
    key=b"\xff\x00key",
    headers=(("trace", b"1"), ("trace", b"\x80\x00"), ("empty", b"")),
    content_type="application/octet-stream",
    parameters={"plant": "7"},
    position=Position("cluster", "plant/7", 3, 41, 42, "topic-id"),
    dedupe_id="message-41",
    timestamp=datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=UTC),
)


async def test_binary_payload_headers_keys_and_ids_survive(b):
    seen, sent = [], []

    async def publish(message):
        sent.append(message)

    async def pass_on(context):
        message = context.message
        seen.append(message)
        await context.publish(
            "out", topic=message.topic, body=message.body, key=message.key, headers=message.headers,
            content_type=message.content_type,
        )  # fmt: skip

    b.handlers["h"] = Handler.of("h", pass_on)
    inbox = InboxWriter(b.store)
    connection = inbox.connection("in", "kafka")
    await connection.positions("cluster", "plant/7", [3])
    [receipt] = await connection.receive([BINARY], InboundEntry(handler="h"))
    await inbox.close()
    async with running(b.executor()):
        await completed(b, [receipt.job_id])
    await Outbox(b.store, lambda: {"out": publish}, wake=b.wake, policy=RetryPolicy()).once("out")

    [child] = await b.children(receipt.job_id)
    came = {name: getattr(BINARY, name) for name in BINARY.__slots__ if name not in ("message_id", "dedupe_scope")}
    assert seen == [Message(**came, message_id=receipt.job_id)]
    outward = {name: came[name] for name in ("topic", "body", "key", "headers", "content_type")}
    assert sent == [Message(**outward, message_id=child.id)]
