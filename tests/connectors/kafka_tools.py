"""A stranger's view of a Kafka broker: topics made and deleted, records sent and read, a group's offsets."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from connectors.kafka import KafkaConnector
from connectors.kafka.config import KafkaConfig
from gateway.connector import Inbox
from gateway.inbox import InboxWriter
from gateway.store import Store
from gateway.store.migrate import migrate
from gateway.supervisor import ConnectorState, Supervisor
from gateway.testing.harness import until
from tests.stores.databases import rows


def config(address: str, **keys) -> KafkaConfig:
    return KafkaConfig.model_validate({"type": "kafka", "bootstrap_servers": address, **keys})


def connector(address: str, name: str = "kafka", **keys) -> KafkaConnector:
    return KafkaConnector(config(address, **keys), name=name)


class Stranger:
    """Someone else at the broker, with a topic and a group of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.topic = f"topic-{uuid4().hex[:12]}"
        self.group = f"group-{uuid4().hex[:12]}"
        self.producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", max_request_size=8_000_000)
        self.admin = AIOKafkaAdminClient(bootstrap_servers=address)

    @classmethod
    @asynccontextmanager
    async def at(cls, address: str, partitions: int = 1) -> AsyncIterator["Stranger"]:
        self = cls(address)
        await self.admin.start()
        await self.producer.start()
        try:
            await self.producer.client.ready(self.producer.client.get_random_node())  # the connection it keeps
            await self.create(partitions)
            yield self
        finally:
            await self.producer.stop()
            await self.admin.close()

    async def create(self, partitions: int = 1, topic: str | None = None, **settings: str) -> None:
        made = NewTopic(topic or self.topic, partitions, 1, topic_configs=settings)
        response = await self.admin.create_topics([made])
        assert response.topic_errors[0][1] == 0, response
        await self.until_there(topic or self.topic, there=True)

    async def grow(self, partitions: int) -> None:
        await self.admin.create_partitions({self.topic: NewPartitions(partitions)})
        async with asyncio.timeout(15):
            while len((await self.admin.describe_topics([self.topic]))[0]["partitions"]) < partitions:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await self.producer.client.force_metadata_update()

    async def delete(self) -> None:
        await self.admin.delete_topics([self.topic])
        await self.until_there(self.topic, there=False)

    async def until_there(self, topic: str, *, there: bool) -> None:
        async with asyncio.timeout(15):
            while (topic in await self.admin.list_topics()) != there:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def send(self, *values: bytes | None, key: bytes | None = None, topic: str | None = None, **options) -> None:
        sent = [await self.producer.send(topic or self.topic, value, key, **options) for value in values]
        await asyncio.gather(*sent)

    async def commit(self, offset: int) -> None:
        """Set the group's offset in the first partition; the group has no members."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.address, group_id=self.group, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self.topic, 0)])
            await consumer.commit({TopicPartition(self.topic, 0): offset})
        finally:
            await consumer.stop()

    async def has_a_member(self) -> bool:
        """Whether the group has members, and is not sharing out its partitions anew."""
        [described] = await self.admin.describe_consumer_groups([self.group])
        return described.groups[0][2] == "Stable"

    async def committed(self) -> dict[int, int]:
        found = await self.admin.list_consumer_group_offsets(self.group)
        return {part.partition: at.offset for part, at in found.items() if part.topic == self.topic and at.offset >= 0}

    async def everything(self, topic: str | None = None) -> Sequence:
        """Return every record of a topic, by partition."""
        topic = topic or self.topic
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.address, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            await consumer._client._wait_on_metadata(topic)
            parts = [TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic) or ())]
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)
            found = []
            async with asyncio.timeout(15):
                while any([await consumer.position(part) < ends[part] for part in parts]):
                    for records in (await consumer.getmany(timeout_ms=100)).values():
                        found += records
            return found
        finally:
            await consumer.stop()

    def entry(self, **keys) -> dict:
        return {"topic": self.topic, "group": self.group, "handler": "gateway.log", **keys}

    def connector(self, name: str = "kafka", **keys) -> KafkaConnector:
        return connector(self.address, name, inbound=[self.entry(**keys)])


class Member:
    """One gateway of several: a supervised connector whose messages end in a store."""

    def __init__(self, make: Callable[[], KafkaConnector], store: Store) -> None:
        self.writer = InboxWriter(store)
        self.supervisor = Supervisor("kafka", make, self._inbox)
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Supervisor]:
        await self.start()
        try:
            yield self.supervisor
        finally:
            await self.stop()

    async def start(self) -> None:
        self._task = asyncio.create_task(self.supervisor.run())
        await until(lambda: self.supervisor.state is ConnectorState.CONNECTED, 30)

    async def stop(self) -> None:
        """Stop as a gateway does: whatever has been received is still stored."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        await self.writer.close()
        assert all(counts.residue == 0 for counts in self.writer.conservation.values())

    def _inbox(self, on_ready: Callable[[], None]) -> Inbox:
        return self.writer.connection("kafka", "kafka", method="publish", on_ready=on_ready)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """A store on a fresh database."""
    await migrate(url)
    store = await Store.open(url, instance="kafka-test", statement_timeout=10)
    try:
        yield store
    finally:
        await store.close()


async def bodies(url: str) -> list[bytes]:
    """Return the payloads of all jobs in the order of their arrival."""
    order = "rowid" if url.startswith("sqlite") else "seq"
    found = await rows(url, f"SELECT payload FROM queue_jobs ORDER BY {order}")
    return [row["payload"].encode() for row in found]


async def until_count(url: str, count: int, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while (await rows(url, "SELECT count(*) AS n FROM queue_jobs"))[0]["n"] < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
