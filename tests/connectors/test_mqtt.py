import asyncio
from typing import ClassVar

import pytest

from connectors._mqtt_config import MqttConfig
from connectors.mqtt import MqttConnector
from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance, Harness, running, until
from tests.brokers.hivemq import HiveMQ
from tests.brokers.mosquitto import Mosquitto
from tests.conftest import missing
from tests.connectors.mqtt_tools import Stranger, Tap
from tests.services import ServiceMissing

PREFETCH = 100


def started(kind, **options):
    """Start a broker for this module; it is there again before each test that asks for it."""
    try:
        return kind(**options).start()
    except ServiceMissing as reason:
        missing(str(reason))
        raise


@pytest.fixture(scope="module")
def mosquitto():
    broker = started(Mosquitto)
    yield broker
    broker.remove()


@pytest.fixture(scope="module")
def hivemq():
    broker = started(HiveMQ)
    yield broker
    broker.remove()


def connector(port, topic="t", *, name="c", entry=None, **keys):
    inbound = [{"topic": topic, "handler": "h", **(entry or {})}] if topic else []
    keys = {"type": "mqtt", "url": f"mqtt://127.0.0.1:{port}", "inbound": inbound, **keys}
    return MqttConnector(MqttConfig.model_validate(keys), name=name)


class MqttHarness(Harness):
    minimal: ClassVar = {"type": "mqtt", "url": "mqtt://localhost"}
    numbers = iter(range(1_000_000))

    def __init__(self, broker, tap):
        self.broker, self.tap = broker, tap
        self.number = next(self.numbers)
        self.topic = f"conformance/{self.number}"
        self.together = False

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
        return connector(self.tap.port, self.topic, name=name, receive_maximum=PREFETCH, **together)

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


class TestMosquitto(MqttConformance):
    @pytest.fixture
    def broker(self, mosquitto):
        return mosquitto


class TestHiveMQ(MqttConformance):
    @pytest.fixture
    def broker(self, hivemq):
        return hivemq
