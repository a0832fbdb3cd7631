import asyncio

import pytest

from gateway import telemetry
from gateway.connector import ForwardTarget, InboundEntry
from gateway.errors import DataRefused, Disconnected, StoreUnavailable
from gateway.inbox import InboxWriter
from gateway.job import JobStatus
from gateway.message import Message, Position
from gateway.store import JobFilter
from tests.faulty import Faulty, sqlite_store, until

ENTRY = InboundEntry(handler="order.process")


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        yield Faulty(store)


@pytest.fixture
async def inbox(store):
    writer = InboxWriter(store, max_batch=50, max_bytes=100_000)
    yield writer
    await writer.close()


def connect(inbox, name="web"):
    return inbox.connection(name, "http", method="POST")


def messages(count, **fields):
    return [Message(topic="/orders", body=b"%d" % n, **fields) for n in range(count)]


def at(offset, partition=0, body=b"x"):
    return Message(
        topic="orders", body=body, position=Position("cluster", "orders", partition, offset, offset + 1, "id")
    )


def balance(inbox, name="web"):
    counts = inbox.conservation[name]
    assert counts.residue == 0
    return counts


async def jobs(store):
    return sorted(await store.list(JobFilter(limit=1000)), key=lambda job: job.sequence)


async def test_a_handler_says_how_often_its_jobs_are_tried_unless_the_entry_does(store):
    writer = InboxWriter(store, max_retries={"patient": 9}.__getitem__)
    inbox = connect(writer)

    [asked] = await inbox.receive([Message(topic="t")], InboundEntry(handler="patient"))
    [said] = await inbox.receive([Message(topic="t")], InboundEntry(handler="patient", max_retries=1))

    found = [await store.get(receipt.job_id) for receipt in (asked, said)]
    assert [job.max_retries for job in found] == [9, 1]
    await writer.close()


async def test_a_message_becomes_a_job_with_all_that_came_along(store, inbox):
    message = Message(topic="/orders/7", body=b"\xff\x00", headers=(("a", b"1"),), parameters={"id": "7"})
    entry = InboundEntry(
        handler="order.process",
        priority=5,
        max_retries=8,
        metadata={"team": "blue", "topic": "not the real one"},
        to=ForwardTarget(connector="out", topic="billing"),
    )

    [receipt] = await connect(inbox).receive([message], entry)

    job = await store.get(receipt.job_id)
    assert (job.handler, job.direction, job.protocol, job.method) == ("order.process", "inbound", "http", "POST")
    assert (job.priority, job.max_retries, job.created_by, job.status) == (5, 8, "integration", JobStatus.PENDING)
    assert job.message == Message(
        topic="/orders/7", body=b"\xff\x00", headers=(("a", b"1"),), parameters={"id": "7"}, message_id=job.id
    )
    assert job.metadata["team"] == "blue"
    assert job.metadata["connector"] == "web"
    assert job.metadata["to"]["topic"] == "billing"


async def test_calls_that_wait_for_one_commit_share_the_next(store, inbox):
    gate = store.hold("ingest")
    connection = connect(inbox)
    first = asyncio.create_task(connection.receive(messages(1), ENTRY))
    await until(lambda: store.calls)
    others = [asyncio.create_task(connection.receive([each], ENTRY)) for each in messages(40)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *others)

    assert [len(args[1]) for verb, args in store.calls if verb == "ingest"] == [1, 40]
    assert [job.payload for job in (await jobs(store))[1:]] == [each.body for each in messages(40)]
    assert balance(inbox).stored == 41


@pytest.mark.parametrize(("count", "size"), [(120, 10), (30, 9_000)])
async def test_a_flush_is_bounded_in_count_and_bytes_and_order_is_kept(store, inbox, count, size):
    sent = [Message(topic="t", body=b"%03d" % n + bytes(size)) for n in range(count)]

    receipts = await connect(inbox).receive(sent, ENTRY)

    batches = [args[1] for verb, args in store.calls if verb == "ingest"]
    assert len(batches) > 1
    assert all(len(batch) <= 50 and sum(len(each.job.payload) for each in batch) <= 100_000 for batch in batches)
    assert [job.payload for job in await jobs(store)] == [message.body for message in sent]
    assert [receipt.job_id for receipt in receipts] == [job.id for job in await jobs(store)]


async def test_a_database_that_is_away_only_makes_callers_wait(store, inbox):
    store.fail("ingest", *[StoreUnavailable("away")] * 3)
    told = []

    with telemetry.subscribed(lambda event, fields: told.append((event, fields.get("connector")))):
        receipts = await connect(inbox).receive(messages(3), ENTRY)

    assert len({receipt.job_id for receipt in receipts}) == len(await jobs(store)) == 3
    assert told.count(("inbox.waiting", "web")) == 3
    assert inbox.waiting is None
    assert balance(inbox).stored == 3


