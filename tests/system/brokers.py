"""A broker as strangers see it: they produce to it, and read what the gateway sent there, with code of their own."""

import asyncio
import contextlib
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from tests.connectors.mqtt_tools import packet, publish_packet, read_packet, text, user_properties
from tests.connectors.stomp_tools import Stranger
from tests.services import Server

PARTITIONS = 6
_serial = count()
_starter = ThreadPoolExecutor(1)
"""A server ends with the thread that started it, so this one is kept."""


class Unconfirmed(Exception):  # noqa: N818 - reads as what happened
    """Nobody knows whether the message that was sent has arrived."""


class Received(NamedTuple):
    """A message that the gateway sent: its id, and what its body says."""

    id: str
    body: Any


class Broker(ABC):
    """Topics of a test's own on a server. `send` is confirmed when it returns."""

    kind: ClassVar[str]

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"test{next(_serial)}"
        self.received: list[Received] = []
        self._listener: asyncio.Task[None] | None = None

    @abstractmethod
    def address(self) -> dict[str, Any]:
        """What a connector is told about where the broker is."""

    @abstractmethod
    def entry(self, topic: str, **keys: Any) -> dict[str, Any]:
        """One inbound entry for a topic."""

    @abstractmethod
    async def prepare(self, *topics: str) -> None:
        """Make topics. From now on all that is sent to the topic `sent` is kept."""

    @abstractmethod
    async def transmit(self, topic: str, body: bytes, group: str | None) -> None:
        """Send once; messages of one group stay in order. Raises `Unconfirmed`."""

    @abstractmethod
    async def collect(self, ids: Collection[str], quiet: float) -> None:
        """Add to `received` what came to the topic `sent`, until these ids were there, and then none for a while."""

    @abstractmethod
    async def hang_up(self) -> None:
        """Close the connection that sends."""

    def connector(self, *entries: dict[str, Any], **keys: Any) -> dict[str, Any]:
        return {"type": self.kind, **self.address(), "inbound": list(entries), **keys}

    def topic(self, name: str) -> str:
        return f"{self.name}-{name}"

    def end(self) -> None:
        """End the server, as abruptly as it can stand without losing what it has confirmed."""
        self.server.kill()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """End the server, and start it again afterwards. It lives longer than the test."""
        await asyncio.to_thread(self.end)
        try:
            yield
        finally:
            await asyncio.get_running_loop().run_in_executor(_starter, self.server.start)

    async def until_received(self, ids: Collection[str], within: float = 30) -> None:
        """Read what was sent until all of these have come; whatever else is there comes along."""
        try:
            async with asyncio.timeout(within):
                await self.collect(ids, quiet=0.5)
        except TimeoutError:
            left = set(ids) - {each.id for each in self.received}
            raise AssertionError(
                f"{len(left)} messages did not come within {within} s, as {sorted(left)[:3]}"
            ) from None

    def missing(self, ids: Collection[str]) -> bool:
        return not {each.id for each in self.received}.issuperset(ids)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hang_up()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait({self._listener})


