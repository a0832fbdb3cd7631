"""Redeliveries and equal readings told apart, over the death of connections and of the gateway."""

import asyncio
import random
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.mqtt.window import PER_ROW, Window, digest_of, rows_for
from gateway.connector import StoredPosition
from gateway.errors import Disconnected, StoreUnavailable
from gateway.inbox import InboxWriter
from gateway.message import Message
from gateway.store import JobFilter
from tests.connectors.mqtt_tools import Script, connector
from tests.faulty import sqlite_store

NEW_SESSION = {"session": False}
RESUMED = {"session": True}


@asynccontextmanager
async def stored(tmp_path, port):
    """Run one life after the other on a real store; gives what has been stored, and the counts."""
    async with sqlite_store(tmp_path) as store:
        writer = InboxWriter(store)

        async def lives():
            while True:
                try:
                    await connector(port, receive_maximum=20).run(writer.connection("c", "mqtt"))
                except Disconnected:
                    continue

        async def bodies():
            jobs = sorted(await store.list(JobFilter(limit=1000)), key=lambda job: job.sequence)
            return [job.payload for job in jobs]

        task = asyncio.create_task(lives())
        try:
            yield bodies, lambda: writer.conservation["c"]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await writer.close()


async def test_a_redelivery_of_what_was_stored_makes_no_second_job(tmp_path):
    ended = asyncio.Event()
    packet_ids = list(range(1, 21))

    async def first(peer):
        await peer.welcome()
        for n in packet_ids:
            peer.send(b"%d" % n, n)
        assert [await peer.acknowledged() for _ in packet_ids] == packet_ids  # and all of them are lost on their way

    async def second(peer):
        await peer.welcome(**RESUMED)
        for n in packet_ids:
            peer.send(b"%d" % n, n, dup=True)
        peer.send(b"new", 21)
        assert [await peer.acknowledged() for _ in [*packet_ids, 21]] == [*packet_ids, 21]
        ended.set()
        await peer.reader.read()

    async with Script(first, second).running() as port, stored(tmp_path, port) as (bodies, counts):
        await asyncio.wait_for(ended.wait(), 15)
        assert await bodies() == [*(b"%d" % n for n in packet_ids), b"new"]
        assert (counts().stored, counts().duplicate, counts().residue) == (21, 20, 0)


async def test_a_redelivery_of_what_was_never_stored_is_stored(tmp_path):
    ended = asyncio.Event()

    async def first(peer):
        await peer.welcome()
        peer.send(b"known", 1)
        assert await peer.acknowledged() == 1

    async def second(peer):
        await peer.welcome(**RESUMED)
        peer.send(b"other", 1, dup=True)  # the packet id is known, what it stands for is not
        peer.send(b"known", 2, dup=True)  # and the other way round
        assert [await peer.acknowledged() for _ in "12"] == [1, 2]
        ended.set()
        await peer.reader.read()

    async with Script(first, second).running() as port, stored(tmp_path, port) as (bodies, _):
        await asyncio.wait_for(ended.wait(), 15)
        assert await bodies() == [b"known", b"other", b"known"]


async def test_equal_readings_are_so_many_jobs(tmp_path):
    ended = asyncio.Event()

    async def life(peer):
        await peer.welcome()
        for _ in range(30):
            peer.send(b"21.5", 1)
            assert await peer.acknowledged() == 1
        for packet_id in range(1, 20):
            peer.send(b"21.5", packet_id)
        assert [await peer.acknowledged() for _ in range(1, 20)] == list(range(1, 20))
        ended.set()
        await peer.reader.read()

    async with Script(life).running() as port, stored(tmp_path, port) as (bodies, counts):
        await asyncio.wait_for(ended.wait(), 15)
        assert await bodies() == [b"21.5"] * 49
        assert counts().duplicate == 0


