"""Where a partition is read from: what the database says, else the group's own offset, else the entry's wish."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from connectors.kafka.cluster import Cluster, Topic
from connectors.kafka.config import KafkaEntry
from gateway.connector import StoredPosition
from gateway.errors import ConfigError, Disconnected
from gateway.telemetry import emit


class Start(NamedTuple):
    """Where to begin. `begun_anew`: not where the database says, but where the entry's policy does."""

    topic_id: str
    next_offset: int
    begun_anew: bool = False


class Beginning:
    """Decides for one entry, in one life of its connector."""

    def __init__(self, entry: KafkaEntry, cluster: Cluster, connector: str) -> None:
        self._entry, self._cluster, self._connector = entry, cluster, connector
        self._topics: dict[str, int] | None = None
        """Partitions of each topic when this life began: what comes later is read from its first record."""

    async def prepare(self) -> None:
        """See that the topics are there: the client library would make those that are missing."""
        described = await self._cluster.describe(self._entry.topics)
        for name, topic in described.items():
            if topic.error:
                raise Disconnected(f"{name} does not exist at {self._cluster.where}, or may not be seen")

    async def of(
        self, consumer: AIOKafkaConsumer, topic: str, partitions: Sequence[int], stored: Mapping[int, StoredPosition]
    ) -> dict[int, Start]:
        """Return where to begin each partition. Raises `ConfigError` where the entry says to stop."""
        now = await self._describe(consumer, topic)
        starts: dict[int, Start] = {}
        for number, position in stored.items():
            if position.topic_id and now.id and position.topic_id != now.id:
                self.recreated(topic, position.topic_id, now)
                anew = await self._bound(consumer, TopicPartition(topic, number), self._entry.on_position_invalid)
                starts[number] = Start(now.id, anew, begun_anew=True)
            else:
                starts[number] = Start(now.id or position.topic_id, position.next_offset)
        unknown = [TopicPartition(topic, number) for number in partitions if number not in stored]
        committed = await asyncio.gather(*(consumer.committed(partition) for partition in unknown))
        for partition, offset in zip(unknown, committed, strict=True):
            at = await self._wish(consumer, partition) if offset is None else offset
            starts[partition.partition] = Start(now.id, at)
        return starts

    async def elsewhere(self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> int:
        """Return where to go on if the log lacks `offset`. Raises `ConfigError` where the entry says to stop."""
        first, end = (
            await self._bound(consumer, partition, "earliest"),
            await self._bound(consumer, partition, "latest"),
        )
        where = f"{partition.topic}[{partition.partition}]"
        if first <= offset <= end:
            return offset  # a broker that had just become the leader did not know better
        if offset > end:
            raise ConfigError(
                [f"{where}: offset {offset} is stored, but the log ends at {end}: messages were lost there"]
            )
        text = f"{where}: {first - offset} messages from offset {offset} on expired before they were read"
        if self._entry.on_position_invalid == "stop":
            raise ConfigError([f"{text}; on_position_invalid says whether to go on"])
        emit("connector.warning", connector=self._connector, warning=text)
        return first if self._entry.on_position_invalid == "earliest" else end

    def recreated(self, topic: str, before: str, now: Topic) -> None:
        """Raise what is to be raised if a topic is not the one whose position is stored."""
        if now.error:
            raise Disconnected(f"{topic} does not exist any more")
        text = f"{topic} was deleted and created again (its id was {before}, now it is {now.id})"
        if self._entry.on_position_invalid == "stop":
            raise ConfigError([f"{text}: its positions mean nothing now; on_position_invalid says how to go on"])
        emit("connector.warning", connector=self._connector, warning=text)

    async def _describe(self, consumer: AIOKafkaConsumer, topic: str) -> Topic:
        wanted = {topic} if self._topics is not None else {topic, *consumer.subscription()}
        described = await self._cluster.describe(wanted)
        if self._topics is None:
            self._topics = {name: each.partitions for name, each in described.items()}
        now = described[topic]
        if now.error:
            raise Disconnected(f"{topic} does not exist any more")
        return now

    async def _wish(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> int:
        name = f"{partition.topic}[{partition.partition}]"
        if partition.partition >= (self._topics or {}).get(partition.topic, 0):
            return await self._bound(consumer, partition, "earliest")
        if self._entry.start_from == "committed":
            raise ConfigError([f"start_from is committed, but group {self._entry.group} has no offset in {name}"])
        time = self._entry.start_time
        if time is None:
            return await self._bound(consumer, partition, self._entry.start_from)
        found = (await consumer.offsets_for_times({partition: int(time.timestamp() * 1000)}))[partition]
        return int(found.offset) if found is not None else await self._bound(consumer, partition, "latest")

    async def _bound(self, consumer: AIOKafkaConsumer, partition: TopicPartition, which: str) -> int:
        ask = consumer.beginning_offsets if which == "earliest" else consumer.end_offsets
        return int((await ask([partition]))[partition])
