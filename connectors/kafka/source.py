"""One inbound entry: a member of a consumer group whose positions are kept in the gateway's database.

The group shares out the partitions, nothing else: where to read is what the database says, and a record of a
partition whose position is not held is dropped. So a record becomes one job through rebalances, zombies and replays.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition, errors

from connectors.kafka.cluster import Cluster, close, reason, settled
from connectors.kafka.config import KafkaEntry
from connectors.kafka.start import Beginning
from gateway.connector import Inbox, Receipt
from gateway.errors import ConfigError, Disconnected, StoreError
from gateway.message import Message, Position

Records: TypeAlias = Mapping[TopicPartition, Sequence[Any]]

DRAIN = 3.0
"""Seconds that a rebalance waits for what is being stored; less than any rebalance timeout."""
LOST_IN_A_ROW = 5
"""How often the position may be lost without any success in between until the life ends."""
COMMIT_EVERY = 1.0
PATIENCE = 60.0
"""Seconds until a group that assigns nothing, or partitions of which nothing is heard, end the life."""


_former: dict[tuple[str, str, str], str] = {}
"""Who this process was in a group when it lost its brokers. A life that goes on as the same member need not wait
until the group has missed the former one, which takes a whole session."""


@dataclass(slots=True)
class Held:
    """A partition whose position this member holds: everything before `next_offset` is stored."""

    topic_id: str
    next_offset: int
    begun_anew: bool = False
    """Its log was begun anew by the entry's policy, and nothing of it has been stored yet."""


