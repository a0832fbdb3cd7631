import asyncio
from typing import ClassVar

import pytest

from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance
from gateway.testing.harness import Harness
from tests.brokers.kafka import Kafka
from tests.connectors.kafka_tools import Stranger


class KafkaHarness(Harness):
    minimal: ClassVar = {"type": "kafka", "bootstrap_servers": "localhost:9092"}

    def __init__(self, broker: Kafka, stranger: Stranger) -> None:
        self.broker, self.stranger, self.topic = broker, stranger, stranger.topic

    def connector(self, instance=0):
        return self.stranger.connector(session_timeout=6)

    async def send(self, message, instance=0):
        await self.stranger.send(message.body, key=message.key, headers=list(message.headers), topic=message.topic)

    async def acknowledged(self):
        return sum((await self.stranger.committed()).values())

    async def delivered(self):
        return [
            Message(
                topic=record.topic, body=record.value, message_id=dict(record.headers).get("message-id", b"").decode()
            )
            for record in await self.stranger.everything()
        ]

    async def stop_broker(self):
        await asyncio.to_thread(self.broker.stop)

    async def start_broker(self):
        self.broker.launch()  # from this thread, which lives as long as the broker shall
        await asyncio.to_thread(self.broker.wait)

    def refusable(self):
        return Message(topic="not a topic", body=b"x")


class TestKafka(ConnectorConformance):
    has_dedupe_id = False  # its position in the log says whether a record was stored before

    @pytest.fixture
    async def harness(self, kafka):
        async with Stranger.at(kafka.url) as stranger:
            yield KafkaHarness(kafka, stranger)
