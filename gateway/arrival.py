"""What arrives, on its way to the inbox's commit: how a message becomes a row, and which positions move with it.

Values and pure functions; the inbox decides when they are stored.
"""

import asyncio  # noqa: TC003 - dataclasses resolve their fields' types at run time
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from gateway.connector import InboundEntry, Receipt, StoredPosition
from gateway.effects import ordering_key
from gateway.errors import PositionLost
from gateway.job import Direction, JobStatus, NewJob
from gateway.message import Message
from gateway.outcome import describe
from gateway.rules import NO_RULING, Ruling
from gateway.store import Arrival, Dedupe, PositionMove

Held: TypeAlias = dict[tuple[str, str, int], StoredPosition | None]
"""The positions one life of a connector holds, by cluster, topic and partition; None was never stored."""


@dataclass(slots=True)
class Conservation:
    """What became of a connector's messages.

    At every moment received = stored + duplicate + filtered + dead_lettered + rejected + in_flight. `rejected` were
    given back unacknowledged: cancelled while they waited, or their position was lost.
    """

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    filtered: int = 0
    dead_lettered: int = 0
    rejected: int = 0
    in_flight: int = 0

    @property
    def residue(self) -> int:
        """Messages nobody can account for: always 0."""
        settled = self.stored + self.duplicate + self.filtered + self.dead_lettered + self.rejected
        return self.received - settled - self.in_flight

    def settle(self, item: "Item") -> None:
        """Count what became of an item that is durable now."""
        item.settled = True
        self.in_flight -= 1
        if item.receipt is not None and item.receipt.filtered:
            self.filtered += 1
        elif item.receipt is not None and item.receipt.duplicate:
            self.duplicate += 1
        elif item.job.status is JobStatus.FAILED:
            self.dead_lettered += 1
        else:
            self.stored += 1

    def reject(self, items: Iterable["Item"]) -> None:
        """Count items that were given back to their source."""
        for item in items:
            if not item.settled:
                item.settled = True
                self.in_flight -= 1
                self.rejected += 1


class Incoming(NamedTuple):
    """A message with the job it becomes. Unless it is `wanted`, only the position behind it is stored."""

    message: Message
    job: NewJob
    dedupe: Dedupe | None = None
    wanted: bool = True


@dataclass(slots=True, eq=False)
class Item:
    """One message on its way. `settled`: it is counted and needs nothing more."""

    incoming: Incoming
    job: NewJob
    call: "Call"
    receipt: Receipt | None = None
    settled: bool = False

    @property
    def message(self) -> Message:
        """The message itself."""
        return self.incoming.message

    @property
    def arrival(self) -> Arrival:
        """What the store is given."""
        return Arrival(job=self.job, dedupe=self.incoming.dedupe)


@dataclass(slots=True, eq=False)
class Call:
    """Messages of one `receive` that are stored in one flush, and whom to tell."""

    held: Held
    future: "asyncio.Future[Sequence[Receipt]]"
    items: list[Item] = field(default_factory=list)
    size: int = 0
    """Bytes it holds, roughly."""

    def add(self, incoming: Incoming) -> None:
        """Put one more message at its end."""
        self.items.append(Item(incoming, incoming.job, self))
        self.size += size_of(incoming.message)

    def complete(self) -> None:
        """Tell the caller that all is durable; nothing happens if it was told otherwise, or went away."""
        if not self.future.done():
            self.future.set_result([item.receipt for item in self.items if item.receipt is not None])

    def fail(self, error: Exception) -> None:
        """Tell the caller that it must not acknowledge."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one commit stores: `items` in order, the moves of their positions, and what is held after it."""

    items: list[Item]
    moves: list[PositionMove]
    advanced: list[tuple[Held, tuple[str, str, int], StoredPosition]]

    def keep(self) -> None:
        """Hold the new positions; called once they are committed."""
        for held, key, position in self.advanced:
            held[key] = position


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the jobs of a connector have in common."""

    connector: str
    protocol: str
    method: str | None = None
    max_retries: Callable[[str], int] = lambda _: 3
    """Attempts after the first for the jobs of a handler, where the entry does not say."""


def size_of(message: Message) -> int:
    """Return about how many bytes a message holds."""
    return len(message.body) + sum(len(value) for _, value in message.headers) + 512


def admit(message: Message, entry: InboundEntry, defaults: Defaults) -> Incoming:
    """Return what a message becomes by its entry's rules. Never raises, whatever the message is."""
    if entry.rules is None:
        return Incoming(message, to_job(message, entry, defaults), _dedupe(message))
    ruling = entry.rules.judge(message)
    dedupe = _dedupe(message)
    if ruling.dedupe is not None:
        message = replace(message, dedupe_id=ruling.dedupe)
        # The expression says what is the same message, so that another body is no conflict.
        dedupe = Dedupe(scope=f"\x1f{entry.source}", key=ruling.dedupe, body_hash=bytes(16))
    return Incoming(message, to_job(message, entry, defaults, ruling), dedupe, ruling.wanted)


