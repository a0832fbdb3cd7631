"""A listening connector, a receiver that records, and raw sockets, for the tests of HTTP."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from connectors.http import HttpConnector
from connectors.http.config import HttpConfig
from gateway.testing.connectors import Recorder, running

TOKEN, OTHER = "token-number-one", "token-number-two"


def config(**keys):
    return HttpConfig.model_validate({"type": "http", **keys})


def entry(path="/messages/{topic}", **keys):
    return {"path": path, "handler": "h", **keys}


@dataclass
class Client:
    """Posts to a running connector."""

    port: int
    inbox: Recorder
    session: aiohttp.ClientSession

    async def post(self, path, data=b"x", method="POST", **options):
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, data=data, **options) as answer:
            return Answer(answer.status, dict(answer.headers), json.loads(await answer.read() or b"null"))

    async def raw(self, data: bytes) -> "Raw":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        return Raw(reader, writer)


@dataclass
class Answer:
    status: int
    headers: dict
    json: object

    @property
    def code(self):
        return self.json["error"]["code"]


@dataclass
class Raw:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def everything(self, seconds=10) -> bytes:
        """Read until the server ends the connection."""
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read()
        except ConnectionError:
            return b""
        finally:
            await self.close()

    async def answer(self, seconds=10) -> bytes:
        """Read one answer."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line[:15] == b"Content-Length:"), 0)
            return head + await self.reader.readexactly(length)

    async def close(self):
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


@asynccontextmanager
async def serving(inbox=None, entries=None, **keys):
    """Run a connector with those entries and keys, and give a client for it."""
    connector = HttpConnector(config(listen="127.0.0.1:0", inbound=entries or [entry()], **keys), name="web")
    async with running(connector, inbox) as recorder, aiohttp.ClientSession(auto_decompress=False) as session:
        yield Client(connector.port, recorder, session)


@dataclass
class Receiver:
    """Records requests and answers them as told."""

    answer: web.Response | None = None
    requests: list = field(default_factory=list)
    port: int = 0
    hold: asyncio.Event | None = None
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request):
        body = await request.read()
        self.requests.append((request.method, request.path_qs, request.headers.copy(), body))
        self.seen.set()
        if self.hold is not None:
            await self.hold.wait()
        make = self.answer
        return make() if callable(make) else web.Response(status=202, text="taken")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self, port=0):
        runner = web.ServerRunner(web.Server(self.handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()


@asynccontextmanager
async def sending(**keys):
    """Run a connector that sends."""
    connector = HttpConnector(config(**keys), name="web")
    async with running(connector):
        yield connector
