import asyncio
import contextlib
from typing import ClassVar

import pytest

from connectors.mqtt import MqttConnector
from gateway.errors import Disconnected
from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance, Harness, running, until
from tests.connectors.mqtt_tools import Stranger, Tap, connector

PREFETCH = 100


class MqttHarness(Harness):
    minimal: ClassVar = {"type": "mqtt", "url": "mqtt://localhost"}
    numbers = iter(range(1_000_000))

    def __init__(self, broker, tap, version=5):
        self.broker, self.tap, self.version = broker, tap, version
        self.number = next(self.numbers)
        self.topic = f"conformance/{self.number}"
        self.together = False
        self.anew = False
        """Each connector has a session of its own."""

    async def __aenter__(self):
        self.stranger = await Stranger(self.broker.port, f"stranger {self.number}").connect()
        self.observer = await Stranger(self.broker.port, f"observer {self.number}").connect()
        await self.observer.subscribe(self.topic, f"marker/{self.number}")
        async with running(self.connector()):
            pass  # a broker keeps messages for a session that is away, not for one that never was
        return self

    async def __aexit__(self, *_):
        await self.stranger.close()
        await self.observer.close()

    def connector(self, instance=0):
        # One that shares and keeps its session would go on getting its share while it is away.
        self.together |= instance > 0
        together = {"session_expiry": 0, "entry": {"share": "together"}} if self.together else {}
        name = f"conformance-{self.number}-{instance}{'-together' * self.together}"
        name += f"-{next(self.numbers)}" * self.anew
        keys = {"version": self.version, "receive_maximum": PREFETCH, **together}
        return connector(self.tap.port, self.topic, name=name, **keys)

    async def send(self, message, instance=0):
        if instance:  # only once the broker has seen the other one leave: it would get the message, and be gone
            await until(lambda: self.tap.clients == 1)
            await self.stranger.publish("marker/gone")
        await self.stranger.publish(message.topic, message.body, headers=message.headers)

    async def acknowledged(self):
        return len(self.tap.acknowledged)

    async def delivered(self):
        await self.stranger.publish(f"marker/{self.number}")
        await until(lambda: any(message.topic.startswith("marker/") for message in self.observer.received))
        return [message for message in self.observer.received if message.topic == self.topic]

    async def stop_broker(self):
        await asyncio.to_thread(self.broker.stop)

    async def start_broker(self):
        self.broker.start()  # in this thread: the broker ends with the one that started it

    def refusable(self):
        return Message(topic="a/+/b", body=b"x")  # Mosquitto 2.0.11 hangs up on who publishes what it forbids


class MqttConformance(ConnectorConformance):
    carries_key = False  # an MQTT message has none
    has_dedupe_id = False  # nor an id: a redelivery is known by its packet id and what was stored last
    prefetch = PREFETCH

    @pytest.fixture
    async def harness(self, broker):
        async with Tap(broker.port) as tap, MqttHarness(broker, tap) as harness:
            yield harness

    async def test_cancelled_at_any_moment_nothing_is_left(self, harness):
        # Else a broker may see the CONNECT of a life that was cut off after that of the next one, and prefer it.
        harness.anew = True
        await super().test_cancelled_at_any_moment_nothing_is_left(harness)


class TestMosquitto(MqttConformance):
    @pytest.fixture
    def broker(self, mosquitto):
        return mosquitto


class TestMosquittoBefore5(TestMosquitto):
    """The same with MQTT 3.1.1."""

    carries_headers = False  # it came with MQTT 5
    has_message_id = False  # likewise
    prefetch = None  # and so did the limit

    @pytest.fixture
    async def harness(self, broker):
        async with Tap(broker.port) as tap, MqttHarness(broker, tap, "3.1.1") as harness:
            yield harness


class TestHiveMQ(MqttConformance):
    @pytest.fixture
    def broker(self, hivemq):
        return hivemq


# The suite sees these faults, too.


class AcknowledgesTooEarly(MqttConnector):
    async def _consume(self, client, inbox, sorter):
        while True:
            deliveries = await client.take(1000, 1_000_000)
            client.settle(deliveries)
            for call in sorter.sort(deliveries):
                await inbox.receive(call.messages, call.entry)


class LeavesTheSocketOpen(MqttConnector):
    async def _connect(self, session, *, keep):
        client = await super()._connect(session, keep=keep)
        client.close = lambda: None
        return client


class SwallowsAnError(MqttConnector):
    async def _consume(self, client, inbox, sorter):
        while True:
            deliveries = await client.take(1000, 1_000_000)
            for call in sorter.sort(deliveries):
                with contextlib.suppress(Disconnected):
                    await inbox.receive(call.messages, call.entry)
            client.settle(deliveries)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (AcknowledgesTooEarly, "test_nothing_is_acknowledged_while_it_is_being_stored"),
        (AcknowledgesTooEarly, "test_a_life_cancelled_while_storing_leaves_its_messages_to_the_next"),
        (LeavesTheSocketOpen, "test_cancelled_at_any_moment_nothing_is_left"),
        (SwallowsAnError, "test_what_could_not_be_stored_is_not_acknowledged"),
    ],
)
async def test_the_suite_sees_the_fault(fault, test, mosquitto, monkeypatch):
    monkeypatch.setattr("gateway.testing.harness.DEADLINE", 0.7)
    async with Tap(mosquitto.port) as tap, MqttHarness(mosquitto, tap) as harness:
        make = harness.connector
        harness.connector = lambda instance=0: fault(make(instance).config, name=make(instance).name)
        with pytest.raises((AssertionError, pytest.fail.Exception, TimeoutError)):
            await getattr(TestMosquitto(), test)(harness)
