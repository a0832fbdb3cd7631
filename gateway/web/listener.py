"""A listening HTTP server that slow, silent and too many clients cannot occupy.

aiohttp alone waits for ever for a request's first byte, for the rest of its headers, for its body and for a reader
of its answer; every connection here has a deadline for each of them.
"""

import asyncio
import logging
import resource
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from gateway.web.routes import Refusal, busy

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)

_TURNS = 3
"""Turns of the loop until an accepted connection is made: its task, the transport's part, the protocol's."""

_FULL_BODY = b'{"error": {"code": "unavailable", "message": "too many connections now"}}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds a client may take, and how many connections there may be at once."""

    header: float = 10.0
    """From the connection, or the first byte of a later request, to the end of the headers."""
    body: float = 30.0
    """Without any progress of the body; and after it, a body slower than `rate` ends too."""
    rate: float = 1000.0
    """Bytes per second that a body must have reached on average after `body` seconds."""
    idle: float = 75.0
    """Between two requests."""
    write: float = 30.0
    """With an answer that the client does not read."""
    connections: int = 2048
    """At most; never more than half of the files that this process may open."""


class Connection(web.RequestHandler):
    """One client's connection, and since when it waits for what."""

    __slots__ = ("_listener", "_received", "_refused", "_since", "_stalled", "request", "socket")

    def __init__(self, listener: "Listener", server: web.Server, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._listener = listener
        self._refused = False
        self._since = 0.0  # the deadline's start: of the wait, the headers, or the body's last byte
        self._received = -1  # bytes of this request; -1: none yet on this connection
        self._stalled: float | None = None
        self.request: tuple[web.BaseRequest, float] | None = None
        self.socket: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, or turn it away."""
        assert isinstance(transport, asyncio.Transport)
        self._since, self.socket = self._listener.now(), transport
        if self._listener.admit(self):
            super().connection_made(transport)
        else:
            self._refused = True
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._listener.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Note the progress."""
        if self._refused:
            return
        if data:
            if self.request is not None or self._received == 0:
                self._since = self._listener.now()
            self._received += len(data) + (self._received < 0)
        super().data_received(data)

    def pause_writing(self) -> None:
        """Note that the client does not read."""
        self._stalled = self._listener.now()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        self._stalled = None
        super().resume_writing()

    def begin(self, request: web.BaseRequest) -> None:
        """Note that a request's headers are complete."""
        self._since = self._listener.now()
        self.request = (request, self._since)

    def end(self) -> None:
        """Note that the request has its answer, and the connection is idle."""
        self.request, self._received, self._since = None, 0, self._listener.now()

    def is_late(self, now: float, limits: Limits) -> bool:
        """Whether the client has used up its time for what it is doing now."""
        if self._stalled is not None and now - self._stalled > limits.write:
            return True
        if self.request is None:
            return now - self._since > (limits.idle if self._received == 0 else limits.header)
        request, begun = self.request
        if request.content.is_eof():
            return False
        return now - self._since > limits.body or self._received < limits.rate * (now - begun - limits.body)

    def drop(self) -> None:
        """End it at once, whatever is still to be sent."""
        if self.socket is not None:
            self.socket.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature; its text may quote the request
    ) -> web.StreamResponse:
        """Answer what never reached a handler: malformed HTTP."""
        _log.debug("a request from %s was refused", request.remote, exc_info=exc)
        refusal = Refusal(400, "bad_request", "this is not valid HTTP") if status < 500 else busy()
        response = refusal.response()
        response.force_close()
        return response


