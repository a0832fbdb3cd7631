"""A TCP proxy in the test's own loop that makes a network as bad as wanted."""

import asyncio
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

Direction = Literal["up", "down"]
"""`up` is from the client to the server."""

_CHUNK = 64 * 1024
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FaultProxy:
    """Forwards connections to `upstream`. Its attributes may be changed at any time and act at once.

    `latency`: seconds that each piece is late. `rate`: bytes per second, 0 is unlimited. `stalled`: directions in
    which nothing moves though the connection stays (half-open). `cut_after`: bytes per direction and connection after
    which it is reset. `refusing`: new connections are reset.
    """

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.port = 0
        self.accepted = 0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.heal()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._pairs)

    def heal(self) -> None:
        """Be a perfect network from now on."""
        self.latency = 0.0
        self.rate = 0.0
        self.stalled: set[Direction] = set()
        self.cut_after: dict[Direction, int] = {}
        self.refusing = False

    def stall(self, directions: Iterable[Direction] = ("up", "down")) -> None:
        """Let nothing through any more, without closing anything."""
        self.stalled = set(directions)

    def reset(self) -> None:
        """Reset every connection."""
        for pair in list(self._pairs):
            _reset(*pair)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=4 * _CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._closed:
            _reset(writer)
            return
        task = asyncio.get_running_loop().create_task(self._serve((reader, writer)))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # perhaps before it had begun
                _reset(writer)

        task.add_done_callback(ended)

    async def _serve(self, client: _Stream) -> None:
        if self.refusing:
            _reset(client[1])
            return
        try:
            server = await asyncio.open_connection(*self.upstream, limit=4 * _CHUNK)
        except OSError:
            _reset(client[1])
            return
        pair = (client[1], server[1])
        for writer in pair:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump("up", client[0], server[1]), self._pump("down", server[0], client[1]))
        except OSError:
            _reset(*pair)
        finally:
            self._pairs.discard(pair)
            for writer in pair:
                writer.close()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(_CHUNK):
            await asyncio.sleep(self.latency + (len(data) / self.rate if self.rate else 0))
            while direction in self.stalled:  # noqa: ASYNC110 - tests set the attribute at any time
                await asyncio.sleep(0.01)
            limit = self.cut_after.get(direction)
            if limit is not None and passed + len(data) > limit:
                writer.write(data[: max(0, limit - passed)])
                await writer.drain()
                raise ConnectionResetError
            passed += len(data)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _reset(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        raw = writer.get_extra_info("socket")
        if raw is not None and raw.fileno() != -1:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
