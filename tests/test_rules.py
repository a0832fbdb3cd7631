"""Entries with expressions: what they decide, and what the inbox makes of it on a real store."""

import asyncio
import time

import pytest
from pydantic import ValidationError

from connectors.memory import MemoryEntry
from gateway.connector import InboundEntry, Sample
from gateway.inbox import InboxWriter
from gateway.job import JobStatus
from gateway.message import Message, Position
from gateway.rules import Ruling
from gateway.store import JobFilter
from tests.faulty import Faulty, sqlite_store


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        yield Faulty(store)


@pytest.fixture
async def inbox(store):
    writer = InboxWriter(store)
    yield writer
    await writer.close()


def entry(topic="orders", **keys):
    return MemoryEntry(handler="h", topic=topic, **keys)


def message(body=b"{}", **keys):
    return Message(topic="orders", body=body, **keys)


def at(offset, body=b"x"):
    return message(body, position=Position("cluster", "orders", 0, offset, offset + 1, "id"))


def counts(writer, name="c"):
    found = writer.conservation[name]
    assert found.residue == 0
    names = ("stored", "duplicate", "filtered", "dead_lettered", "rejected")
    return {name: getattr(found, name) for name in names if getattr(found, name)}


async def receive(writer, messages, entry, name="c"):
    return await writer.connection(name, "memory").receive(messages, entry)


async def jobs(store):
    return sorted(await store.list(JobFilter(limit=1000)), key=lambda job: job.sequence)


# -- decisions ---------------------------------------------------------------------------------------------------------


def judged(message, **keys):
    return entry(**keys).rules.judge(message)


def test_an_entry_without_expressions_has_no_rules():
    assert entry().rules is None
    assert entry(priority=5, sample=Sample()).rules is None


def test_the_expressions_are_compiled_once_per_entry():
    one = entry(when="true")

    assert one.rules is one.rules is not None


def test_all_expressions_are_told_their_values():
    given = message(b'{"id":7,"who":"Ada"}', key=b"\xff")

    assert judged(given, when="body.id > 1", dedupe="[body.id, body.who]", ordering="key", priority="body.id * 2") == (
        Ruling(dedupe='[7,"Ada"]', ordering=b"\xff", priority=14)
    )
    assert judged(given, when="body.id > 9", dedupe="body.x.y.z < 1") == Ruling(wanted=False)


def test_null_gives_nothing():
    assert judged(message(), dedupe="body.id", ordering="key", priority="body.priority") == Ruling()


@pytest.mark.parametrize(
    ("expression", "priority"),
    [("2.9", 2), ("-2.9", -2), ("10000000", 1_000_000), ("-1e300", -1_000_000), ("1e308 * 10", 1_000_000)],
)
def test_a_priority_is_a_whole_number_within_its_limits(expression, priority):
    assert judged(message(), priority=expression).priority == priority


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"when": "body.amount > 5"}, "'when' has no value for this message: null cannot be compared with a number"),
        ({"when": "body.amount"}, "'when' has no value for this message: expected true or false, this is null"),
        ({"dedupe": "body"}, "'dedupe' has no value for this message: a key is text, a number, true or false, or a"),
        ({"ordering": "headers"}, "'ordering' has no value for this message: a key is text"),
        ({"dedupe": "topic + body.long"}, "'dedupe' has no value for this message: a key has at most 1024 characters"),
        ({"priority": "topic"}, "'priority' has no value for this message: a priority is a number, this is text"),
        ({"priority": "true"}, "'priority' has no value for this message: a priority is a number, this is true or"),
        ({"priority": "1e308 * 10 - 1e308 * 10"}, "'priority' has no value for this message: a priority is a number"),
        ({"when": "1 / 0 > 1", "dedupe": "1 / 0"}, "'when' has no value"),
    ],
)
def test_an_expression_without_value_is_the_reason_of_a_failure(keys, reason):
    ruling = judged(message(b'{"long":"%b"}' % (b"x" * 1025)), **keys)

    assert ruling.wanted
    assert ruling.error.startswith(reason)


def test_a_key_of_half_a_surrogate_pair_is_still_a_key():
    assert judged(message(rb'{"k":"\ud800"}'), ordering="body.k").ordering == b"\xed\xa0\x80"


@pytest.mark.parametrize("name", ["when", "dedupe", "ordering", "priority"])
def test_a_mistake_in_an_expression_is_one_in_the_configuration(name):
    with pytest.raises(ValidationError, match="expected a value, not the end"):
        entry(**{name: "body.id =="})


def test_an_entry_s_source_is_its_first_own_key():
    assert (entry("orders").source, InboundEntry(handler="h").source) == ("topic orders", "")


def test_a_message_costs_next_to_nothing_without_expressions():
    plain = entry()
    started = time.perf_counter()
    for _ in range(100_000):
        assert plain.rules is None
    assert (time.perf_counter() - started) / 100_000 < 5e-6


# -- in the inbox ------------------------------------------------------------------------------------------------------


