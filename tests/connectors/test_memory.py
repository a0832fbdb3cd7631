import asyncio
import contextlib
import socket
from typing import ClassVar
from uuid import uuid4

import pytest

from connectors.memory import MemoryBroker, MemoryConfig, MemoryConnector, MemoryEntry
from gateway.connector import Inbox
from gateway.errors import Disconnected
from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance, Harness, Recorder, nothing_left, running, until


class MemoryHarness(Harness):
    minimal: ClassVar = {"type": "memory"}

    def __init__(self, connector_class: type[MemoryConnector] = MemoryConnector) -> None:
        self.broker_name = str(uuid4())
        self.broker = MemoryBroker.named(self.broker_name)
        self.broker.refused.add("refused")
        self.connector_class = connector_class

    def connector(self, instance: int = 0) -> MemoryConnector:
        entry = MemoryEntry(handler="h", topic=self.topic)
        return self.connector_class(MemoryConfig(broker=self.broker_name, inbound=[entry]), name=f"c{instance}")

    async def send(self, message, instance=0):
        self.broker.put(message)

    async def acknowledged(self):
        return len(self.broker.acknowledged)

    async def delivered(self):
        return self.broker.published

    async def stop_broker(self):
        self.broker.stop()

    async def start_broker(self):
        self.broker.start()

    def refusable(self):
        return Message(topic="refused", body=b"x")


class TestMemory(ConnectorConformance):
    prefetch = 100

    @pytest.fixture
    def harness(self):
        return MemoryHarness()


async def test_queues_are_consumed_independently():
    name = str(uuid4())
    broker = MemoryBroker.named(name)
    entries = [MemoryEntry(handler="h", topic=topic) for topic in ("a", "b")]
    connector = MemoryConnector(MemoryConfig(broker=name, inbound=entries), name="c")
    slow, seen = asyncio.Event(), []

    class Slow(Recorder):
        async def receive(self, messages, entry):
            if entry.topic == "a":
                await slow.wait()
            seen.append(entry.topic)
            return await super().receive(messages, entry)

    inbox = Slow()
    async with running(connector, inbox):
        broker.put(Message(topic="a"))
        broker.put(Message(topic="b"))
        await until(lambda: seen == ["b"])
        slow.set()
        await until(lambda: seen == ["b", "a"])


async def test_the_check_says_whether_the_broker_is_up():
    harness = MemoryHarness()
    assert "is up" in await harness.connector().check()
    await harness.stop_broker()
    with pytest.raises(Disconnected):
        await harness.connector().check()


# The suite itself: each adapter below has one fault, and the test that must see it.


class AcknowledgesTooEarly(MemoryConnector):
    async def _consume(self, entry, inbox: Inbox):
        while True:
            held = await self._broker.take(entry.topic)
            self._broker.acknowledged.extend(message for _, message in held)
            await inbox.receive([message for _, message in held], entry)


class SwallowsAnError(MemoryConnector):
    async def _consume(self, entry, inbox: Inbox):
        while True:
            held = await self._broker.take(entry.topic)
            with contextlib.suppress(Disconnected):
                await inbox.receive([message for _, message in held], entry)
            self._broker.acknowledged.extend(message for _, message in held)


class LosesWhatItHeld(MemoryConnector):
    async def _consume(self, entry, inbox: Inbox):
        while True:
            held = await self._broker.take(entry.topic)
            await inbox.receive([message for _, message in held], entry)
            self._broker.acknowledged.extend(message for _, message in held)


class LeaksATask(MemoryConnector):
    async def run(self, inbox: Inbox):
        self.leaked = asyncio.create_task(asyncio.Event().wait())
        await super().run(inbox)


class SwallowsItsCancellation(MemoryConnector):
    async def run(self, inbox: Inbox):
        try:
            await super().run(inbox)
        except asyncio.CancelledError:
            return


class IsReadyTwice(MemoryConnector):
    async def run(self, inbox: Inbox):
        inbox.ready()
        await super().run(inbox)


class StaysWhenTheBrokerGoes(MemoryConnector):
    async def run(self, inbox: Inbox):
        try:
            await super().run(inbox)
        except Disconnected:
            await asyncio.Event().wait()


class TurnsTheOrderAround(MemoryConnector):
    async def _consume(self, entry, inbox: Inbox):
        while True:
            held = await self._broker.take(entry.topic)
            await inbox.receive([message for _, message in reversed(held)], entry)
            self._broker.acknowledged.extend(message for _, message in held)


class DecodesBodies(MemoryConnector):
    async def _consume(self, entry, inbox: Inbox):
        while True:
            held = await self._broker.take(entry.topic)
            texts = [m.body.decode(errors="replace").encode() for _, m in held]
            await inbox.receive([Message(topic=entry.topic, body=text) for text in texts], entry)
            self._broker.acknowledged.extend(message for _, message in held)


class PublishesAnyTime(MemoryConnector):
    async def publish(self, message):
        self._running = True
        return await super().publish(message)


FAULTS = [
    (AcknowledgesTooEarly, "test_nothing_is_acknowledged_while_it_is_being_stored"),
    (AcknowledgesTooEarly, "test_what_could_not_be_stored_is_not_acknowledged"),
    (AcknowledgesTooEarly, "test_a_life_cancelled_while_storing_leaves_its_messages_to_the_next"),
    (AcknowledgesTooEarly, "test_a_database_that_is_away_holds_back_the_source_and_breaks_nothing"),
    (SwallowsAnError, "test_what_could_not_be_stored_is_not_acknowledged"),
    (SwallowsAnError, "test_a_failed_store_leaves_nothing"),
    (LosesWhatItHeld, "test_a_life_cancelled_while_storing_leaves_its_messages_to_the_next"),
    (LeaksATask, "test_cancelled_at_any_moment_nothing_is_left"),
    (SwallowsItsCancellation, "test_cancelled_at_any_moment_nothing_is_left"),
    (IsReadyTwice, "test_a_life_is_ready_once_and_then_nothing_sent_is_missed"),
    (StaysWhenTheBrokerGoes, "test_a_broker_that_goes_away_ends_the_life_and_none_of_its_messages"),
    (TurnsTheOrderAround, "test_order_is_kept"),
    (DecodesBodies, "test_a_message_is_stored_whole_and_then_acknowledged"),
    (DecodesBodies, "test_headers_and_key_arrive"),
    (PublishesAnyTime, "test_publishing_outside_a_life_sends_nothing_and_says_so"),
]


@pytest.mark.parametrize(("fault", "test"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
async def test_the_suite_sees_the_fault(fault, test, monkeypatch):
    monkeypatch.setattr("gateway.testing.harness.DEADLINE", 0.5)
    suite = TestMemory()
    suite.blocked_for = 0.1
    suite.many = 150
    with pytest.raises((AssertionError, pytest.fail.Exception, TimeoutError)):
        await asyncio.wait_for(getattr(suite, test)(MemoryHarness(fault)), 20)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_the_leak_check_sees_a_socket(monkeypatch):
    monkeypatch.setattr("gateway.testing.harness.DEADLINE", 0.1)
    pair = ()
    with pytest.raises(pytest.fail.Exception, match="left behind"):
        async with nothing_left():
            pair = socket.socketpair()
    for each in pair:
        each.close()