async def test_what_the_database_refuses_is_stored_as_failed_and_hurts_nobody_else(store, inbox):
    async def refuse(_connector, arrivals, _moves=()):
        if any(each.job.payload == b"3" and each.job.status is JobStatus.PENDING for each in arrivals):
            raise DataRefused("too long")

    store.before["ingest"] = refuse

    receipts = await connect(inbox).receive(messages(7), ENTRY)

    stored = {job.id: job for job in await jobs(store)}
    failed = stored.pop(receipts[3].job_id)
    assert (failed.status, failed.payload) == (JobStatus.FAILED, b"3")
    assert "too long" in failed.last_error
    assert {job.payload for job in stored.values()} == {b"0", b"1", b"2", b"4", b"5", b"6"}
    assert {job.status for job in stored.values()} == {JobStatus.PENDING}
    counts = balance(inbox)
    assert (counts.stored, counts.dead_lettered) == (6, 1)


async def test_a_message_that_cannot_be_kept_whole_is_kept_as_far_as_it_can(store, inbox):
    async def refuse(_connector, arrivals, _moves=()):
        if any(each.job.payload is not None for each in arrivals):
            raise DataRefused("no payloads today")

    store.before["ingest"] = refuse

    [receipt] = await connect(inbox).receive(messages(1), ENTRY)

    job = await store.get(receipt.job_id)
    assert (job.status, job.payload) == (JobStatus.FAILED, None)
    assert "1 bytes" in job.last_error
    assert job.metadata["topic"] == "/orders"


async def test_an_error_nobody_thought_of_is_the_messages_own(store, inbox):
    async def break_(_connector, arrivals, _moves=()):
        if any(each.job.payload == b"1" and each.job.status is JobStatus.PENDING for each in arrivals):
            raise TypeError("cannot be encoded")

    store.before["ingest"] = break_

    await connect(inbox).receive(messages(3), ENTRY)

    assert [job.status for job in await jobs(store)] == [JobStatus.PENDING, JobStatus.FAILED, JobStatus.PENDING]


async def test_a_repeated_dedupe_id_gets_the_first_job_and_a_conflict_for_another_body(store, inbox):
    connection = connect(inbox)
    one = Message(topic="t", body=b"a", dedupe_id="key", dedupe_scope="/orders")

    results = await asyncio.gather(
        connection.receive([one], ENTRY),
        connection.receive([one], ENTRY),
        connection.receive([Message(topic="t", body=b"b", dedupe_id="key", dedupe_scope="/orders")], ENTRY),
        connection.receive([Message(topic="t", body=b"a", dedupe_id="key", dedupe_scope="/other")], ENTRY),
    )

    first, second, third, other = (result[0] for result in results)
    assert (first.duplicate, second.duplicate, second.conflict) == (False, True, False)
    assert (third.job_id, third.duplicate, third.conflict) == (first.job_id, True, True)
    assert not other.duplicate
    assert len(await jobs(store)) == 2
    counts = balance(inbox)
    assert (counts.stored, counts.duplicate) == (2, 2)


async def test_positions_move_with_their_messages(store, inbox):
    life = connect(inbox)
    assert await life.positions("cluster", "orders", [0, 1]) == {}

    await life.receive([at(5), at(6), at(9), at(3, partition=1)], ENTRY)
    await life.receive([at(10)], ENTRY)

    stored = await connect(inbox).positions("cluster", "orders", [0, 1, 2])
    assert {partition: each.next_offset for partition, each in stored.items()} == {0: 11, 1: 4}


async def test_what_stands_before_the_held_position_is_a_duplicate(store, inbox):
    life = connect(inbox)
    await life.positions("cluster", "orders", [0])
    await life.receive([at(0), at(1)], ENTRY)

    receipts = await life.receive([at(1), at(2)], ENTRY)

    assert [receipt.duplicate for receipt in receipts] == [True, False]
    assert len(await jobs(store)) == 3
    assert balance(inbox).duplicate == 1


