"""One STOMP connection on the event loop: opened, watched and closed within deadlines.

stomp.py makes and reads the frames; its sockets and threads are not used. They reorder the list of brokers, wait for
ever for a full socket or a missing CONNECTED, and end when a callback takes long.
"""

import asyncio
import os
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any, Self, TypeAlias

from connectors.activemq.config import ActiveMQConfig, Address
from connectors.activemq.frames import Headers, Splitter, acknowledgements
from gateway.errors import DeliveryError, Disconnected, GatewayError, NotConnected

os.environ.setdefault("STOMP_SKIP_HOSTNAME_SCAN", "1")  # or its import looks this machine's name up, three times

from stomp.protocol import Protocol12
from stomp.utils import Frame, calculate_heartbeats, convert_frame, parse_frame

OnMessage: TypeAlias = Callable[[Headers, bytes], None]

FAREWELL = 1.0
"""Seconds for the broker to confirm that it is left."""
SILENCE = 2.5
"""A broker silent that many heart-beats long is gone."""


class Link(asyncio.Protocol):
    """A connection that is logged in. `on_message` is called with the headers and the body of each MESSAGE."""

    def __init__(self, address: Address, host: str, heartbeat: float, on_message: OnMessage) -> None:
        self.address = address
        self.server = "a broker"
        self._heartbeat = heartbeat
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._commands: Any = Protocol12(_Outlet(self._write, host), heartbeats=(0, 0), auto_content_length=False)
        self._splitter = Splitter()
        self._numbers = count(1)
        self._outgoing: list[bytes] = []
        self._receipts: dict[str, asyncio.Future[GatewayError | None]] = {}
        self._greeting: asyncio.Future[Headers | None] = self._loop.create_future()
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._closed, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None
        self._heard = self._loop.time()
        self._paused = self._probing = False

    @classmethod
    async def open(
        cls,
        address: Address,
        config: ActiveMQConfig,
        on_message: OnMessage = lambda *_: None,
        *,
        client_id: str | None = None,
    ) -> Self:
        """Connect and log in. Raises `Disconnected`, in time; then, and when cancelled, nothing is left."""
        context = config.context() if address.secure else None
        link = cls(address, config.virtual_host or address.host, config.heartbeat, on_message)
        try:
            async with asyncio.timeout(config.connect_timeout):
                await link._connect(context, config)
                await link._log_in(config, client_id)
        except TimeoutError:
            reason = f"{address} did not answer within {config.connect_timeout:g} seconds"
            raise Disconnected(reason) from None
        except OSError as error:
            raise Disconnected(f"{address} cannot be reached: {error.strerror or error}") from error
        finally:
            if not link._greeting.done() or link._greeting.cancelled():
                link._lose("it was given up")
        return link

    async def _connect(self, context: ssl.SSLContext | None, config: ActiveMQConfig) -> None:
        name = None if context is None else (config.tls and config.tls.server_name) or self.address.host
        await self._loop.create_connection(
            lambda: self, self.address.host, self.address.port, ssl=context, server_hostname=name
        )

    async def _log_in(self, config: ActiveMQConfig, client_id: str | None) -> None:
        wanted = int(config.heartbeat * 1000)
        offered = (2 * wanted, wanted)  # beats go out four times as often as is promised: the loop may stall
        headers = {
            "heart-beat": f"{offered[0]},{offered[1]}",
            **({} if client_id is None else {"client-id": client_id}),
        }
        password = None if config.password is None else config.password.get_secret_value()
        self._commands.connect(config.username, password, headers=headers)
        greeting = await self._greeting
        if greeting is None:
            raise Disconnected(self._lost.result())
        if greeting.get("version") != "1.2":
            self._lose("it speaks another version")
            raise Disconnected(f"{self.address} does not speak STOMP 1.2")
        self.server = greeting.get("server", self.server)
        agreed = calculate_heartbeats(greeting.get("heart-beat", "0,0").replace(" ", "").split(","), offered)
        self._probing = agreed[1] != wanted

    async def subscribe(self, number: str, destination: str, ack: str, headers: Headers, seconds: float) -> None:
        """Subscribe, and wait until the broker has. Raises `Disconnected` if it does not."""
        try:
            await self._confirmed(
                lambda receipt: self._commands.subscribe(destination, number, ack, {**headers, "receipt": receipt}),
                seconds,
            )
        except DeliveryError as error:
            raise Disconnected(f"{destination}: {error}") from error

    async def send(self, destination: str, body: bytes, headers: Headers, seconds: float) -> None:
        """Send a message, and wait until the broker has it. Raises `DeliveryError` if it refuses or is too slow."""
        await self._confirmed(
            lambda receipt: self._commands.send(destination, body, headers={**headers, "receipt": receipt}), seconds
        )

    def acknowledge(self, ids: Iterable[str]) -> None:
        """Tell the broker that these messages are done."""
        self._write(acknowledgements(ids))

    async def watch(self) -> None:
        """Keep the connection alive until it is lost: raises `Disconnected` then, also if the broker falls silent."""
        while not self._lost.done():
            await asyncio.wait({self._lost}, timeout=self._heartbeat / 2)
            self._beat()
        raise Disconnected(self._lost.result())

    def pause(self) -> None:
        """Read nothing more: the broker waits. Until `resume` its silence means nothing."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and self._paused:
            self._paused, self._heard = False, self._loop.time()
            self._transport.resume_reading()

    async def close(self) -> None:
        """Leave in order, so that all acknowledgements count; end the connection within a second at any rate."""
        self._on_message = lambda *_: None
        try:
            if not self._lost.done():
                self.resume()
                with suppress(DeliveryError, Disconnected):
                    await self._confirmed(
                        lambda receipt: self._commands.send_frame("DISCONNECT", {"receipt": receipt}), FAREWELL
                    )
        finally:
            self._lose("the connection was closed")
            await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._lost.done():
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Handle all frames that are whole by now."""
        self._heard = self._loop.time()
        try:
            for frame in self._splitter.feed(data):
                if not self._lost.done():
                    self._take(parse_frame(frame))
        except ValueError as error:
            self._lose(f"{self.address} sent what is no STOMP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        why = "" if error is None else f": {getattr(error, 'strerror', None) or error}"
        self._lose(f"{self.address} closed the connection{why}")
        self._closed.set()

    def pause_writing(self) -> None:
        """Hold messages back: the broker takes no more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Send on."""
        self._writable.set()

    def _take(self, frame: Frame) -> None:
        match frame.cmd:
            case "MESSAGE":
                self._on_message(frame.headers, frame.body)
            case "RECEIPT":
                self._settle(frame.headers.get("receipt-id"), None)
            case "CONNECTED":
                if not self._greeting.done():
                    self._greeting.set_result(frame.headers)
            case "ERROR":
                text = frame.headers.get("message") or frame.body.decode(errors="replace").partition("\n")[0]
                reason = f"{self.address} answers: {text.strip()[:500] or 'an error without a reason'}"
                if not self._settle(frame.headers.get("receipt-id"), DeliveryError(reason, response=text[:500])):
                    self._lose(reason)
            case other:
                raise ValueError(f"{other[:20]!r} is no frame of a broker")

    def _settle(self, receipt: str | None, error: GatewayError | None) -> bool:
        """Say whether somebody waited for that receipt."""
        waiting = None if receipt is None else self._receipts.pop(receipt, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(error)
        return waiting is not None

    async def _confirmed(self, write: Callable[[str], None], seconds: float) -> None:
        receipt = f"{next(self._numbers)}"
        answer: asyncio.Future[GatewayError | None] = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._writable.wait()
                if self._lost.done():
                    raise NotConnected(self._lost.result())
                self._receipts[receipt] = answer
                write(receipt)
                error = await answer
        except TimeoutError:
            raise DeliveryError(f"{self.address} did not confirm it within {seconds:g} seconds") from None
        finally:
            self._receipts.pop(receipt, None)
        if error is not None:
            raise error

    def _beat(self) -> None:
        if self._probing:
            # It promised no heart-beats, or rare ones: an empty transaction makes it answer.
            name = f"probe-{next(self._numbers)}"
            self._commands.begin(name)
            self._commands.abort(name, {"receipt": name})
        else:
            self._write(b"\n")
        silent = self._loop.time() - self._heard
        if silent > SILENCE * self._heartbeat and not self._paused:
            self._lose(f"{self.address} gave no sign of life for {silent:.1f} seconds")

    def _write(self, data: bytes) -> None:
        """Send with all else of this turn of the loop, in one piece."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)

    def _flush(self) -> None:
        if self._transport is not None and not self._lost.done():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _lose(self, reason: str) -> None:
        """End the connection at once, and tell everybody who waits for it. Only the first reason counts."""
        if not self._lost.done():
            self._lost.set_result(reason)
            for receipt in list(self._receipts):
                self._settle(receipt, Disconnected(reason))
            self._writable.set()
        if not self._greeting.done():
            self._greeting.set_result(None)
        if self._transport is not None:
            self._transport.abort()


class _Outlet:
    """What stomp.py takes for its transport: its heart-beats and its log, which shows passwords, stay away."""

    def __init__(self, write: Callable[[bytes], None], host: str) -> None:
        self._write = write
        self.vhost = host
        self.current_host_and_port = (host, 0)

    def set_listener(self, name: str, listener: object) -> None:
        """Ignore: the link listens itself."""

    def transmit(self, frame: Frame) -> None:
        """Write a frame."""
        self._write(b"".join(convert_frame(frame)))