async def test_a_message_repeated_on_the_same_connection_is_one_job(tmp_path):
    ended = asyncio.Event()

    async def life(peer):
        await peer.welcome()
        peer.send(b"a", 1)
        peer.send(b"a", 1, dup=True)  # some brokers are impatient
        peer.send(b"b", 2)
        assert [await peer.acknowledged() for _ in "112"] == [1, 1, 2]
        ended.set()
        await peer.reader.read()

    async with Script(life).running() as port, stored(tmp_path, port) as (bodies, counts):
        await asyncio.wait_for(ended.wait(), 15)
        assert await bodies() == [b"a", b"b"]
        assert counts().duplicate == 1


async def test_a_session_that_the_broker_forgot_is_no_reason_to_take_new_messages_for_old_ones(tmp_path):
    ended = asyncio.Event()

    async def first(peer):
        await peer.welcome()
        peer.send(b"21.5", 1)
        assert await peer.acknowledged() == 1

    async def second(peer):
        await peer.welcome(**NEW_SESSION)
        peer.send(b"21.5", 2)
        assert await peer.acknowledged() == 2

    async def third(peer):
        await peer.welcome(**RESUMED)
        peer.send(b"21.5", 1, dup=True)
        assert await peer.acknowledged() == 1
        ended.set()
        await peer.reader.read()

    async with Script(first, second, third).running() as port, stored(tmp_path, port) as (bodies, _):
        await asyncio.wait_for(ended.wait(), 15)
        assert len(await bodies()) == 3


# -- the window by itself ----------------------------------------------------------------------------------------------


class Rows(dict):
    """What the database holds: the window's rows, moved by compare-and-set."""

    def move(self, position, held):
        assert (self[position.partition].next_offset if position.partition in self else None) == held
        self[position.partition] = StoredPosition(position.topic_id, position.next_offset, position.state)


class Gateway:
    """One life: stores messages in groups, each with the position of its last one."""

    def __init__(self, rows, size, *, resumed):
        self.rows = rows
        self.held = {number: row.next_offset for number, row in rows.items() if number < rows_for(size)}
        self.window = Window("session", size, {n: r for n, r in rows.items() if n in self.held}, resumed=resumed)

    def store(self, packet_id, body, *, dup):
        """Return whether it is new."""
        digest = digest_of(Message(topic="t", body=body))
        if dup and self.window.knows(packet_id, digest):
            seen = self.window.repeated(packet_id)
            assert seen.offset < self.held[seen.partition], "the inbox would store it"
            return False
        self.window.add(packet_id, digest)
        position = self.window.position()
        assert position.offset >= self.held.get(position.partition, 0), "the inbox would forget it"
        self.rows.move(position, self.held.get(position.partition))
        self.held[position.partition] = position.next_offset
        return True


class Broker:
    """Sends numbered messages, at most `size` unacknowledged, and repeats those in the next life."""

    def __init__(self, size, ids):
        self.size, self.ids = size, ids
        self.flying: list[tuple[int, bytes]] = []
        self.sent = self.last_id = 0

    def next(self):
        if self.ids == "lowest":
            packet_id = next(n for n in range(1, 65536) if all(n != used for used, _ in self.flying))
        else:
            packet_id = self.last_id = self.last_id % self.ids + 1
        self.flying.append((packet_id, b"%d" % self.sent))
        self.sent += 1
        return self.flying[-1]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.sampled_from(["lowest", 50, 65535]), st.integers(0, 2**32))
def test_every_message_is_stored_once_whatever_breaks_off_when(size, ids, seed):
    chance = random.Random(seed)
    broker, rows, stored_bodies = Broker(size, ids), Rows(), []
    for _ in range(12):
        gateway = Gateway(rows, size, resumed=True)
        again, unacknowledged = list(broker.flying), []
        for _ in range(chance.randrange(80)):
            if again or len(broker.flying) < size:
                (packet_id, body), dup = (again.pop(0), True) if again else (broker.next(), False)
                if chance.random() < 0.02:
                    break  # it was on its way when the connection broke
                if gateway.store(packet_id, body, dup=dup):
                    stored_bodies.append(body)
                unacknowledged.append((packet_id, body))
            while unacknowledged and chance.random() < 0.6:
                broker.flying.remove(unacknowledged.pop(0))
    assert len(set(stored_bodies)) == len(stored_bodies), "stored twice"
    missing = {b"%d" % n for n in range(broker.sent)} - set(stored_bodies) - {body for _, body in broker.flying}
    assert missing == set(), "lost"