async def test_a_consumer_whose_position_was_moved_stores_nothing_and_blocks_nobody(store, inbox):
    zombie, successor = connect(inbox), connect(inbox)
    await zombie.positions("cluster", "orders", [0])
    await successor.positions("cluster", "orders", [0])
    await successor.receive([at(0, body=b"right")], ENTRY)
    gate = store.hold("ingest")
    first = asyncio.create_task(connect(inbox, "other").receive(messages(1), ENTRY))
    late = asyncio.create_task(zombie.receive([at(0, body=b"late")], ENTRY))
    good = asyncio.create_task(successor.receive([at(1, body=b"next")], ENTRY))
    await asyncio.sleep(0)
    gate.set()

    with pytest.raises(Disconnected):
        await late
    await asyncio.gather(first, good)

    with pytest.raises(Disconnected):
        await zombie.receive([at(2)], ENTRY)
    assert [job.payload for job in await jobs(store) if job.metadata["connector"] == "web"] == [b"right", b"next"]
    counts = balance(inbox)
    assert (counts.stored, counts.rejected) == (2, 2)


async def test_a_cancelled_call_that_was_not_begun_leaves_nothing(store, inbox):
    gate = store.hold("ingest")
    connection = connect(inbox)
    first = asyncio.create_task(connection.receive(messages(1), ENTRY))
    await until(lambda: store.calls)
    waiting = asyncio.create_task(connection.receive(messages(5), ENTRY))
    await asyncio.sleep(0)
    waiting.cancel()
    gate.set()
    await asyncio.gather(first, waiting, return_exceptions=True)
    await connection.receive(messages(1), ENTRY)

    assert len(await jobs(store)) == 2
    counts = balance(inbox)
    assert (counts.received, counts.stored, counts.rejected) == (7, 2, 5)


async def test_a_call_given_up_during_an_outage_is_not_stored_later(store, inbox):
    store.fail("ingest", *[StoreUnavailable("away")] * 4)
    connection = connect(inbox)
    impatient = asyncio.create_task(connection.receive(messages(2), ENTRY))
    patient = asyncio.create_task(connection.receive(messages(1), ENTRY))
    await until(lambda: inbox.waiting)
    impatient.cancel()
    await patient

    assert len(await jobs(store)) == 1
    counts = balance(inbox)
    assert (counts.stored, counts.rejected) == (1, 2)


async def test_a_life_that_gave_up_a_position_moves_it_no_further(store, inbox):
    life = connect(inbox)
    await life.positions("cluster", "orders", [0])
    gate = store.hold("ingest")
    first = asyncio.create_task(connect(inbox).receive(messages(1), ENTRY))
    await until(lambda: any(verb == "ingest" for verb, _ in store.calls))
    given_up = asyncio.create_task(life.receive([at(0)], ENTRY))
    following = asyncio.create_task(life.receive([at(1)], ENTRY))
    await asyncio.sleep(0)
    given_up.cancel()
    gate.set()

    await first
    with pytest.raises(Disconnected):
        await following
    assert await connect(inbox).positions("cluster", "orders", [0]) == {}
    balance(inbox)


async def test_a_stopped_inbox_stores_what_it_has_and_takes_nothing_more(store):
    inbox = InboxWriter(store)
    gate = store.hold("ingest")
    connection = connect(inbox)
    before = [asyncio.create_task(connection.receive(messages(1), ENTRY)) for _ in range(3)]
    await until(lambda: store.calls)
    inbox.stop()
    after = asyncio.create_task(connection.receive(messages(1), ENTRY))
    gate.set()
    await asyncio.gather(*before)
    await inbox.close()

    assert not after.done()
    after.cancel()
    assert len(await jobs(store)) == 3
    assert balance(inbox).received == 3


async def test_closing_during_an_outage_leaves_messages_unacknowledged(store):
    inbox = InboxWriter(store)
    store.fail("ingest", *[StoreUnavailable("away")] * 1000)
    call = asyncio.create_task(connect(inbox).receive(messages(2), ENTRY))
    await until(lambda: inbox.waiting)

    await inbox.close(grace=0.01)

    with pytest.raises(Disconnected):
        await call
    assert balance(inbox).rejected == 2


async def test_a_log_made_anew_is_read_from_its_start_though_the_old_one_was_longer(store, inbox):
    def logged(offset, identity):
        position = Position("cluster", "orders", 0, offset, offset + 1, identity)
        return Message(topic="orders", body=identity.encode(), position=position)

    first = connect(inbox)
    await first.positions("cluster", "orders", [0])
    await first.receive([logged(offset, "old") for offset in range(3)], ENTRY)

    second = connect(inbox)
    await second.positions("cluster", "orders", [0])
    await second.receive([logged(0, "new")], ENTRY)

    stored = await connect(inbox).positions("cluster", "orders", [0])
    assert [job.payload for job in await jobs(store)] == [b"old"] * 3 + [b"new"]
    assert (stored[0].topic_id, stored[0].next_offset) == ("new", 1)
