"""A broker inside this process, for tests and demos: it redelivers what was not acknowledged, like a real one."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import ClassVar, Literal, NoReturn

from pydantic import Field

from gateway.connector import Connector, ConnectorConfig, InboundEntry, Inbox
from gateway.errors import DeliveryError, Disconnected, NotConnected
from gateway.message import Message

PREFETCH = 100
"""Messages that one consumer may hold unacknowledged."""


class MemoryEntry(InboundEntry):
    """One queue to receive from."""

    topic: str = Field(description="queue to receive from; each of its messages goes to one consumer")


class MemoryConfig(ConnectorConfig):
    """A connection to a broker inside this process."""

    type: Literal["memory"] = "memory"
    broker: str = Field(default="memory", description="name of the broker; equal names share one")
    inbound: Sequence[MemoryEntry] = Field(default=(), description="queues to receive from")


class MemoryBroker:
    """Queues by topic, first in first out. What its consumer did not acknowledge goes to the next one, in its place."""

    _named: ClassVar[dict[str, "MemoryBroker"]] = {}

    def __init__(self) -> None:
        self.acknowledged: list[Message] = []
        self.published: list[Message] = []
        self.refused: set[str] = set()
        """Topics that this broker does not take messages for."""
        self.up = True
        """Whether it takes part at all."""
        self._queues: dict[str, list[tuple[int, Message]]] = {}
        self._order = count()
        self._waiting: set[asyncio.Future[None]] = set()

    @classmethod
    def named(cls, name: str) -> "MemoryBroker":
        """Return the broker of that name, a new one at the first call."""
        return cls._named.setdefault(name, cls())

    def start(self) -> None:
        """Take connections again; the queues are as they were."""
        self.up = True

    def stop(self) -> None:
        """Drop every connection and refuse new ones."""
        self.up = False
        self._wake()

    def put(self, message: Message) -> None:
        """Queue a message, whoever consumes it, now or later."""
        self._queues.setdefault(message.topic, []).append((next(self._order), message))
        self._wake()

    async def take(self, topic: str) -> list[tuple[int, Message]]:
        """Wait for messages of a topic and hand them out. Raises `Disconnected` once the broker is down."""
        while self.up and not self._queues.get(topic):
            await self._change()
        self.require()
        queue = self._queues[topic]
        taken, self._queues[topic] = queue[:PREFETCH], queue[PREFETCH:]
        return taken

    def give_back(self, topic: str, held: Sequence[tuple[int, Message]]) -> None:
        """Queue again what was handed out and not acknowledged, each in its old place."""
        if held:
            self._queues[topic] = sorted([*held, *self._queues[topic]], key=lambda each: each[0])
            self._wake()

    async def watch(self) -> NoReturn:
        """Wait until the broker goes down. Raises `Disconnected` then."""
        while True:
            self.require()
            await self._change()

    def require(self) -> None:
        """Raise `Disconnected` if the broker is down."""
        if not self.up:
            raise Disconnected("the broker in memory is stopped")

    async def _change(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


class MemoryConnector(Connector[MemoryConfig]):
    """Consumes queues of a `MemoryBroker`. A message is lost only with the process, hence the guarantee."""

    config_class = MemoryConfig
    guarantee = "at-most-once"
    protocol = "memory"
    method = "publish"

    def __init__(self, config: MemoryConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._broker = MemoryBroker.named(config.broker)
        self._running = False

    async def run(self, inbox: Inbox) -> None:
        """Consume every queue at once, each in order."""
        self._broker.require()
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                for entry in self.config.inbound:
                    group.create_task(self._consume(entry, inbox))
                group.create_task(self._broker.watch())
                inbox.ready()
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            self._running = False

    async def publish(self, message: Message) -> str | None:
        """Queue a message at the broker."""
        if not self._running or not self._broker.up:
            raise NotConnected("the broker in memory is not connected")
        if message.topic in self._broker.refused:
            raise DeliveryError(f"the broker in memory refuses {message.topic!r}", permanent=True)
        headers = (*message.headers, ("message-id", (message.message_id or "").encode()))
        sent = replace(message, headers=headers, dedupe_id=message.message_id)
        self._broker.published.append(sent)
        self._broker.put(sent)
        return None

    async def check(self) -> str:
        """Say whether the broker is up."""
        self._broker.require()
        return f"the broker {self.config.broker!r} in memory is up"

    async def _consume(self, entry: MemoryEntry, inbox: Inbox) -> None:
        while True:
            held = await self._broker.take(entry.topic)
            try:
                await inbox.receive([message for _, message in held], entry)
                if self._broker.up:
                    self._broker.acknowledged.extend(message for _, message in held)
                    held = []
            finally:
                self._broker.give_back(entry.topic, held)