class Source(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """Receives the records of one entry and hands them to the inbox, batch by batch."""

    def __init__(self, entry: KafkaEntry, inbox: Inbox, cluster: Cluster, connector: str) -> None:
        self.entry = entry
        self.assigned = asyncio.Event()
        """The group has given this member its first partitions (perhaps none), and their positions are known."""
        self._inbox, self._cluster = inbox, cluster
        self._key = (connector, entry.group, entry.source)
        self._beginning = Beginning(entry, cluster, connector)
        self._held: dict[TopicPartition, Held] = {}
        self._generation = 0
        self._rebalancing = True
        self._untaken: set[TopicPartition] = set()
        self._storing: asyncio.Task[Sequence[Receipt]] | None = None
        self._suspicious = False
        self._lost = 0
        self._stored: dict[TopicPartition, int] = {}
        self._heard = time.monotonic()

    async def run(self) -> None:
        """Be a member of the group until cancelled. Raises `Disconnected` or `ConfigError` when it cannot go on."""
        await self._beginning.prepare()
        self._consumer = consumer = self._make()
        try:
            await settled(consumer.start(), 15)
            # The library refreshes its metadata every 10 s, and when something is wrong: topic ids are compared then.
            consumer._client.cluster.add_listener(self._suspect)  # noqa: SLF001 - there is no public way to hear of it
            consumer._coordinator.member_id = _former.pop(self._key, "")  # noqa: SLF001 - there is no public way
            matches = self.entry.matches
            consumer.subscribe(self.entry.topics, pattern=matches and matches.pattern, listener=self)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commit_lazily())
                group.create_task(self._watch())
                await self._receive()
        except BaseExceptionGroup as several:
            raise self._told(several.exceptions[0]) from several.exceptions[0].__cause__
        except (errors.KafkaError, TimeoutError, OSError) as error:
            raise self._told(error) from error
        except asyncio.CancelledError:
            await self._commit()
            raise
        finally:
            coordinator = consumer._coordinator  # noqa: SLF001 - there is no public way
            if coordinator is not None and self.entry.instance_id is None:
                _former[self._key] = coordinator.member_id
            await close(consumer.stop(), consumer._client)  # noqa: SLF001 - a stop that hangs leaves it open

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:  # noqa: ARG002 - part of the contract
        """Let go of everything, after what is being stored had a moment to become durable."""
        self._generation += 1
        self._rebalancing, self._untaken, self._heard = True, set(), time.monotonic()
        if (storing := self._storing) is not None:
            await asyncio.wait({storing}, timeout=DRAIN)
            storing.cancel()  # or a part of it might be stored after the next owner has read the position
        await self._commit()
        self._held.clear()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Read nothing yet: the positions come first, from the receiving loop, where an error is not swallowed."""
        self._consumer.pause(*assigned)
        self._generation += 1
        self._rebalancing, self._untaken = False, set(assigned)
        self._held.clear()
        if not assigned:
            self.assigned.set()

    def _make(self) -> AIOKafkaConsumer:
        session = int(self.entry.session_timeout * 1000)
        return AIOKafkaConsumer(
            **self._cluster.client,
            group_id=self.entry.group,
            group_instance_id=self.entry.instance_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level=self.entry.isolation,
            session_timeout_ms=session,
            heartbeat_interval_ms=max(300, min(1000, session // 5)),
            rebalance_timeout_ms=max(session, 10_000),
            fetch_max_bytes=16 * 1024 * 1024,
        )

    async def _receive(self) -> None:
        while True:
            if self._untaken:
                await self._take(self._untaken)
            batch = await self._fresh(await self._poll())
            if batch and await self._is_same_log():
                await self._store(batch)

    async def _take(self, partitions: set[TopicPartition]) -> None:
        """Read the positions of partitions and go there. They are paused until then."""
        generation = self._generation
        taken: dict[TopicPartition, Held] = {}
        try:
            for topic in {partition.topic for partition in partitions}:
                mine = sorted(p.partition for p in partitions if p.topic == topic)
                stored = await self._inbox.positions(self._cluster.id, topic, mine)
                starts = await self._beginning.of(self._consumer, topic, mine, stored)
                taken |= {TopicPartition(topic, number): Held(*start) for number, start in starts.items()}
        except StoreError:
            await asyncio.sleep(0.2)  # the database is away: keep polling, and try again
            return
        if generation != self._generation:
            return
        for partition, held in taken.items():
            self._consumer.seek(partition, held.next_offset)
        self._held |= taken
        self._stored |= {partition: held.next_offset for partition, held in taken.items()}
        self._consumer.resume(*taken)
        self._untaken, self._heard = set(), time.monotonic()
        self.assigned.set()

    async def _poll(self) -> Records:
        try:
            records: Records = await self._consumer.getmany(timeout_ms=200, max_records=self.entry.max_records)
        except errors.NoOffsetForPartitionError:
            await asyncio.sleep(0.02)  # of a partition whose position is still being read
            return {}
        except errors.OffsetOutOfRangeError as error:
            for partition, offset in error.args[0].items():
                await self._invalid(partition, offset)
            return {}
        return records

    async def _fresh(self, records: Records) -> dict[TopicPartition, list[Message]]:
        """Return the messages of held partitions; what stands before their position is left out."""
        batch = {}
        for partition, found in records.items():
            held = self._held.get(partition)
            if held is not None and found[-1].offset >= held.next_offset:
                fresh = [record for record in found if record.offset >= held.next_offset]
                if held.begun_anew:  # whether the gateway lets go of the old position is seen on one alone
                    fresh = fresh[:1]
                    self._consumer.seek(partition, fresh[0].offset + 1)
                batch[partition] = self._messages(partition, fresh, await self._consumer.position(partition))
        return batch

    def _messages(self, partition: TopicPartition, records: Sequence[Any], position: int) -> list[Message]:
        """`position` is behind records that are never shown: the ends of transactions."""
        cluster, topic, number = self._cluster.id, partition.topic, partition.partition
        topic_id, last = self._held[partition].topic_id, records[-1].offset
        return [
            to_message(
                record,
                Position(
                    cluster=cluster,
                    topic=topic,
                    partition=number,
                    offset=record.offset,
                    next_offset=max(position, last + 1) if record.offset == last else record.offset + 1,
                    topic_id=topic_id,
                ),
            )
            for record in records
        ]

    async def _is_same_log(self) -> bool:
        """Whether the topics are still those whose positions are held; if not, the records are of other logs."""
        if self._suspicious:
            self._suspicious = False
            generation = self._generation
            topics = {partition.topic for partition in self._held}
            described = await self._cluster.describe(topics)
            if generation != self._generation:
                return False
            for partition, held in self._held.items():
                now = described[partition.topic]
                if now.error or (held.topic_id and now.id and held.topic_id != now.id):
                    self._beginning.recreated(partition.topic, held.topic_id, now)
                    self._retake()
                    return False
        return True

    async def _store(self, batch: Mapping[TopicPartition, Sequence[Message]]) -> None:
        """Store a batch, however long it takes; the group hears from us meanwhile, and nothing more is fetched."""
        generation = self._generation
        messages = [message for part in batch.values() for message in part]
        storing = self._storing = asyncio.create_task(self._inbox.receive(messages, self.entry))
        try:
            await self._wait_for(storing)
        finally:
            self._storing = None
        if storing.cancelled():  # given up by a rebalance; who has the partitions now begins where the database says
            return
        try:
            receipts = storing.result()
        except Disconnected as lost:
            await self._position_lost(lost)
            return
        self._lost = 0
        if generation == self._generation:
            self._advance(batch, receipts)

    async def _wait_for(self, storing: "asyncio.Task[Sequence[Receipt]]") -> None:
        try:
            done, _ = await asyncio.wait({storing}, timeout=0.3)
            while not done:
                await self._idle()
                done, _ = await asyncio.wait({storing}, timeout=0.1)
        except BaseException:
            storing.cancel()
            await asyncio.wait({storing})
            raise
        finally:
            paused = self._held.keys() & self._consumer.paused()
            if paused:
                self._suspicious = True  # nothing was fetched for a while, in which a topic may have been made anew
                self._heard = time.monotonic()
                self._consumer.resume(*paused)

    async def _idle(self) -> None:
        """Poll, as every member of a group must, but take nothing."""
        self._consumer.pause(*(self._held.keys() & self._consumer.assignment()))
        for partition, records in (await self._poll()).items():
            if partition in self._held and partition in self._consumer.assignment():
                self._consumer.seek(partition, records[0].offset)

    def _advance(self, batch: Mapping[TopicPartition, Sequence[Message]], receipts: Sequence[Receipt]) -> None:
        at = 0
        for partition, messages in batch.items():
            mine, at = receipts[at : at + len(messages)], at + len(messages)
            held, last = self._held[partition], messages[-1].position
            assert last is not None
            if held.begun_anew and all(receipt.duplicate and not receipt.job_id for receipt in mine):
                name = f"{partition.topic}[{partition.partition}]"
                raise ConfigError([f"{name}: the position of the former {partition.topic} must be deleted first"])
            held.next_offset, held.begun_anew = last.next_offset, False
            self._stored[partition] = last.next_offset

    async def _position_lost(self, lost: Disconnected) -> None:
        """Another consumer was there too (a zombie, perhaps ourselves): begin again where the database says."""
        self._lost += 1
        if self._lost >= LOST_IN_A_ROW:
            raise lost
        self._retake()
        await asyncio.sleep(0.05 * 2**self._lost)

    def _retake(self) -> None:
        """Read the positions again before anything else."""
        if not self._rebalancing:
            self._untaken = set(self._consumer.assignment())
            self._consumer.pause(*self._untaken)
            self._generation += 1
            self._held.clear()

    async def _invalid(self, partition: TopicPartition, offset: int) -> None:
        """Decide by the entry's policy where to go on, or to stop, as a held position is outside of its log."""
        held = self._held.get(partition)
        if held is None or held.next_offset != offset:
            return
        generation = self._generation
        self._suspicious = True
        if not await self._is_same_log():
            return
        to = await self._beginning.elsewhere(self._consumer, partition, offset)
        if generation == self._generation:
            held.next_offset = to
            self._consumer.seek(partition, to)

    def _suspect(self, _: object) -> None:
        self._suspicious = True

    async def _commit_lazily(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY)
            await self._commit()

    async def _commit(self) -> None:
        """Tell Kafka how far we are, for tools that show the lag; the truth is in the database."""
        offsets = {partition: offset for partition, offset in self._stored.items() if partition in self._held}
        self._stored.clear()
        if offsets:
            try:
                await settled(self._consumer.commit(offsets), 2)
            except (errors.KafkaError, TimeoutError):
                self._stored = offsets | self._stored

    async def _watch(self) -> None:
        """End the life if the group gives nothing, or if nothing is heard of all partitions that are being read."""
        while True:
            await asyncio.sleep(1)
            heard = [self._consumer.last_poll_timestamp(p) or 0 for p in self._held if p in self._consumer.assignment()]
            if self._rebalancing:
                silence = time.monotonic() - self._heard
            elif heard and not self._storing:
                silence = min(time.time() - max(heard) / 1000, time.monotonic() - self._heard)
            else:
                continue
            if silence > PATIENCE:
                raise Disconnected(f"group {self.entry.group}: nothing heard for {silence:.0f} seconds")

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, errors.TopicAuthorizationFailedError | errors.GroupAuthorizationFailedError):
            return ConfigError([f"group {self.entry.group} may not read: {reason(error)}"])
        if isinstance(error, errors.KafkaError | TimeoutError | OSError):
            return Disconnected(f"group {self.entry.group}: {reason(error)}")
        return error


def to_message(record: Any, position: Position) -> Message:
    """Return the message that stands for a record. A null value is a tombstone; a header without value is empty."""
    headers = tuple((name, value or b"") for name, value in record.headers)
    kind = next((value for name, value in headers if name.lower() == "content-type"), None)
    return Message(
        topic=record.topic,
        body=record.value or b"",
        key=record.key,
        headers=headers,
        content_type=None if kind is None else kind.decode("utf-8", "replace"),
        position=position,
        timestamp=_time(record.timestamp),
        tombstone=record.value is None,
    )


def _time(milliseconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds >= 0 else None
    except (OverflowError, ValueError, OSError):
        return None
