"""Kafka: a record in becomes one job, its position stored with it; a message out is confirmed by all replicas."""

import asyncio
from collections.abc import Sequence

from connectors.kafka.cluster import Cluster, calm_the_log
from connectors.kafka.config import KafkaConfig
from connectors.kafka.sink import Sink
from connectors.kafka.source import Source
from gateway.connector import Connector, Inbox
from gateway.errors import NotConnected
from gateway.message import Message

PROBE = 1.0
"""Seconds between two questions to the cluster whether it is still there."""


class KafkaConnector(Connector[KafkaConfig]):
    """Each inbound entry is a member of its group. The positions stand in the database, in the jobs' transaction."""

    config_class = KafkaConfig
    guarantee = "exactly-once"
    protocol = "kafka"
    method = "publish"
    seekable = True

    def __init__(self, config: KafkaConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._sink: Sink | None = None

    async def run(self, inbox: Inbox) -> None:
        """Receive every entry at once. Ready when each has its share of the partitions, and their positions."""
        calm_the_log()
        cluster = Cluster(self.config)
        sink = Sink(self.config, cluster)
        try:
            await cluster.describe([])
            sources = [Source(entry, inbox, cluster, self.name) for entry in self.config.inbound]
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(source.run(), name=f"kafka {self.name} {source.entry.group}")
                group.create_task(self._watch(cluster), name=f"kafka {self.name} watch")
                await self._assigned(sources)
                self._sink = sink
                inbox.ready()
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from several.exceptions[0].__cause__
        finally:
            self._sink = None
            await sink.close()
            await cluster.close()

    async def publish(self, message: Message) -> str | None:
        """Return the record's topic, partition and offset."""
        if self._sink is None:
            raise NotConnected(f"{message.topic} was not published: the connector is not running")
        return await self._sink.publish(message)

    async def check(self) -> str:
        """Ask any broker who the cluster is, and for the topics of the entries."""
        calm_the_log()
        cluster = Cluster(self.config)
        try:
            names = [name for entry in self.config.inbound for name in entry.topics]
            found = await cluster.describe(names)
        finally:
            await cluster.close()
        told = [f"cluster {cluster.id} at {cluster.where} answers, {_counted(cluster.brokers, 'broker')}"]
        for name, topic in found.items():
            told.append(f"{name}: {'DOES NOT EXIST' if topic.error else _counted(topic.partitions, 'partition')}")
        return ", ".join(told)

    async def _watch(self, cluster: Cluster) -> None:
        """Raise `Disconnected` once no broker answers: the client objects would try for ever, and say nothing."""
        while True:
            await asyncio.sleep(PROBE)
            await cluster.describe([])

    async def _assigned(self, sources: Sequence[Source]) -> None:
        for source in sources:
            await source.assigned.wait()


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