class Listener:
    """Serves `handle` on one address while `async with` it is open.

    `handle` may raise `Refusal`; anything else it raises is logged and answered with 503, never another 5xx. A
    client that goes away does not cancel its handler. On exit no new request is taken, running ones have `grace`
    seconds to be answered, the rest are cancelled and answered with 503; nothing is left open.
    """

    def __init__(
        self,
        handle: Handle,
        address: tuple[str, int],
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        grace: float = 2.0,
    ) -> None:
        self._handle, self._address, self._tls, self._grace = handle, address, tls, grace
        self.limits = limits or Limits()
        self._most = max(1, min(self.limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._web = _Server(self)
        self._connections: dict[Connection, None] = {}
        self._requests: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port in use, also where 0 was asked for."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        """Listen. Raises `OSError` if the address cannot be had."""
        host, port = self._address
        options: dict[str, Any] = {} if self._tls is None else {"ssl_handshake_timeout": self.limits.header}
        self._server = await asyncio.get_running_loop().create_server(
            self._web, host, port, ssl=self._tls, backlog=1024, reuse_address=True, **options
        )
        self._sweep()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, as the class says."""
        assert self._server is not None
        self._closing = True
        try:
            await self._stop_accepting(self._server)
            self._web.pre_shutdown()
            await _finish(self._requests, self._grace)
            await self._web.shutdown(self._grace)
        finally:
            if self._sweeper is not None:
                self._sweeper.cancel()
            for connection in list(self._connections):
                connection.drop()
            await self._empty.wait()  # in the loop's next turns: each transport was aborted

    async def _stop_accepting(self, server: asyncio.Server) -> None:
        """Close the server once all that it has accepted are connections: asyncio loses those that are not yet."""
        loop = asyncio.get_running_loop()
        try:
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        finally:
            server.close()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle one request; every answer goes through here."""
        connection, task = request.protocol, asyncio.current_task()
        assert isinstance(connection, Connection)
        assert task is not None
        self._requests.add(task)
        connection.begin(request)
        try:
            return await self._handle(request)
        except Refusal as refusal:
            return refusal.response()
        except web.RequestPayloadError:
            return Refusal(400, "bad_request", "the body is not valid HTTP").response()
        except asyncio.CancelledError:
            if not self._closing:
                raise
            task.uncancel()
            return busy().response()
        except Exception:  # noqa: BLE001 - whatever a handler raises, its client gets an answer
            if request.transport is not None:
                _log.exception("a request could not be handled")
            return busy().response()
        finally:
            self._requests.discard(task)
            connection.end()
            if connection in self._connections:  # the idle longest stand first
                self._connections[connection] = self._connections.pop(connection)

    def now(self) -> float:
        """Return the loop's clock."""
        return asyncio.get_running_loop().time()

    def admit(self, connection: Connection) -> bool:
        """Take a new connection; one that has waited longest without a request makes room for it if need be."""
        if self._closing:
            return False
        if len(self._connections) >= self._most:
            idle = next((each for each in self._connections if each.request is None), None)
            if idle is None:
                return False
            idle.drop()
            self.forget(idle)
        self._connections[connection] = None
        self._empty.clear()
        return True

    def forget(self, connection: Connection) -> None:
        """Do not count it any longer."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()

    def _sweep(self) -> None:
        now, limits = self.now(), self.limits
        for connection in [each for each in self._connections if each.is_late(now, limits)]:
            connection.drop()
        pause = min(1.0, limits.header / 4, limits.body / 4, limits.idle / 4, limits.write / 4)
        self._sweeper = asyncio.get_running_loop().call_later(pause, self._sweep)


class _Server(web.Server):
    def __init__(self, listener: Listener) -> None:
        super().__init__(listener.serve)
        self._listener = listener

    def __call__(self) -> Connection:
        # Bodies are decoded by `read_body`, so that a bomb is not even unpacked while it is being refused.
        return Connection(
            self._listener,
            self,
            keepalive_timeout=self._listener.limits.idle,
            lingering_time=min(5.0, self._listener.limits.body),
            auto_decompress=False,
            access_log=None,
        )


async def _finish(tasks: set[asyncio.Task[Any]], grace: float) -> None:
    for seconds in (grace, 1.0):
        if tasks:
            _, late = await asyncio.wait(set(tasks), timeout=seconds)
            for task in late:
                task.cancel()
