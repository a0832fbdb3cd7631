"""One connection to a SignalR hub: signalrcore's protocols on aiohttp's WebSocket.

signalrcore's own connection stays out of it: it gives no connection up by itself, loses its socket, waits without a
deadline and masks in Python. Here there is no thread, and a reader that does not read is back-pressure down to TCP.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from yarl import URL

from connectors.signalr.config import SignalrConfig, SignalrTls
from connectors.signalr.protocol import Answer, Event, Farewell, Frame, Incoming, Json, MessagePack, Protocol
from gateway.errors import ConfigError, Disconnected, NotConnected

MAX_UNANSWERED = 1000
"""Invocations that nobody waits for, and that the hub has not answered yet."""

_GOODBYE = 1.0
_MAX_REDIRECTS = 5


class Hub:
    """A connection whose handshake is done. Raises `Disconnected` wherever it is lost; afterwards it stays lost."""

    def __init__(self, stream: aiohttp.ClientWebSocketResponse, protocol: Protocol, config: SignalrConfig) -> None:
        self._stream, self._protocol, self._config = stream, protocol, config
        self._ids = count(1)
        self._pending: dict[str, asyncio.Future[Answer | None]] = {}
        self._unanswered: dict[str, str] = {}
        self._heard = asyncio.get_running_loop().time()
        self._early: list[Incoming] = []
        self._handing_over = False

    async def shake_hands(self) -> None:
        """Agree on the protocol. Raises `Disconnected` if the hub does not know it."""
        await self._send(self._protocol.handshake())
        frame = await self._frame()
        try:
            answer, early = self._protocol.decode_handshake(frame)
        except (ValueError, LookupError, AttributeError) as error:
            raise Disconnected("what answers is no SignalR hub: its handshake cannot be read") from error
        if answer.error:
            raise Disconnected(f"the hub refused the handshake: {answer.error}")
        self._early = early

    async def read(self, take: Callable[[Event], Awaitable[None]]) -> NoReturn:
        """Give every event to `take`, in order, and invocations their answers, until the connection is lost.

        While `take` waits nothing is read, and the hub not blamed for being silent.
        """
        for message in self._early:
            await self._handle(message, take)
        while True:
            frame = await self._frame()
            try:
                for message in self._protocol.read(frame):
                    await self._handle(message, take)
            except ValueError as error:
                raise Disconnected(f"the hub sent what cannot be read: {error}") from error

    async def keep_alive(self) -> NoReturn:
        """Send signs of life. Raises `Disconnected` once the hub has given none for too long."""
        now = asyncio.get_running_loop().time
        next_ping = now() + self._config.ping_interval
        while True:
            patience = self._config.server_timeout
            lost_at = (now() if self._handing_over else self._heard) + patience
            if now() >= lost_at:
                raise Disconnected(f"the hub has been silent for {patience:g} seconds")
            await asyncio.sleep(min(next_ping, lost_at) - now())
            if now() >= next_ping:
                next_ping = now() + self._config.ping_interval
                try:
                    async with asyncio.timeout(patience):
                        await self._send(self._protocol.ping())
                except TimeoutError:
                    raise Disconnected(f"the hub has read nothing for {patience:g} seconds") from None

    async def invoke(self, invocation_id: str, invocation: Frame) -> Answer:
        """Send an invocation and wait for its answer. Raises `TimeoutError` if there is none in time."""
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._pending[invocation_id] = answer
        try:
            async with asyncio.timeout(self._config.timeout):
                await self._send(invocation)
                found = await answer
        finally:
            del self._pending[invocation_id]
        if found is None:
            raise Disconnected("the connection was lost before the hub answered")
        return found

    async def demand(self, method: str, arguments: list[Any]) -> None:
        """Invoke a method without which the connection is of no use. Raises `Disconnected` if that fails."""
        invocation_id, invocation = self.invocation(method, arguments)
        try:
            answer = await self.invoke(invocation_id, invocation)
        except TimeoutError:
            raise Disconnected(f"the hub has not answered {method} in {self._config.timeout:g} seconds") from None
        if answer.error is not None:
            raise Disconnected(f"the hub refused {method}: {answer.error}")

    async def tell(self, method: str, arguments: list[Any]) -> None:
        """Invoke a method; an error ends `read`. Not awaited: its answer may stand behind events that have no room."""
        if len(self._unanswered) >= MAX_UNANSWERED:
            raise Disconnected(f"the hub leaves {method} unanswered")
        invocation_id, invocation = self.invocation(method, arguments)
        self._unanswered[invocation_id] = method
        await self._send(invocation)

    def invocation(
        self, method: str, arguments: str | list[Any], headers: dict[str, str] | None = None
    ) -> tuple[str, Frame]:
        """Return an invocation and its id. Raises `ValueError` if the protocol cannot carry the arguments."""
        invocation_id = str(next(self._ids))
        return invocation_id, self._protocol.invocation(invocation_id, method, arguments, headers or {})

    async def answer(self, event: Event, *, result: str | None = None, error: str | None = None) -> None:
        """Answer an event if the hub waits for it."""
        if event.invocation_id is not None:
            await self._send(self._protocol.completion(event.invocation_id, result=result, error=error))

    async def close(self) -> None:
        """End the connection, politely if the hub takes part in that at once. Whoever waits for an answer is told."""
        for answer in self._pending.values():
            if not answer.done():
                answer.set_result(None)
        raw: socket.socket | None = self._stream.get_extra_info("socket")
        try:
            async with asyncio.timeout(_GOODBYE):
                await self._stream.close()
        except TimeoutError:
            return
        finally:
            if raw is not None:  # what a frozen hub has not read would keep the socket open
                with suppress(OSError):
                    raw.shutdown(socket.SHUT_RDWR)

    async def _handle(self, message: Event | Answer | Farewell, take: Callable[[Event], Awaitable[None]]) -> None:
        if isinstance(message, Event):
            self._handing_over = True
            await take(message)
            self._handing_over = False
            self._heard = asyncio.get_running_loop().time()
        elif isinstance(message, Farewell):
            raise Disconnected(f"the hub closed the connection: {message.error or 'without a reason'}")
        elif (answer := self._pending.get(message.invocation_id)) is not None:
            if not answer.done():
                answer.set_result(message)
        elif (method := self._unanswered.pop(message.invocation_id, None)) is not None and message.error is not None:
            raise Disconnected(f"the hub refused {method}: {message.error}")

    async def _frame(self) -> Frame:
        message = await self._stream.receive()
        self._heard = asyncio.get_running_loop().time()
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            frame: Frame = message.data
            return frame
        if message.type is aiohttp.WSMsgType.ERROR:
            if getattr(message.data, "code", None) == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
                raise Disconnected(f"the hub sent more than {self._config.max_body} bytes at once (max_body)")
            raise Disconnected(f"the connection broke: {message.data}")
        raise Disconnected(
            "the hub is gone" if message.data is None else f"the hub closed the connection: {message.data}"
        )

    async def _send(self, frame: Frame) -> None:
        if self._stream.closed:
            raise NotConnected("the connection to the hub is closed")
        try:
            if isinstance(frame, str):
                await self._stream.send_str(frame)
            else:
                await self._stream.send_bytes(frame)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Disconnected(f"the connection to the hub broke: {error}") from error


@asynccontextmanager
async def connected(config: SignalrConfig) -> AsyncIterator[Hub]:
    """Give a connection to the hub, and close it. Raises `Disconnected`, or `ConfigError` for a file it needs."""
    protocol = Json(version=1) if config.protocol == "json" else MessagePack(version=1)
    tls, token = client_tls(config.tls), read_token(config)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(config.connect_timeout):
                session = await stack.enter_async_context(
                    aiohttp.ClientSession(
                        connector=aiohttp.TCPConnector(ssl=tls),
                        timeout=aiohttp.ClientTimeout(total=None),
                        cookie_jar=aiohttp.DummyCookieJar(),
                    )
                )
                url, headers = await _negotiated(session, config, token)
                hub = Hub(await _open(session, config, url, headers), protocol, config)
                stack.push_async_callback(hub.close)
                await hub.shake_hands()
        except TimeoutError:
            raise Disconnected(f"the hub did not answer within {config.connect_timeout:g} seconds") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Disconnected(f"{_origin(config.url)} cannot be reached: {_reason(error)}") from error
        yield hub


def read_token(config: SignalrConfig) -> str | None:
    """Return the token as it is now. Raises `ConfigError` if its file cannot be read."""
    if config.token_file is None:
        return config.token.get_secret_value() if config.token is not None else None
    try:
        return Path(config.token_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"'token_file' cannot be read: {_reason(error)}"]) from error


def client_tls(tls: SignalrTls | None) -> ssl.SSLContext:
    """Return what verifies the hub's certificate. Raises `ConfigError` if a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=None if tls is None else tls.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls is not None and tls.certificate is not None:
            password = tls.key_password.get_secret_value() if tls.key_password is not None else ""
            context.load_cert_chain(tls.certificate, tls.key, password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"a file under 'tls' cannot be used: {_reason(error)}"]) from error
    return context


