"""A stranger that speaks MQTT 5 byte by byte, a tap that counts acknowledgements, a broker that follows a script."""

import asyncio
import contextlib
import struct
from contextlib import asynccontextmanager
from itertools import count
from typing import Self

from connectors.mqtt import MqttConnector
from connectors.mqtt.config import MqttConfig
from gateway.message import Message


def connector(port, topic="t", *, name="c", entry=None, **keys):
    inbound = [{"topic": topic, "handler": "h", **(entry or {})}] if topic else []
    keys = {"type": "mqtt", "url": f"mqtt://127.0.0.1:{port}", "inbound": inbound, **keys}
    return MqttConnector(MqttConfig.model_validate(keys), name=name)


def variable(number: int) -> bytes:
    out = bytearray()
    while True:
        number, digit = divmod(number, 128)
        out.append(digit | (128 if number else 0))
        if not number:
            return bytes(out)


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + variable(len(body)) + body


def publish_packet(topic, body, packet_id=0, *, properties=b"", dup=False, retain=False, version=5) -> bytes:
    head = text(topic) + (struct.pack("!H", packet_id) if packet_id else b"")
    head += variable(len(properties)) + properties if version == 5 else b""
    return packet(0x30 | dup << 3 | bool(packet_id) << 1 | retain, head + body)


async def read_packet(reader) -> tuple[int, bytes]:
    (first,) = await reader.readexactly(1)
    length = shift = 0
    while True:
        (digit,) = await reader.readexactly(1)
        length |= (digit & 127) << shift
        shift += 7
        if digit < 128:
            return first, await reader.readexactly(length)


def user_properties(data: bytes) -> list[tuple[str, bytes]]:
    """Read those properties whose identifier is 38; the tests send no others to a stranger, but the content type."""
    found = []
    while data:
        identifier, data = data[0], data[1:]
        strings = []
        for _ in range(2 if identifier == 38 else 1):
            (length,) = struct.unpack_from("!H", data)
            strings.append(data[2 : 2 + length])
            data = data[2 + length :]
        if identifier == 38:
            found.append((strings[0].decode(), strings[1]))
    return found


async def gone(*writers) -> None:
    """Close connections, with all that was written if the other side takes it within a second."""
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(OSError):
            try:
                async with asyncio.timeout(1):
                    await writer.wait_closed()
            except TimeoutError:
                writer.transport.abort()


class Stranger:
    """A client of its own: publishes with QoS 1 and returns once it is confirmed, or subscribes and collects."""

    def __init__(self, port: int, name: str) -> None:
        self.port, self.name = port, name
        self.received: list[Message] = []
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self._task = self._writer = None

    async def connect(self) -> Self:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writer.write(packet(0x10, text("MQTT") + b"\x05\x02\x00\x00\x00" + text(self.name)))
        first, body = await read_packet(reader)
        assert (first, body[1]) == (0x20, 0), "the stranger was not let in"
        self._task = asyncio.create_task(self._read(reader))
        return self

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await gone(self._writer)
            self._task = None

    async def publish(self, topic, body=b"", *, headers=(), retain=False) -> int:
        properties = b"".join(b"\x26" + text(name) + text(value) for name, value in headers)
        return await self._ask(lambda n: publish_packet(topic, body, n, properties=properties, retain=retain))

    async def subscribe(self, *topics) -> None:
        body = b"\x00" + b"".join(text(topic) + b"\x01" for topic in topics)
        await self._ask(lambda n: packet(0x82, struct.pack("!H", n) + body))

    async def _ask(self, make) -> int:
        if self._task is None or self._task.done():
            await self.close()
            await self.connect()
        packet_id = (next(self._ids) - 1) % 60_000 + 1
        answer = self._answers[packet_id] = asyncio.get_running_loop().create_future()
        self._writer.write(make(packet_id))
        async with asyncio.timeout(15):
            await self._writer.drain()
            return await answer

    async def _read(self, reader) -> None:
        try:
            while True:
                first, body = await read_packet(reader)
                if first >> 4 == 3:
                    self._collect(first, body)
                elif first >> 4 in (4, 9):
                    (packet_id,) = struct.unpack_from("!H", body)
                    self._answers.pop(packet_id).set_result(body[2] if len(body) > 2 and first >> 4 == 4 else 0)
        except (OSError, asyncio.IncompleteReadError) as error:
            for waiting in self._answers.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(str(error)))
            self._answers.clear()

    def _collect(self, first, body) -> None:
        (length,) = struct.unpack_from("!H", body)
        topic, rest = body[2 : 2 + length].decode(), body[2 + length :]
        if first & 6:
            self._writer.write(packet(0x40, rest[:2]))
            rest = rest[2:]
        size, start = rest[0], 1
        if size > 127:
            size, start = (size & 127) | rest[1] << 7, 2
        headers = user_properties(rest[start : start + size])
        self.received.append(
            Message(
                topic=topic,
                body=rest[start + size :],
                headers=tuple(headers),
                message_id=next((value.decode() for name, value in headers if name == "message-id"), None),
            )
        )