async def test_what_is_not_wanted_is_counted_and_not_stored(store, inbox):
    sent = [message(b'{"n":%d}' % n) for n in range(4)]

    receipts = await receive(inbox, sent, entry(when="body.n % 2 == 1"))

    assert [job.payload for job in await jobs(store)] == [b'{"n":1}', b'{"n":3}']
    assert [receipt.filtered for receipt in receipts] == [True, False, True, False]
    assert [receipt.job_id for receipt in receipts if not receipt.filtered] == [job.id for job in await jobs(store)]
    assert counts(inbox) == {"stored": 2, "filtered": 2}


async def test_nothing_is_written_where_nothing_is_wanted(store, inbox):
    [receipt] = await receive(inbox, [message()], entry(when="false"))

    assert receipt.filtered
    assert store.calls == []
    assert counts(inbox) == {"filtered": 1}


async def test_the_position_behind_unwanted_messages_is_stored_with_the_others_and_alone(store, inbox):
    connection = inbox.connection("c", "kafka")
    await connection.positions("cluster", "orders", [0])
    choosy = entry(when="body.n == 1")

    await connection.receive([at(0, b'{"n":0}'), at(1, b'{"n":1}'), at(2, b'{"n":2}')], choosy)
    assert (await store.positions("c", "cluster", "orders", [0]))[0].next_offset == 3
    await connection.receive([at(3), at(4)], entry(when="topic == 'other'"))
    assert (await store.positions("c", "cluster", "orders", [0]))[0].next_offset == 5

    again = await connection.receive([at(4)], entry(when="topic == 'other'"))
    assert (again[0].duplicate, again[0].filtered) == (True, False)
    assert counts(inbox) == {"stored": 1, "filtered": 4, "duplicate": 1}


async def test_an_error_stores_the_message_as_failed_and_the_rest_goes_on(store, inbox):
    sent = [message(b'{"n":1}'), message(b"no json"), message(b'{"n":2}')]

    receipts = await receive(inbox, sent, entry(when="body.n > 0"))

    found = await jobs(store)
    assert [job.status for job in found] == [JobStatus.PENDING, JobStatus.FAILED, JobStatus.PENDING]
    assert found[1].last_error.startswith("'when' has no value for this message: the message's body is not JSON")
    assert found[1].payload == b"no json"
    assert [receipt.job_id for receipt in receipts] == [job.id for job in found]
    assert counts(inbox) == {"stored": 2, "dead_lettered": 1}


async def test_of_equal_messages_only_the_first_becomes_a_job(store, inbox):
    sent = [message(b'{"id":%d,"at":%d}' % pair) for pair in ((1, 1), (1, 2), (2, 3))]

    first = await receive(inbox, sent, entry(dedupe="body.id"))
    [later] = await receive(inbox, [message(b'{"id":2,"at":4}')], entry(dedupe="body.id"))

    assert [receipt.duplicate for receipt in (*first, later)] == [False, True, False, True]
    assert not any(receipt.conflict for receipt in (*first, later))
    assert later.job_id == first[2].job_id
    assert [job.message.dedupe_id for job in await jobs(store)] == ["1", "2"]
    assert counts(inbox) == {"stored": 2, "duplicate": 2}


async def test_dedupe_is_of_one_entry_and_leaves_the_protocol_s_own_where_it_is_null(store, inbox):
    same = [message(b'{"id":1}'), message(b'{"id":1}')]
    own = [message(b"{}", dedupe_id="1"), message(b"[]", dedupe_id="1")]

    here = await receive(inbox, same[:1], entry("a", dedupe="body.id"))
    there = await receive(inbox, same[1:], entry("b", dedupe="body.id"))
    protocol = await receive(inbox, own, entry("a", dedupe="parameters.none"))

    assert [r.duplicate for r in (*here, *there, *protocol)] == [False, False, False, True]
    assert protocol[1].conflict


async def test_a_key_orders_the_jobs_of_one_entry(store, inbox):
    for topic in ("a", "b"):
        await receive(inbox, [message(key=key) for key in (b"k", b"\xff", None)], entry(topic, ordering="key"))

    keys = [job.ordering_key for job in await jobs(store)]

    assert keys[0] == "in c topic a\x1fk"
    assert keys[2] is keys[5] is None
    assert len(set(keys)) == 5


async def test_a_message_has_the_priority_it_asks_for(store, inbox):
    await receive(inbox, [message(b'{"p":7}'), message(b"{}")], entry(priority="body.p"))
    await receive(inbox, [message()], entry(priority=3))

    assert [job.priority for job in await jobs(store)] == [7, 0, 3]


async def test_unwanted_messages_wait_their_turn_while_the_database_is_away(store, inbox):
    gate = store.hold("ingest")
    connection = inbox.connection("c", "memory")
    first = asyncio.create_task(connection.receive([message(b"1")], entry()))
    second = asyncio.create_task(connection.receive([message(b"2")], entry(when="false")))
    await asyncio.sleep(0.01)
    assert not second.done()

    gate.set()
    await asyncio.gather(first, second)
    assert counts(inbox) == {"stored": 1, "filtered": 1}
