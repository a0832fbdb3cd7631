"""The fault proxy itself."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults import FaultProxy


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """A proxy before a server that echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as between:
        yield between


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes, within: float = 5) -> bytes:
    streams[1].write(data)
    return await asyncio.wait_for(streams[0].readexactly(len(data)), within)


async def test_it_passes_bytes_through(proxy: FaultProxy) -> None:
    streams = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(streams, b"hello") == b"hello"
    streams[1].close()


async def test_a_stalled_connection_stays_open_and_heals(proxy: FaultProxy) -> None:
    streams = await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.stall(["down"])
    with pytest.raises(TimeoutError):
        await ask(streams, b"hello", within=0.1)
    proxy.heal()
    assert await asyncio.wait_for(streams[0].readexactly(5), 5) == b"hello"
    streams[1].close()


async def test_a_connection_is_cut_in_the_middle(proxy: FaultProxy) -> None:
    proxy.cut_after["down"] = 3
    streams = await asyncio.open_connection("127.0.0.1", proxy.port)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await ask(streams, b"hello")
    streams[1].close()


async def test_a_reset_reaches_the_client_and_a_refusal_the_next(proxy: FaultProxy) -> None:
    streams = await asyncio.open_connection("127.0.0.1", proxy.port)
    await ask(streams, b"x")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await ask(streams, b"hello")
    proxy.refusing = True
    again = await asyncio.open_connection("127.0.0.1", proxy.port)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await ask(again, b"hello")