def to_job(message: Message, entry: InboundEntry, defaults: Defaults, ruling: Ruling = NO_RULING) -> NewJob:
    """Return the job that stands for a message. Its body is the payload, all else is metadata."""
    metadata = {**entry.metadata, **message.to_metadata(), "connector": defaults.connector}
    if entry.to is not None:
        metadata["to"] = entry.to.model_dump(exclude_none=True)
    key, priority = ruling.ordering, ruling.priority
    return NewJob(
        handler=entry.handler,
        payload=None if message.tombstone else message.body,
        metadata=metadata,
        direction=Direction.INBOUND,
        protocol=defaults.protocol,
        method=defaults.method,
        priority=priority if priority is not None else entry.priority if isinstance(entry.priority, int) else 0,
        max_retries=defaults.max_retries(entry.handler) if entry.max_retries is None else entry.max_retries,
        created_by="integration",
        # No name of a connector or handler has a space: other keys never fall together with these.
        ordering_key=None if key is None else ordering_key(f"in {defaults.connector} {entry.source}", key),
        status=JobStatus.PENDING if ruling.error is None else JobStatus.FAILED,
        error=ruling.error,
    )


def last_resorts(item: Item, error: Exception) -> Iterator[NewJob]:
    """Yield Failed jobs for a message the database refuses, each with less of it than the one before."""
    failed = replace(item.job, status=JobStatus.FAILED, error=describe(error))
    yield failed
    bare = {"connector": item.job.metadata["connector"], "topic": ascii(item.message.topic)[1:-1]}
    yield replace(failed, metadata=bare)
    size = len(item.message.body)
    reason = f"the message ({size} bytes) could not be stored: {describe(error)}".encode("ascii", "replace").decode()
    yield replace(failed, metadata=bare, payload=None, error=reason)


def plan(connector: str, items: Sequence[Item]) -> Plan:
    """Return what to commit. An item that stands before its held position is there already and settled as a duplicate.

    In a log of another identity, one that was deleted and made again, the held offset says nothing.

    Of one that is not wanted only the position is stored. Raises `PositionLost` if the position of one is not held any
    more.
    """
    kept: list[Item] = []
    ahead: dict[tuple[int, str, str, int], tuple[Held, StoredPosition]] = {}
    for item in items:
        position = item.message.position
        if position is not None:
            held, key = item.call.held, (position.cluster, position.topic, position.partition)
            if key not in held:
                raise PositionLost(f"the position of {position.topic}[{position.partition}] is not held")
            at = ahead[id(held), *key][1] if (id(held), *key) in ahead else held[key]
            if at is not None and at.topic_id == position.topic_id and position.offset < at.next_offset:
                item.receipt = Receipt("", duplicate=True)
                continue
            ahead[id(held), *key] = held, StoredPosition(position.topic_id, position.next_offset, position.state)
        if item.incoming.wanted:
            kept.append(item)
        else:
            item.receipt = Receipt("", filtered=True)
    advanced = [(held, key[1:], position) for key, (held, position) in ahead.items()]
    return Plan(kept, [_move(connector, held.get(key), key, to) for held, key, to in advanced], advanced)


def _move(connector: str, held: StoredPosition | None, key: tuple[str, str, int], to: StoredPosition) -> PositionMove:
    cluster, topic, partition = key
    return PositionMove(
        connector=connector,
        cluster=cluster,
        topic=topic,
        partition=partition,
        topic_id=to.topic_id,
        held=None if held is None else held.next_offset,
        next_offset=to.next_offset,
        state=to.state,
    )


def _dedupe(message: Message) -> Dedupe | None:
    if message.dedupe_id is None:
        return None
    body_hash = hashlib.blake2b(message.body, digest_size=16).digest()
    return Dedupe(scope=message.dedupe_scope, key=message.dedupe_id, body_hash=body_hash)
