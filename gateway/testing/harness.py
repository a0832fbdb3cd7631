"""What tests of connectors work with: an inbox that records, a harness around a broker, waiting for what must come."""

import asyncio
import gc
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

import pytest

from gateway.connector import Connector, InboundEntry, Inbox, Receipt, StoredPosition
from gateway.message import Message

T = TypeVar("T")

DEADLINE = 15.0
"""Seconds after which something that must happen has not."""


async def until(condition: Callable[[], object], seconds: float | None = None) -> None:
    """Wait until a condition holds. Raises `TimeoutError` if it does not in `seconds`, else in `DEADLINE`."""
    async with asyncio.timeout(DEADLINE if seconds is None else seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def within(work: Awaitable[T]) -> T:
    """Await something that ends within `DEADLINE`. Raises `TimeoutError` if it does not."""
    async with asyncio.timeout(DEADLINE):
        return await work


async def stays(condition: Callable[[], Awaitable[bool]], seconds: float = 0.1) -> bool:
    """Say whether a condition holds for that long: the only way to see that something does not happen."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        if not await condition():
            return False
        await asyncio.sleep(0.01)
    return True


class Recorder(Inbox):
    """Plays the gateway: stores in memory, while `gate` is set; waits, as if the database were away, while not.

    While `error` is set, `receive` raises it and stores nothing. Knows duplicates by dedupe scope and id.
    """

    def __init__(self, *, on_ready: Callable[[], None] = lambda: None) -> None:
        self.stored: list[Message] = []
        self.offered: list[Message] = []
        self.readies = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self._on_ready = on_ready
        self._known: dict[tuple[str, str], tuple[str, bytes]] = {}

    def ready(self) -> None:
        """Count it."""
        self.readies += 1
        self._on_ready()

    async def receive(self, messages: Sequence[Message], entry: InboundEntry) -> Sequence[Receipt]:
        """Store, once the gate is open."""
        assert entry.handler
        self.offered.extend(messages)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [self._store(message) for message in messages]

    async def positions(self, cluster: str, topic: str, partitions: Iterable[int]) -> Mapping[int, StoredPosition]:
        """Return what the stored messages say."""
        found = [m.position for m in self.stored if m.position is not None]
        return {
            p.partition: StoredPosition(p.topic_id, p.next_offset, p.state)
            for p in sorted(found, key=lambda p: p.offset)
            if (p.cluster, p.topic) == (cluster, topic) and p.partition in set(partitions)
        }

    def _store(self, message: Message) -> Receipt:
        known = (message.dedupe_scope, message.dedupe_id) if message.dedupe_id is not None else None
        if known in self._known:
            job, body = self._known[known]
            return Receipt(job, duplicate=True, conflict=body != message.body)
        self.stored.append(message)
        job = f"job-{len(self.stored)}"
        if known is not None:
            self._known[known] = (job, message.body)
        return Receipt(job)


class Harness(ABC):
    """What the suite needs to know of a broker: the stranger's and the broker's own side."""

    minimal: ClassVar[Mapping[str, Any]]
    """The smallest configuration that loads, as it stands in YAML."""
    topic: str = "conformance"
    """Where messages are sent to and published."""

    @abstractmethod
    def connector(self, instance: int = 0) -> Connector[Any]:
        """Make the connector of that instance, afresh; instances share the broker and consume `topic` together."""

    @abstractmethod
    async def send(self, message: Message, instance: int = 0) -> None:
        """Bring a message to the broker as a stranger would, for that instance where there is no broker between.

        May return only once it is acknowledged. A sender that is the source itself (HTTP) repeats until it is.
        """

    @abstractmethod
    async def acknowledged(self) -> int:
        """Return how many messages the broker regards as done."""

    @abstractmethod
    async def delivered(self) -> Sequence[Message]:
        """Return what the broker was given by `publish`, with the `message_id` as its receivers would find it."""

    @abstractmethod
    async def stop_broker(self) -> None:
        """Stop the broker, keeping what it has stored."""

    @abstractmethod
    async def start_broker(self) -> None:
        """Start it again, at the same address."""

    def refusable(self) -> Message | None:
        """Return a message that the broker refuses, if there is such a thing."""
        return None


@asynccontextmanager
async def running(connector: Connector[Any], inbox: Recorder | None = None) -> AsyncIterator[Recorder]:
    """Run one life of a connector, ready, while the block runs. An error of the life is raised at the end."""
    inbox = inbox or Recorder()
    before = inbox.readies
    life = asyncio.create_task(connector.run(inbox))
    try:
        await until(lambda: inbox.readies > before or life.done())
        yield inbox
        assert not life.done(), "the life ended by itself"
    finally:
        if not life.done():
            await cancel(life)
        elif life.exception() is not None:
            life.result()


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail if the block leaves a task, a thread or a socket behind."""

    def there() -> tuple[int, int, int]:
        gc.collect()
        return len(asyncio.all_tasks()), threading.active_count(), _sockets()

    before = there()
    yield
    try:
        await until(lambda: all(now <= then for now, then in zip(there(), before, strict=True)), min(5, DEADLINE))
    except TimeoutError:
        left = [str(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        pytest.fail(f"left behind: (tasks, threads, sockets) was {before}, is {there()}; tasks: {left}")


def _sockets() -> int:
    return sum(map(_is_socket, os.listdir("/proc/self/fd"))) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208 - strings of numbers


def _is_socket(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")  # noqa: PTH115 - no path of a file
    except OSError:
        return False  # closed meanwhile, as the one that listed them


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended, however it does."""
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=DEADLINE)
    assert done, "it did not end within its deadline after being cancelled"
    if not task.cancelled():
        task.exception()  # seen; whoever cares for it looks at the task
