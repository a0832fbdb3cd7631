"""SignalR: what a hub invokes on its clients is a message in; a message out invokes a hub method, which answers.

An event's body is the JSON list of its arguments, as the hub wrote it. A MessagePack hub's binary arguments become
base64 text in it (which is what .NET makes of byte[] in JSON), its times ISO 8601 text. Outbound, the body is the list
of arguments; a body that is no list is the one argument, one that is no JSON is text, one that is no text is binary:
MessagePack's, or base64 text in JSON. Headers, `traceparent` among them, and the message's id as `message-id` go along
as headers of the invocation. SignalR's protocols have them, but ASP.NET Core shows them to no hub method: for a hub to
recognise a repeated message, its id must stand in the arguments.

SignalR has no acknowledgement, so an event that is on its way when the connection or the gateway ends is lost, unless
the hub helps: with `acknowledge` it is told what is stored, with `resume` it is asked to go on where that ends, and an
event for which it waits (InvokeAsync) is answered, with the job's id, once it is stored.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from yarl import URL

from connectors.signalr.config import SignalrConfig, SignalrEntry
from connectors.signalr.hub import Hub, connected
from connectors.signalr.protocol import Event
from gateway.connector import Connector, Guarantee, Inbox
from gateway.errors import (
    DeliveryError,
    Disconnected,
    ExpressionError,
    NotConnected,
    PayloadError,
    StoreUnavailable,
)
from gateway.expression import Expression, Scope, parse
from gateway.message import Message, Position

STORE_TIME = 2.0
"""Seconds in which what has arrived is still stored when the connection ends."""

_MAX_RESULT = 65_536
_OVERHEAD = 500


class SignalrConnector(Connector[SignalrConfig]):
    """Receives a hub's events, and invokes its methods over the same connection."""

    config_class = SignalrConfig
    guarantee = "at-most-once"
    protocol = "signalr"
    method = "invoke"
    seekable = True

    @classmethod
    def guarantee_of(cls, config: SignalrConfig) -> Guarantee:
        """Return at-least-once if every entry tells or asks the hub what is stored: it sends the rest again."""
        helped = [entry.acknowledge is not None or entry.resume is not None for entry in config.inbound]
        return "at-least-once" if helped and all(helped) else cls.guarantee

    def __init__(self, config: SignalrConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._hub: Hub | None = None

    async def run(self, inbox: Inbox) -> None:
        """Connect, invoke `on_connect`, and store events; those that have arrived are stored before it ends."""
        last = await self._last_positions(inbox)
        async with connected(self.config) as hub:
            intake = Intake(self.config, inbox, hub)
            storing = asyncio.create_task(intake.store(), name=f"signalr {self.name}")
            try:
                with _one_error():
                    async with asyncio.TaskGroup() as group:
                        group.create_task(hub.read(intake.put))
                        group.create_task(hub.keep_alive())
                        group.create_task(_watch(storing))
                        await self._introduce(hub, last)
                        self._hub = hub
                        inbox.ready()
            finally:
                self._hub = None
                await intake.finish(storing)

    async def publish(self, message: Message) -> str | None:
        """Invoke the method `message.topic`; its result is returned once the hub has answered.

        An error in the hub's answer is permanent, no answer is not. An invocation above `max_invocation` is refused.
        """
        hub = self._hub
        if hub is None:
            raise NotConnected(f"{message.topic} was not invoked: the hub is not connected")
        try:
            invocation_id, invocation = hub.invocation(message.topic, _arguments(message), _headers(message))
        except ValueError as error:
            raise DeliveryError(f"{message.topic} was not invoked: {error}", permanent=True) from error
        size, limit = len(invocation), self.config.max_invocation
        if size > limit:
            raise DeliveryError(
                f"{message.topic} was not invoked: {size} bytes > max_invocation {limit}", permanent=True
            )
        try:
            answer = await hub.invoke(invocation_id, invocation)
        except TimeoutError:
            seconds = f"{self.config.timeout:g} seconds"
            raise DeliveryError(f"the hub has not answered {message.topic} in {seconds}") from None
        except Disconnected as error:
            raise type(error)(f"{message.topic}: {error}") from error
        if answer.error is not None:
            raise DeliveryError(
                f"the hub refused {message.topic}: {answer.error}", permanent=True, response=answer.error
            )
        return None if answer.result is None else _as_text(answer.result)[:_MAX_RESULT]

    async def check(self) -> str:
        """Connect and shake hands; nothing is invoked."""
        async with connected(self.config):
            return f"the hub {URL(self.config.url).with_query(None)} answers ({self.config.protocol})"

    async def _last_positions(self, inbox: Inbox) -> dict[str, int | None]:
        """Return, per event to resume, the position of the last one stored, which this life holds from now on."""
        last = {}
        for entry in self.config.inbound:
            if entry.resume is not None:
                try:
                    stored = await inbox.positions(cluster(self.config), entry.event, [0])
                except StoreUnavailable as error:
                    raise Disconnected(f"the stored positions cannot be read: {error}") from error
                last[entry.event] = stored[0].next_offset - 1 if 0 in stored else None
        return last

    async def _introduce(self, hub: Hub, last: dict[str, int | None]) -> None:
        for each in self.config.on_connect:
            await hub.demand(each.method, list(each.arguments))
        for entry in self.config.inbound:
            if entry.resume is not None:
                await hub.demand(entry.resume.method, [last[entry.event]])


@dataclass(frozen=True, slots=True)
class Source:
    """One entry, and what finds an event's id and position."""

    entry: SignalrEntry
    cluster: str
    id: Expression | None
    position: Expression | None

    @classmethod
    def of(cls, entry: SignalrEntry, cluster: str) -> "Source":
        """Compile its expressions."""
        acknowledge, resume = entry.acknowledge, entry.resume
        return cls(
            entry, cluster, parse(acknowledge.id) if acknowledge else None, parse(resume.position) if resume else None
        )

    def message(self, event: Event) -> tuple[Message, Any]:
        """Return the message that an event is, and the id to acknowledge it by, None if it has none."""
        message = Message(
            topic=event.target,
            body=event.body,
            headers=tuple((name, value.encode("utf-8", "replace")) for name, value in event.headers.items()),
            content_type="application/json",
        )
        scope = Scope(message)
        event_id, offset = _value(self.id, scope), _value(self.position, scope)
        if isinstance(offset, int) and not isinstance(offset, bool) and 0 <= offset < 2**63 - 1:
            message = replace(message, position=Position(self.cluster, self.entry.event, 0, offset, offset + 1))
        if event_id is not None:
            message = replace(message, dedupe_id=_as_text(event_id), dedupe_scope=self.entry.event)
        return message, event_id


class Intake:
    """Holds a bounded number of events until they are stored, in order per entry, and says so to the hub."""

    def __init__(self, config: SignalrConfig, inbox: Inbox, hub: Hub) -> None:
        self._config, self._inbox, self._hub = config, inbox, hub
        where = cluster(config)
        self._sources = {entry.event.casefold(): Source.of(entry, where) for entry in config.inbound}
        self._waiting: dict[str, list[Event]] = {}
        self._held = self._bytes = 0
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._finishing = False

    async def put(self, event: Event) -> None:
        """Take an event once there is room for it; one that no entry receives is dropped."""
        name = event.target.casefold()
        if name not in self._sources:
            await self._hub.answer(event, error=f"nobody receives {event.target} here")
            return
        size = _size(event)
        while self._held and (
            self._held >= self._config.max_pending or self._bytes + size > self._config.max_pending_bytes
        ):
            self._room.clear()
            await self._room.wait()
        self._held += 1
        self._bytes += size
        self._waiting.setdefault(name, []).append(event)
        self._arrived.set()

    async def store(self) -> None:
        """Store what comes, all that waits at once, until `finish` is called and nothing waits."""
        while True:
            while not self._waiting:
                if self._finishing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            batch, self._waiting = self._waiting, {}
            with _one_error():
                async with asyncio.TaskGroup() as group:
                    for name, events in batch.items():
                        group.create_task(self._store(self._sources[name], events))

    async def finish(self, storing: asyncio.Task[None]) -> None:
        """Let `storing` come to an end, within a short time."""
        self._finishing = True
        self._arrived.set()
        try:
            await asyncio.wait({storing}, timeout=STORE_TIME)
        finally:
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)

    async def _store(self, source: Source, events: Sequence[Event]) -> None:
        messages, ids = zip(*map(source.message, events), strict=True)
        receipts = await self._inbox.receive(messages, source.entry)
        # Room first: the answer to what the hub is told may stand behind events that wait for it.
        self._held -= len(events)
        self._bytes -= sum(map(_size, events))
        self._room.set()
        with suppress(Disconnected):  # the reader ends the life; what has arrived is stored all the same
            for event, receipt in zip(events, receipts, strict=True):
                await self._hub.answer(event, result=receipt.job_id or None)
            known = [each for each in ids if each is not None]
            if source.entry.acknowledge is not None and known:
                await self._hub.tell(source.entry.acknowledge.method, [known])


