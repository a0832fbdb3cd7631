"""ActiveMQ, Classic or Artemis, by STOMP 1.2: acknowledged once stored, delivered once confirmed by a receipt."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

from connectors.activemq.config import ActiveMQConfig, ActiveMQEntry
from connectors.activemq.frames import Headers, destination, received, sendable
from connectors.activemq.link import Link
from gateway.connector import Connector, Inbox
from gateway.errors import DeliveryError, Disconnected, NotConnected
from gateway.message import Message

_OVERHEAD = 1024
"""Bytes that a waiting message takes beside its body, roughly, so that very many empty ones count too."""


class ActiveMQConnector(Connector[ActiveMQConfig]):
    """Receives by one connection and sends by another, which a full queue at the broker may block.

    A message whose acknowledgement was lost is delivered again and known by its id: it stays one job for as long as
    the gateway keeps dedupe ids.
    """

    config_class = ActiveMQConfig
    protocol = "activemq"
    method = "send"

    def __init__(self, config: ActiveMQConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._out: Link | None = None

    async def run(self, inbox: Inbox) -> None:
        """Connect, subscribe, and store what comes, in order for each entry."""
        try:
            async with AsyncExitStack() as stack:
                subscriptions = Subscriptions(self.config)
                links = [await stack.enter_async_context(self._connected(subscriptions))]
                if self.config.inbound:
                    address = links[0].address
                    links.append(await stack.enter_async_context(_closing(await Link.open(address, self.config))))
                    await subscriptions.subscribe(links[0])
                self._out = links[-1]
                await _together(inbox, subscriptions, links)
        finally:
            self._out = None

    async def publish(self, message: Message) -> str | None:
        """Send one message, marked as persistent, and wait for its receipt."""
        if not message.topic:
            raise DeliveryError("a message needs a topic: the name of its queue, /queue/… or /topic/…", permanent=True)
        if len(message.body) > self.config.max_message:
            raise DeliveryError(f"it is longer than max_message: {len(message.body)} bytes", permanent=True)
        if self._out is None:
            raise NotConnected("it was not sent: the connector is not connected")
        as_text = {"text": True, "bytes": False}.get(self.config.send_as)
        headers = sendable(message, as_text=as_text)
        await self._out.send(destination(message.topic), message.body, headers, self.config.send_timeout)
        return None

    async def check(self) -> str:
        """Log in, and leave again; without the client id, which the running gateway holds."""
        async with self._connected(None) as link:
            return f"{link.server} answers at {link.address}"

    @asynccontextmanager
    async def _connected(self, subscriptions: "Subscriptions | None") -> AsyncIterator[Link]:
        """Connect to the first broker of the list that lets us in."""
        reasons: list[str] = []
        for address in self.config.addresses:
            try:
                if subscriptions is None or not self.config.inbound:
                    link = await Link.open(address, self.config)
                else:
                    client_id = self.config.client_id
                    link = await Link.open(address, self.config, subscriptions.take, client_id=client_id)
            except Disconnected as error:
                reasons.append(str(error))
                continue
            async with _closing(link):
                yield link
            return
        raise Disconnected("; ".join(reasons))


class Delivery(NamedTuple):
    """A message that waits to be stored, and by what it is acknowledged then."""

    message: Message
    ack: str
    size: int


class Source:
    """What has come for one entry, in order."""

    def __init__(self, entry: ActiveMQEntry) -> None:
        self.entry = entry
        self._arrived: deque[Delivery] = deque()
        self._some = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        """Add one at the end."""
        self._arrived.append(delivery)
        self._some.set()

    async def take(self) -> list[Delivery]:
        """Wait for a message, and take all that are there, up to the prefetch."""
        await self._some.wait()
        taken = [self._arrived.popleft() for _ in range(min(len(self._arrived), self.entry.prefetch))]
        if not self._arrived:
            self._some.clear()
        return taken

    def headers(self) -> Headers:
        """Return what a SUBSCRIBE frame says beside its destination, in the words of both brokers."""
        prefetch = self.entry.prefetch
        headers = {"activemq.prefetchSize": str(prefetch), "consumer-window-size": str(prefetch * 1024)}
        if self.entry.selector is not None:
            headers["selector"] = self.entry.selector
        if self.entry.subscription is not None:
            headers["activemq.subscriptionName"] = headers["durable-subscription-name"] = self.entry.subscription
        return headers


class Subscriptions:
    """The entries' subscriptions on one connection. Nothing more is read while too many bytes wait to be stored."""

    def __init__(self, config: ActiveMQConfig) -> None:
        self._config = config
        self.sources = {str(number): Source(entry) for number, entry in enumerate(config.inbound)}
        self._link: Link | None = None
        self._held = 0

    async def subscribe(self, link: Link) -> None:
        """Subscribe to all, confirmed. Raises `Disconnected`."""
        self._link = link
        for number, source in self.sources.items():
            entry = source.entry
            await link.subscribe(number, entry.destination, entry.ack, source.headers(), self._config.connect_timeout)

    def take(self, headers: Headers, body: bytes) -> None:
        """Keep a message until it is stored. Raises `ValueError` if nobody subscribed to it."""
        source, ack = self.sources.get(headers.get("subscription", "")), headers.get("ack")
        if source is None or ack is None:
            raise ValueError("a message without a subscription of ours, or without an id to acknowledge")
        entry = source.entry
        message = received(headers, body, entry.key_header, entry.scope)
        delivery = Delivery(message, ack, len(body) + _OVERHEAD)
        source.put(delivery)
        self._held += delivery.size
        if self._held > self._config.max_pending_bytes and self._link is not None:
            self._link.pause()

    async def consume(self, source: Source, inbox: Inbox) -> None:
        """Store what comes, and acknowledge it then, for ever."""
        assert self._link is not None
        while True:
            deliveries = await source.take()
            await _store([delivery.message for delivery in deliveries], source.entry, inbox)
            cumulative = source.entry.ack == "client"
            self._link.acknowledge(delivery.ack for delivery in (deliveries[-1:] if cumulative else deliveries))
            self._held -= sum(delivery.size for delivery in deliveries)
            if self._held <= self._config.max_pending_bytes:
                self._link.resume()


async def _store(messages: Sequence[Message], entry: ActiveMQEntry, inbox: Inbox) -> None:
    """Store messages. One that has the id of another message is no redelivery of it, and is stored all the same."""
    receipts = await inbox.receive(messages, entry)
    others = [
        replace(message, dedupe_id=f"{message.dedupe_id}#{hashlib.sha256(message.body).hexdigest()[:32]}")
        for message, receipt in zip(messages, receipts, strict=True)
        if receipt.conflict
    ]
    if others:
        await inbox.receive(others, entry)


async def _together(inbox: Inbox, subscriptions: Subscriptions, links: Sequence[Link]) -> None:
    """Consume every entry until a connection is lost or the life is cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            for link in links:
                group.create_task(link.watch())
            for source in subscriptions.sources.values():
                group.create_task(subscriptions.consume(source, inbox))
            inbox.ready()
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


@asynccontextmanager
async def _closing(link: Link) -> AsyncIterator[Link]:
    try:
        yield link
    finally:
        await link.close()