def test_what_is_remembered_reaches_as_far_as_a_broker_may_repeat():
    rows, size = Rows(), 1000
    first = Gateway(rows, size, resumed=True)
    for n in range(5000):
        assert first.store(n % 65535 + 1, b"%d" % n, dup=False)
    second = Gateway(rows, size, resumed=True)
    for n in range(4000, 5000):
        assert not second.store(n % 65535 + 1, b"%d" % n, dup=True)
    assert second.store(5001, b"5000", dup=True)


def test_a_session_that_begins_anywhere_in_a_row_is_remembered_whole():
    for before in range(PER_ROW + 1):
        rows = Rows()
        first = Gateway(rows, 30, resumed=False)
        for n in range(before):
            assert first.store(n + 1, b"old", dup=False)
        second = Gateway(rows, 30, resumed=False)
        for n in range(30):
            assert second.store(n + 1, b"%d" % n, dup=True)
        third = Gateway(rows, 30, resumed=True)
        assert not any(third.store(n + 1, b"%d" % n, dup=True) for n in range(30))


@pytest.mark.parametrize("sizes", [(10, 1000, 10), (1000, 10, 1000), (3, 4, 3)])
def test_another_size_loses_nothing(sizes):
    rows, number = Rows(), 0
    for size in sizes * 3:
        gateway = Gateway(rows, size, resumed=True)
        for _ in range(PER_ROW * 3 + 2):
            assert gateway.store(number % 7 + 1, b"%d" % number, dup=True)
            number += 1
        again = Gateway(rows, size, resumed=True)
        assert not any(again.store(n % 7 + 1, b"%d" % n, dup=True) for n in range(number - 7, number))


@pytest.mark.parametrize("sizes", [(10, 100), (100, 10), (3, 4)])
def test_a_redelivery_after_a_change_of_size_is_stored_twice_at_worst(sizes):
    rows = Rows()
    before, after = (lambda size=size: Gateway(rows, size, resumed=True) for size in sizes)
    gateway = before()
    for n in range(200):
        assert gateway.store(n + 1, b"%d" % n, dup=False)
    gateway = after()
    for n in range(200):
        gateway.store(n + 1, b"%d" % n, dup=True)
    for n in range(200, 400):
        assert gateway.store(n + 1, b"%d" % n, dup=True)


def test_rows_that_somebody_else_wrote_are_no_obstacle():
    window = Window("session", 10, {0: StoredPosition("what is this?", 12), 1: StoredPosition("", 7)}, resumed=True)
    assert not window.knows(1, 1)
    window.add(1, 1)
    assert window.position().offset >= 12


def test_an_expiry_that_shrinks_on_the_way_is_no_difference():
    def reading(**changes):
        return Message(**{"topic": "t", "body": b"x", "headers": (("a", b"1"),), **changes})

    assert digest_of(reading(headers=(("a", b"1"), ("mqtt-message-expiry", b"9")))) == digest_of(reading())
    others = [reading(topic="u"), reading(body=b"y"), reading(headers=()), reading(content_type="text/plain")]
    assert len({digest_of(each) for each in [reading(), *others]}) == 5


async def test_a_life_waits_for_the_database_before_it_takes_a_session():
    class Away:
        async def positions(self, cluster, topic, partitions):
            raise StoreUnavailable("the database is away")

    async def life(peer):
        raise AssertionError("it connected all the same")

    async with Script(life).running() as port:
        with pytest.raises(Disconnected, match="the database is away"):
            await connector(port).run(Away())