async def _negotiated(
    session: aiohttp.ClientSession, config: SignalrConfig, token: str | None
) -> tuple[URL, dict[str, str]]:
    """Ask the hub where and how to connect; Azure SignalR's hubs name another address, and a token for it."""
    url = configured = URL(config.url.replace("ws", "http", 1) if config.url.startswith("ws") else config.url)
    for _ in range(_MAX_REDIRECTS):
        own = url.origin() == configured.origin()
        headers = {name: value.get_secret_value() for name, value in config.headers.items()} if own else {}
        headers |= {"Authorization": f"Bearer {token}"} if token is not None else {}
        if config.skip_negotiation:
            return url, headers
        answer = await _negotiate(session, url, headers)
        if isinstance(answer.get("url"), str):
            token = answer.get("accessToken") or (token if URL(answer["url"]).origin() == url.origin() else None)
            url = URL(answer["url"])
            continue
        if not any(each.get("transport") == "WebSockets" for each in answer.get("availableTransports") or ()):
            raise Disconnected("the hub offers no WebSockets")
        return url.update_query(id=str(answer.get("connectionToken") or answer.get("connectionId"))), headers
    raise Disconnected("the hub sends its clients round in circles")


async def _negotiate(session: aiohttp.ClientSession, url: URL, headers: dict[str, str]) -> dict[str, Any]:
    where = (url / "negotiate").with_query(url.query).update_query(negotiateVersion=1)
    async with session.post(where, headers=headers, allow_redirects=False) as response:
        if response.status != 200:
            raise Disconnected(f"the hub refused the connection: HTTP {response.status} {response.reason}")
        try:
            answer = json.loads(await response.read())
        except ValueError:
            answer = None
    if not isinstance(answer, dict):
        raise Disconnected("what answers is no SignalR hub: its negotiation cannot be read")
    if answer.get("error") is not None:
        raise Disconnected(f"the hub refused the connection: {answer['error']}")
    return answer


async def _open(
    session: aiohttp.ClientSession, config: SignalrConfig, url: URL, headers: dict[str, str]
) -> aiohttp.ClientWebSocketResponse:
    try:
        return await session.ws_connect(
            url, headers=headers, max_msg_size=config.max_body, timeout=aiohttp.ClientWSTimeout(ws_close=2 * _GOODBYE)
        )
    except aiohttp.WSServerHandshakeError as error:
        raise Disconnected(f"the hub refused the connection: HTTP {error.status} {error.message}") from error


def _origin(url: str) -> str:
    parsed = URL(url)
    return f"{parsed.host}:{parsed.port}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