class Tap:
    """Stands between client and broker, passes everything on, and notes which messages were acknowledged, in order."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.acknowledged: list[int] = []
        self.delivered: list[tuple[int, bool]] = []
        """Packet id and DUP of each QoS 1 message that went to the client."""
        self.connects: list[bytes] = []
        self.deaf = False
        """Acknowledgements are swallowed, as if the connection had been cut before they arrived."""
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def clients(self) -> int:
        return len(self._tasks)

    def cut(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _accept(self, reader, writer) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader, writer) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            await gone(writer)
            return
        try:
            up = asyncio.create_task(self._pass(reader, back, self._note_up))
            down = asyncio.create_task(self._pass(there, writer, self._note_down))
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.close()
            back.close()
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            await gone(writer, back)

    async def _pass(self, reader, writer, note) -> None:
        while True:
            first, body = await read_packet(reader)
            if note(first, body):
                writer.write(packet(first, body))
                await writer.drain()

    def _note_up(self, first, body) -> bool:
        if first >> 4 == 1:
            self.connects.append(body)
        if first >> 4 == 4:
            if self.deaf:
                return False
            self.acknowledged.append(struct.unpack_from("!H", body)[0])
        return True

    def _note_down(self, first, body) -> bool:
        if first >> 4 == 3 and first & 2:
            (length,) = struct.unpack_from("!H", body)
            self.delivered.append((struct.unpack_from("!H", body, 2 + length)[0], bool(first & 8)))
        return True


class Script:
    """A broker in the test's own hands: `lives` is a list of coroutines, each serves one connection."""

    def __init__(self, *lives) -> None:
        self._lives = iter(lives)
        self.failures: list[BaseException] = []

    @asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
        assert self.failures == []

    async def _serve(self, reader, writer) -> None:
        try:
            await next(self._lives)(Peer(reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            self.failures.append(error)
        finally:
            await gone(writer)


class Peer:
    """The broker's side of one connection."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer

    async def welcome(self, *, session=False, properties=b"", subscribes=True) -> None:
        """Answer CONNECT and, if it comes, SUBSCRIBE."""
        first, _ = await read_packet(self.reader)
        assert first == 0x10
        self.writer.write(packet(0x20, bytes([session, 0]) + variable(len(properties)) + properties))
        if not subscribes:
            return
        first, body = await read_packet(self.reader)
        assert first == 0x82
        self.writer.write(packet(0x90, body[:2] + b"\x00\x01"))

    def send(self, body, packet_id, *, topic="t", **options) -> None:
        self.writer.write(publish_packet(topic, body, packet_id, **options))

    async def published(self) -> tuple[int, bytes]:
        """Wait for the next PUBLISH with QoS 1; return its packet id, and what follows it."""
        first, body = await read_packet(self.reader)
        assert first >> 1 == 0x19
        (length,) = struct.unpack_from("!H", body)
        return struct.unpack_from("!H", body, 2 + length)[0], body[4 + length :]

    def confirm(self, packet_id, reason=0) -> None:
        self.writer.write(packet(0x40, struct.pack("!HB", packet_id, reason)))

    async def acknowledged(self) -> int:
        """Wait for the next PUBACK, answering pings, and return its packet id."""
        while True:
            first, body = await read_packet(self.reader)
            if first == 0xC0:
                self.writer.write(b"\xd0\x00")
            if first == 0x40:
                return struct.unpack("!H", body[:2])[0]
