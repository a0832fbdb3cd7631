"""Clients that are slow, silent or too many, with deadlines that make the tests quick."""

import asyncio
import contextlib
import json
import socket

import pytest
from aiohttp import web

from gateway.testing.connectors import Recorder, until
from gateway.web.listener import Limits, Listener
from gateway.web.routes import json_response
from tests.connectors.http_tools import Raw, serving

HEAD = b"POST /messages/a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"


async def drip(raw, pause=0.01):
    """Send a byte now and then for as long as the server listens."""
    try:
        while True:
            raw.writer.write(b"x")
            await raw.writer.drain()
            await asyncio.sleep(pause)
    except ConnectionError:
        return


async def ended(raw, data=b"", seconds=5):
    """Send, then wait until the server ends the connection; return the seconds it took."""
    begun = asyncio.get_running_loop().time()
    raw.writer.write(data)
    await raw.everything(seconds)
    return asyncio.get_running_loop().time() - begun


@pytest.mark.parametrize("start", [b"", b"POST", b"POST /messages/a HTTP/1.1\r\nHost: h\r\n"])
async def test_headers_that_do_not_end_are_cut_off(start):
    async with serving(header_timeout=0.2) as client:
        assert 0.15 < await ended(await client.raw(start)) < 2


async def test_headers_that_drip_are_cut_off_too():
    async with serving(header_timeout=0.2) as client:
        raw = await client.raw(b"POST /messages/a HTTP/1.1\r\nX: ")
        async with asyncio.timeout(3):
            await drip(raw)
        await raw.close()


async def test_headers_of_a_second_request_have_the_same_time():
    async with serving(header_timeout=0.2, idle_timeout=60) as client:
        raw = await client.raw(HEAD % 1 + b"x")
        await raw.answer()
        assert await ended(raw, b"POST /mess") < 2


async def test_a_body_that_stops_is_cut_off_and_stores_nothing():
    async with serving(body_timeout=0.2) as client:
        assert 0.15 < await ended(await client.raw(HEAD % 10 + b"12345")) < 2
        assert (await client.post("/messages/b")).status == 202
    assert [message.topic for message in client.inbox.stored] == ["/messages/b"]


async def test_a_body_that_stops_after_much_of_it_is_cut_off_as_soon():
    async with serving(body_timeout=0.2) as client:
        assert await ended(await client.raw(HEAD % 200_000 + b"x" * 100_000)) < 2
    assert client.inbox.stored == []


async def test_a_body_that_drips_is_cut_off_too():
    async with serving(body_timeout=0.2) as client:
        raw = await client.raw(HEAD % 1_000_000)
        async with asyncio.timeout(5):
            await drip(raw)
        await raw.close()
    assert client.inbox.stored == []


async def test_a_chunked_body_that_stops_is_cut_off():
    head = b"POST /messages/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(body_timeout=0.2) as client:
        assert await ended(await client.raw(head + b"5\r\nhel")) < 2


async def test_a_body_that_progresses_may_take_its_time():
    async with serving(body_timeout=0.2) as client:
        raw = await client.raw(HEAD % 5000)
        for _ in range(10):
            raw.writer.write(b"x" * 500)
            await asyncio.sleep(0.05)
        assert b" 202 " in await raw.answer()
        await raw.close()


async def test_waiting_for_the_database_is_not_the_clients_slowness():
    inbox = Recorder()
    inbox.gate.clear()
    async with serving(inbox, header_timeout=0.05, body_timeout=0.05, idle_timeout=0.05) as client:
        posting = asyncio.create_task(client.post("/messages/a"))
        await until(lambda: inbox.offered)
        await asyncio.sleep(0.3)  # several sweeps long
        inbox.gate.set()
        assert (await posting).status == 202


async def test_an_idle_connection_is_closed():
    async with serving(idle_timeout=0.2) as client:
        raw = await client.raw(HEAD % 1 + b"x")
        await raw.answer()
        assert 0.1 < await ended(raw) < 2


async def test_when_all_connections_are_taken_the_longest_idle_makes_room():
    async with serving(max_connections=3) as client:
        idle = [await client.raw(b"") for _ in range(3)]
        raw = await client.raw(HEAD % 1 + b"x")
        assert b" 202 " in await raw.answer()
        assert await ended(idle[0]) < 1
        for each in (raw, *idle[1:]):
            await each.close()


async def test_when_all_connections_are_busy_another_one_is_turned_away():
    inbox = Recorder()
    inbox.gate.clear()
    async with serving(inbox, max_connections=2) as client:
        busy = [await client.raw(HEAD % 1 + b"x") for _ in range(2)]
        await until(lambda: len(inbox.offered) == 2)
        refused = await (await client.raw(b"")).everything()
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" in refused
        assert json.loads(refused.split(b"\r\n\r\n")[1])["error"]["code"] == "unavailable"
        inbox.gate.set()
        for raw in busy:
            assert b" 202 " in await raw.answer()
            await raw.close()


async def test_slow_clients_do_not_keep_others_waiting():
    async with serving(max_connections=50, header_timeout=30) as client:
        slow = [await client.raw(b"POST /mess") for _ in range(200)]
        for _ in range(20):
            async with asyncio.timeout(1):
                assert (await client.post("/messages/a")).status == 202
        for raw in slow:
            await raw.close()


async def test_an_answer_that_nobody_reads_is_given_up():
    async def large(request):
        return json_response("x" * 20_000_000)

    async with Listener(large, ("127.0.0.1", 0), limits=Limits(write=0.2)) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: len(listener._connections) == 1)
        await until(lambda: not listener._connections)
        await Raw(reader, writer).close()


async def test_a_stop_is_not_held_up_by_clients_that_hang():
    async with serving() as client:
        hanging = [await client.raw(start) for start in (b"", b"POST", HEAD % 10 + b"1")]
        await until(lambda: client.inbox.readies)
        begun = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - begun < 6
    for raw in hanging:
        await raw.close()


@pytest.mark.parametrize("turns", range(6))
async def test_who_comes_as_it_closes_is_not_left_waiting(turns):
    """asyncio loses what it has accepted, but not yet made a connection of, when its server closes."""

    async def handle(_):
        return web.Response()

    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as clients:
        async with Listener(handle, ("127.0.0.1", 0)) as listener:
            came = [clients.enter_context(socket.create_connection(("127.0.0.1", listener.port))) for _ in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            for client in came:
                client.setblocking(False)
                with contextlib.suppress(ConnectionResetError):
                    while await loop.sock_recv(client, 1000):
                        pass
