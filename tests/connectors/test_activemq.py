"""The ActiveMQ connector against Classic and Artemis: what every connector must do."""

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from typing import ClassVar

import pytest

from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance, Harness
from tests.brokers.activemq import ActiveMQ
from tests.brokers.artemis import Artemis
from tests.connectors.stomp_tools import Stranger, connector, counted, started, to_message

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
