"""The ActiveMQ connector against Classic and Artemis: what every connector must do."""

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from typing import ClassVar

import pytest

from gateway import Gateway
from gateway.config import parse_config, sample
from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance, Harness
from tests.brokers.activemq import ActiveMQ
from tests.brokers.artemis import Artemis
from tests.connectors.stomp_tools import Stranger, connector, counted, started, to_message
from tests.services import free_port

NUMBERS = count(1)
PREFETCH = 100


class ActiveMQHarness(Harness):
    """One broker for all tests, a queue for each."""

    minimal: ClassVar = {"type": "activemq", "url": "stomp://127.0.0.1:61613"}

    def __init__(self, broker, stranger):
        self.broker, self.stranger = broker, stranger
        self.topic = f"conformance.{next(NUMBERS)}"

    @classmethod
    @asynccontextmanager
    async def of(cls, broker):
        harness = cls(broker, await Stranger.connect(broker.port))
        try:
            yield harness
        finally:
            await harness.stranger.close()

    def connector(self, instance=0):
        # What is published goes to the same queue, for somebody else.
        entry = {"queue": self.topic, "prefetch": PREFETCH, "key_header": "order_key", "selector": "stranger = 'yes'"}
        return connector(self.broker, entry, name=f"broker{instance}", heartbeat=2)

    async def send(self, message, instance=0):
        headers = [("stranger", "yes"), *((name, value.decode()) for name, value in message.headers)]
        if message.key is not None:
            headers.append(("order_key", message.key.decode()))
        await self.stranger.send(f"/queue/{self.topic}", message.body, headers)

    async def acknowledged(self):
        return (await counted(self.broker, self.topic))[0]

    async def delivered(self):
        receiver = await Stranger.connect(self.broker.port)
        try:
            await receiver.subscribe(f"/queue/{self.topic}")
            return [to_message(each) for each in await receiver.drain()]
        finally:
            await receiver.close()

    async def stop_broker(self):
        await self.stranger.close()
        await asyncio.to_thread(self.broker.stop)

    async def start_broker(self):
        self.broker.start()  # from the main thread, with whose end the broker ends too
        self.stranger = await Stranger.connect(self.broker.port)

    def refusable(self):
        return Message(topic="")  # what the broker itself refuses may cost the connection, as STOMP allows


@pytest.fixture(scope="module")
def classic():
    server = started(ActiveMQ)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def artemis():
    server = started(Artemis)
    yield server
    server.remove()


class TestActiveMQ(ConnectorConformance):
    prefetch = PREFETCH

    @pytest.fixture
    async def harness(self, classic):
        async with ActiveMQHarness.of(classic) as harness:
            yield harness


class TestArtemis(ConnectorConformance):
    prefetch = PREFETCH

    @pytest.fixture
    async def harness(self, artemis):
        async with ActiveMQHarness.of(artemis) as harness:
            yield harness


async def test_the_example_takes_a_message_and_sends_it_on(classic, tmp_path):
    text = sample("activemq").replace("127.0.0.1:8090", f"127.0.0.1:{free_port()}")
    environment = {"ACTIVEMQ": classic.url, "DATABASE_URL": f"sqlite:///{tmp_path / 'gateway.db'}"}
    stranger = await Stranger.connect(classic.port)
    async with Gateway(parse_config(text, environment=environment)):
        headers = {"content-type": "application/json", "region": "EU", "correlation-id": "c-1"}
        await stranger.send("/queue/orders.placed", b'{"id": 1}', headers, text=True)
        await stranger.subscribe("/queue/orders.seen")
        seen = await stranger.message()
    assert (seen.body, seen.headers["region"], seen.headers["correlation-id"]) == (b'{"id": 1}', "EU", "c-1")
    assert seen.headers["x-message-id"]
    assert "content-length" not in seen.headers  # text came in, so text goes out
    await stranger.close()