class KafkaBroker(Broker):
    kind = "kafka"
    _producer: AIOKafkaProducer | None = None

    def address(self) -> dict[str, Any]:
        return {"bootstrap_servers": self.server.url}

    def entry(self, topic: str, **keys: Any) -> dict[str, Any]:
        """A static member: a gateway that was killed takes its partitions back at once."""
        group = f"{self.name}-{topic}"
        return {"topic": self.topic(topic), "group": group, "instance_id": f"{group}-1", "session_timeout": 6, **keys}

    async def prepare(self, *topics: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server.url)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self.topic(name), PARTITIONS, 1) for name in (*topics, "sent")])
        finally:
            await admin.close()

    async def transmit(self, topic: str, body: bytes, group: str | None) -> None:
        """Idempotent: the library repeats by itself, and what it repeats must not arrive twice."""
        try:
            async with asyncio.timeout(15):
                if self._producer is None:
                    self._producer = AIOKafkaProducer(bootstrap_servers=self.server.url, enable_idempotence=True)
                    await self._producer.start()
                await self._producer.send_and_wait(self.topic(topic), body, group and group.encode())
        except (KafkaError, OSError, TimeoutError) as error:
            await self.hang_up()
            raise Unconfirmed(str(error)) from error

    async def collect(self, ids: Collection[str], quiet: float) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.server.url, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self.topic("sent"), number) for number in range(PARTITIONS)])
            found = True
            while found or self.missing(ids):
                found = await consumer.getmany(timeout_ms=int(quiet * 1000))
                for record in [record for records in found.values() for record in records]:
                    self.received.append(
                        Received(dict(record.headers)["message-id"].decode(), json.loads(record.value))
                    )
        finally:
            await consumer.stop()

    async def hang_up(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(5):
                    await producer.stop()
            await producer.client.close()


class MqttBroker(Broker):
    kind = "mqtt"

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._packet_ids = count(1)
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def address(self) -> dict[str, Any]:
        return {"url": self.server.url, "client_id": self.name}

    def entry(self, topic: str, **keys: Any) -> dict[str, Any]:
        return {"topic": self.topic(topic), **keys}

    def end(self) -> None:
        """Stop it in order: Mosquitto writes to the disk what it has when it ends, and not before."""
        self.server.stop()

    async def prepare(self, *topics: str) -> None:
        """Subscribe, and listen from now on: Mosquitto forgets who was away when it ended."""
        reader, writer = await self._open(f"{self.name}-receiver")
        writer.write(packet(0x82, b"\x00\x01\x00" + text(self.topic("sent")) + b"\x01"))
        assert (await read_packet(reader))[0] == 0x90
        self._listener = asyncio.create_task(self._listen(reader, writer))

    async def transmit(self, topic: str, body: bytes, group: str | None) -> None:
        packet_id = (next(self._packet_ids) - 1) % 60_000 + 1
        try:
            async with asyncio.timeout(15):
                if self._connection is None:
                    self._connection = await self._open(f"{self.name}-producer", keep=False)
                reader, writer = self._connection
                writer.write(publish_packet(self.topic(topic), body, packet_id))
                first, answer = await read_packet(reader)
        except (OSError, EOFError, TimeoutError) as error:
            await self.hang_up()
            raise Unconfirmed(repr(error)) from error
        assert (first, struct.unpack_from("!H", answer)) == (0x40, (packet_id,)), "not its confirmation"

    async def collect(self, ids: Collection[str], quiet: float) -> None:
        before = -1
        while self.missing(ids) or len(self.received) > before:
            before = len(self.received)
            assert self._listener is not None
            done, _ = await asyncio.wait({self._listener}, timeout=quiet)
            assert not done, self._listener.exception()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                while True:
                    self._keep(*await read_packet(reader), writer)
            except (OSError, EOFError):
                pass
            finally:
                writer.close()
            with contextlib.suppress(OSError, EOFError):
                await asyncio.sleep(0.1)
                reader, writer = await self._open(f"{self.name}-receiver")

    def _keep(self, first: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        assert first & 0xF2 == 0x32, f"no message with QoS 1: {first:x}"
        end = 2 + struct.unpack_from("!H", body)[0]
        writer.write(packet(0x40, body[end : end + 2]))
        size, start = body[end + 2], end + 3
        if size > 127:
            size, start = (size & 127) | body[end + 3] << 7, end + 4
        message_id = dict(user_properties(body[start : start + size]))["message-id"]
        self.received.append(Received(message_id.decode(), json.loads(body[start + size :])))

    async def _open(self, client: str, *, keep: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        session = b"\x00\x00\x00\x05\x11\x00\x00\xff\xff" if keep else b"\x02\x00\x00\x00"
        writer.write(packet(0x10, text("MQTT") + b"\x05" + session + text(client)))
        try:
            first, answer = await read_packet(reader)
        except BaseException:
            writer.close()
            raise
        assert (first, answer[1]) == (0x20, 0), "the broker refused"
        return reader, writer

    async def hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection[1].transport.abort()


class ActiveMQBroker(Broker):
    kind = "activemq"
    _client: Stranger | None = None

    def address(self) -> dict[str, Any]:
        return {"url": self.server.url}

    def entry(self, topic: str, **keys: Any) -> dict[str, Any]:
        return {"queue": self.topic(topic), **keys}

    async def prepare(self, *topics: str) -> None:
        """Nothing: queues come into being with their first message, and keep all of them."""

    async def transmit(self, topic: str, body: bytes, group: str | None) -> None:
        try:
            if self._client is None:
                self._client = await Stranger.connect(self.server.port)
            await self._client.send(f"/queue/{self.topic(topic)}", body)
        except (OSError, EOFError, TimeoutError) as error:
            await self.hang_up()
            raise Unconfirmed(repr(error)) from error

    async def collect(self, ids: Collection[str], quiet: float) -> None:
        client = await Stranger.connect(self.server.port)
        try:
            await client.subscribe(f"/queue/{self.topic('sent')}")
            with contextlib.suppress(TimeoutError):
                while True:
                    message = await client.message(3600 if self.missing(ids) else quiet)
                    self.received.append(Received(message.headers["x-message-id"], json.loads(message.body)))
        finally:
            await client.close()

    async def hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


KINDS: dict[str, type[Broker]] = {"kafka": KafkaBroker, "mosquitto": MqttBroker, "activemq": ActiveMQBroker}
"""By the name of the service."""