def cluster(config: SignalrConfig) -> str:
    """Return what names a hub beside its stored positions: another hub's would make this one leave events out."""
    url = str(URL(config.url).with_query(None).with_fragment(None))
    return url if len(url) <= 100 else hashlib.sha256(url.encode()).hexdigest()


def _value(expression: Expression | None, scope: Scope) -> Any:
    """Return what an expression finds; what it cannot find is stored all the same, hence None."""
    try:
        return None if expression is None else expression.evaluate(scope)
    except ExpressionError:
        return None


def _arguments(message: Message) -> str | list[Any]:
    """Return the arguments that a body stands for: as the JSON text it is, if it is."""
    if message.tombstone:
        return [None]
    try:
        value = message.json()
    except PayloadError:
        try:
            return [message.text()]
        except PayloadError:
            return [message.body]
    try:
        text = message.text().removeprefix("\ufeff")
    except PayloadError:  # json() understands UTF-16 too
        return value if isinstance(value, list) else [value]
    return text if isinstance(value, list) else f"[{text}]"


def _headers(message: Message) -> dict[str, str]:
    headers = {name: value.decode("utf-8", "replace") for name, value in reversed(message.headers)}
    return headers if message.message_id is None else {**headers, "message-id": message.message_id}


def _size(event: Event) -> int:
    return len(event.body) + _OVERHEAD


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def _watch(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


@contextmanager
def _one_error() -> Iterator[None]:
    """Raise one error of a task group: that of the task which failed first."""
    try:
        yield
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
