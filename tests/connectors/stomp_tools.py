"""A stranger who speaks STOMP in raw frames, a broker that says what a test wants, and brokers to share."""

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from connectors.activemq import ActiveMQConnector
from connectors.activemq.config import ActiveMQConfig
from gateway.message import Message
from tests.brokers.java_broker import JavaBroker
from tests.conftest import missing
from tests.services import ServiceMissing

ESCAPES = [("\\\\", "\x00"), ("\\n", "\n"), ("\\r", "\r"), ("\\c", ":"), ("\x00", "\\")]


def escape(text):
    for old, new in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), (":", "\\c")):
        text = text.replace(old, new)
    return text


def unescape(text):
    for old, new in ESCAPES:
        text = text.replace(old, new)
    return text


def frame(command, headers=(), body=b""):
    pairs = headers.items() if isinstance(headers, dict) else headers
    lines = "".join(f"{escape(name)}:{escape(str(value))}\n" for name, value in pairs)
    return f"{command}\n{lines}\n".encode() + body + b"\x00"


@dataclass
class Frame:
    command: str
    headers: dict
    body: bytes


async def read_frame(reader) -> Frame:
    command = b""
    while not command:
        command = (await reader.readline()).rstrip(b"\r\n")
        if reader.at_eof() and not command:
            raise EOFError
    headers = {}
    while line := (await reader.readline()).rstrip(b"\r\n"):
        name, _, value = line.decode().partition(":")
        headers.setdefault(unescape(name), unescape(value))
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]) + 1)
    else:
        body = await reader.readuntil(b"\x00")
    return Frame(command.decode(), headers, body[:-1])


class Stranger:
    """A client of its own, without heart-beats."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.number = reader, writer, 0
        self.messages = []

    @classmethod
    async def connect(cls, port, **headers):
        stranger = cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**26))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        stranger.writer.write(frame("CONNECT", {"accept-version": "1.2", "host": "test", **named}))
        async with asyncio.timeout(15):
            assert (await read_frame(stranger.reader)).command == "CONNECTED"
        return stranger

    async def ask(self, command, headers, body=b""):
        """Send a frame, and wait for its receipt."""
        self.number += 1
        self.writer.write(frame(command, {**headers, "receipt": f"r{self.number}"}, body))
        async with asyncio.timeout(15):
            while (answer := await read_frame(self.reader)).command == "MESSAGE":
                self.messages.append(answer)
        assert answer.command == "RECEIPT", answer
        assert answer.headers["receipt-id"] == f"r{self.number}"

    async def send(self, destination, body, headers=(), *, text=False):
        pairs = {"destination": destination, "persistent": "true", **dict(headers)}
        if not text:
            pairs["content-length"] = len(body)
        await self.ask("SEND", pairs, body)

    async def subscribe(self, destination, ack="auto", **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.ask("SUBSCRIBE", {"destination": destination, "id": "s", "ack": ack, **named})

    async def message(self, seconds=15):
        """Return the next message."""
        if self.messages:
            return self.messages.pop(0)
        async with asyncio.timeout(seconds):
            answer = await read_frame(self.reader)
        assert answer.command == "MESSAGE", answer
        return answer

    async def drain(self, quiet=0.3):
        """Return all messages that come until none comes for a while."""
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                found.append(await self.message(quiet if found else 5))
        return found

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def config(**keys):
    return ActiveMQConfig.model_validate({"type": "activemq", **keys})


def connector(broker_or_url, *entries, name="broker", **keys):
    if "urls" not in keys:
        keys["url"] = broker_or_url if isinstance(broker_or_url, str) else broker_or_url.url
    return ActiveMQConnector(config(inbound=[{"handler": "h", **entry} for entry in entries], **keys), name=name)


async def counted(broker: JavaBroker, queue) -> tuple[int, int]:
    """Return how many messages of a queue are done, and how many are on their way to a consumer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.control)
    writer.write(f"GET /{queue} HTTP/1.0\r\n\r\n".encode())
    async with asyncio.timeout(15):
        answer = await reader.read()
    writer.close()
    done, held = answer.rpartition(b"\r\n\r\n")[2].split()
    return int(done), int(held)


def started(kind, **keys):
    """Start a broker, or skip the test if it is not installed."""
    try:
        return kind(**keys).start()
    except ServiceMissing as reason:
        missing(str(reason))
        raise


def to_message(given: Frame) -> Message:
    return Message(
        topic=given.headers["destination"], body=given.body, message_id=given.headers.get("x-message-id"),
        content_type=given.headers.get("content-type"),
        headers=tuple((name, value.encode()) for name, value in given.headers.items()),
    )  # fmt: skip


@dataclass
class Scripted:
    """A broker of a few lines: greets, confirms what asks for it, and keeps all frames it gets."""

    greeting: dict = field(default_factory=lambda: {"version": "1.2", "heart-beat": "0,0", "server": "scripted"})
    frames: list = field(default_factory=list)
    writers: list = field(default_factory=list)
    silent: set = field(default_factory=set)
    """Commands that get no answer."""
    port: int = 0

    @property
    def url(self):
        return f"stomp://127.0.0.1:{self.port}"

    @property
    def commands(self):
        return [each.command for each in self.frames]

    def of(self, command):
        return [each for each in self.frames if each.command == command]

    def write(self, data):
        """Write to the connection that was made first: the one that receives, if there is one."""
        self.writers[0].write(data)

    async def serve(self, reader, writer):
        self.writers.append(writer)
        with contextlib.suppress(EOFError, OSError):
            while True:
                got = await read_frame(reader)
                self.frames.append(got)
                if got.command in self.silent:
                    continue
                if got.command == "STOMP":
                    writer.write(frame("CONNECTED", self.greeting))
                elif "receipt" in got.headers:
                    writer.write(frame("RECEIPT", {"receipt-id": got.headers["receipt"]}))
        writer.close()

    @asynccontextmanager
    async def running(self):
        tasks = set()

        async def served(reader, writer):
            tasks.add(asyncio.current_task())
            with contextlib.suppress(asyncio.CancelledError):
                await self.serve(reader, writer)

        server = await asyncio.start_server(served, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self.writers:
                writer.close()
            await server.wait_closed()
