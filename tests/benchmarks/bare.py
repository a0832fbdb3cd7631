"""The client libraries' own loops, with no gateway around them: consume and publish as their manuals show it.

Received messages are acknowledged as the library does by itself, sent ones are confirmed by the broker. A loop counts
in `tally` what it has received, or what was confirmed.
"""

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

import stomp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from signalrcore.hub_connection_builder import HubConnectionBuilder

from tests.services import Server

Send: TypeAlias = Callable[[Sequence[str]], Awaitable[None]]
"""Sends all bodies and returns once all are confirmed."""
_serial = count()


class Tally:
    """How many messages there are by now. One thread counts."""

    def __init__(self, wanted: int = 0) -> None:
        self.count, self.wanted = 0, wanted
        self.complete = threading.Event()

    def add(self, *_: object) -> None:
        """Count one: the callback of a library."""
        self.count += 1
        if self.count == self.wanted:
            self.complete.set()


class Bare(ABC):
    """One broker, and how to consume from it and publish to it."""

    type: ClassVar[str]
    live: ClassVar[bool] = False
    """Whether only what is sent while somebody listens is received."""
    session: ClassVar[bool] = False
    """Whether the broker keeps messages only for those that have subscribed before."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address: Any = server.url

    def topic(self) -> str:
        """Return the name of a new topic."""
        return f"bench{next(_serial)}"

    @abstractmethod
    def settings(self, topic: str | None) -> dict[str, Any]:
        """Return the configuration of a connector that receives from the topic, or that only sends."""

    async def create(self, topic: str) -> None:  # noqa: B027 - most have nothing to do
        """Make the topic, where brokers do not do so by themselves."""

    @abstractmethod
    def consuming(self, topic: str, tally: Tally) -> AbstractAsyncContextManager[None]:
        """Return a context in which the loop receives; entered, it is about to get its first message."""

    @abstractmethod
    def publishing(self, topic: str, tally: Tally) -> AbstractAsyncContextManager[Send]:
        """Return a context in which messages can be sent; entered, it is connected."""

    async def fill(self, topic: str, bodies: Sequence[str]) -> None:
        """Bring messages to those that consume."""
        async with self.publishing(topic, Tally(len(bodies))) as send:
            await send(bodies)


class Kafka(Bare):
    """aiokafka: `getmany`, and an idempotent producer that waits for all replicas."""

    type = "kafka"

    def settings(self, topic: str | None) -> dict[str, Any]:
        inbound = [{"topic": topic, "group": f"{topic}-gateway", "handler": "bench.run"}] if topic else []
        return {"type": "kafka", "bootstrap_servers": self.address, "inbound": inbound}

    async def create(self, topic: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, 1, 1)])
        finally:
            await admin.close()

    @asynccontextmanager
    async def consuming(self, topic: str, tally: Tally) -> AsyncIterator[None]:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=self.address, group_id=f"{topic}-bare", auto_offset_reset="earliest"
        )

        async def loop() -> None:
            while True:
                for records in (await consumer.getmany(timeout_ms=200, max_records=500)).values():
                    tally.count += len(records)

        await consumer.start()
        while not consumer.assignment():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.001)
        task = asyncio.create_task(loop())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await consumer.stop()

    @asynccontextmanager
    async def publishing(self, topic: str, tally: Tally) -> AsyncIterator[Send]:
        producer = AIOKafkaProducer(bootstrap_servers=self.address, enable_idempotence=True)

        async def send(bodies: Sequence[str]) -> None:
            sent = [await producer.send(topic, body.encode()) for body in bodies]
            for each in sent:
                each.add_done_callback(tally.add)
            await asyncio.gather(*sent)

        await producer.start()
        try:
            yield send
        finally:
            await producer.stop()


class Mqtt(Bare):
    """paho-mqtt with its own thread, QoS 1, a session that the broker keeps."""

    type = "mqtt"
    session = True

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._sessions: set[str] = set()

    def settings(self, topic: str | None) -> dict[str, Any]:
        inbound = [{"topic": topic, "handler": "bench.run"}] if topic else []
        return {"type": "mqtt", "url": self.address, "client_id": f"gateway-{topic}", "inbound": inbound}

    @asynccontextmanager
    async def consuming(self, topic: str, tally: Tally) -> AsyncIterator[None]:
        client, connected, subscribed = self._client(f"bare-{topic}"), Tally(1), Tally(1)
        client.on_connect, client.on_subscribe, client.on_message = connected.add, subscribed.add, tally.add
        await self._start(client, connected)
        if not self._known(topic):
            client.subscribe(topic, qos=1)
            await _until(subscribed)
        try:
            yield
        finally:
            await asyncio.to_thread(self._stop, client)

    @asynccontextmanager
    async def publishing(self, topic: str, tally: Tally) -> AsyncIterator[Send]:
        client, connected = self._client(f"sender-{next(_serial)}"), Tally(1)
        client.on_connect, client.on_publish = connected.add, tally.add
        client.max_inflight_messages_set(500)

        async def send(bodies: Sequence[str]) -> None:
            await asyncio.to_thread(lambda: [client.publish(topic, body, qos=1) for body in bodies])
            await _until(tally)

        await self._start(client, connected)
        try:
            yield send
        finally:
            await asyncio.to_thread(self._stop, client)

    def _known(self, topic: str) -> bool:
        """Say whether the broker keeps that session already, which then gets its messages without a word."""
        known = topic in self._sessions
        self._sessions.add(topic)
        return known

    def _client(self, name: str) -> Client:
        return Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTv5)

    async def _start(self, client: Client, connected: Tally) -> None:
        address = urlsplit(self.address)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        client.connect(address.hostname or "", address.port or 0, clean_start=False, properties=properties)
        client.loop_start()
        await _until(connected)

    def _stop(self, client: Client) -> None:
        client.disconnect()
        client.loop_stop()


class ActiveMQ(Bare):
    """stomp.py with its own thread; `ack: auto`, persistent messages with receipts."""

    type = "activemq"

    def settings(self, topic: str | None) -> dict[str, Any]:
        inbound = [{"queue": topic, "handler": "bench.run"}] if topic else []
        return {"type": "activemq", "url": self.address, "inbound": inbound}

    @asynccontextmanager
    async def consuming(self, topic: str, tally: Tally) -> AsyncIterator[None]:
        listener = stomp.ConnectionListener()
        listener.on_message = tally.add
        connection = self._connect(listener)
        connection.subscribe(f"/queue/{topic}", id="1", ack="auto")
        try:
            yield
        finally:
            await asyncio.to_thread(connection.disconnect)

    @asynccontextmanager
    async def publishing(self, topic: str, tally: Tally) -> AsyncIterator[Send]:
        listener = stomp.ConnectionListener()
        listener.on_receipt = tally.add
        connection = self._connect(listener)

        def send_all(bodies: Sequence[str]) -> None:
            for number, body in enumerate(bodies):
                connection.send(f"/queue/{topic}", body, persistent="true", receipt=str(number))

        async def send(bodies: Sequence[str]) -> None:
            await asyncio.to_thread(send_all, bodies)
            await _until(tally)

        try:
            yield send
        finally:
            await asyncio.to_thread(connection.disconnect)

    def _connect(self, listener: Any) -> Any:
        address = urlsplit(self.address)
        connection = stomp.Connection12([(address.hostname, address.port)])
        connection.set_listener("bench", listener)
        connection.connect(wait=True)
        return connection


class SignalR(Bare):
    """signalrcore with its own thread, JSON; the hub itself is the source of events."""

    type = "signalr"
    live = True

    def topic(self) -> str:
        """Return what the hub knows: its events and methods have fixed names."""
        return "event"

    def settings(self, topic: str | None) -> dict[str, Any]:
        inbound = [{"event": topic, "handler": "bench.run"}] if topic else []
        return {"type": "signalr", "url": self.address, "inbound": inbound, "max_invocation": 1_000_000}

    @asynccontextmanager
    async def consuming(self, topic: str, tally: Tally) -> AsyncIterator[None]:
        hub = await self._connect()
        hub.on(topic, tally.add)
        try:
            yield
        finally:
            await asyncio.to_thread(hub.stop)

    @asynccontextmanager
    async def publishing(self, topic: str, tally: Tally) -> AsyncIterator[Send]:
        hub = await self._connect()

        async def send(bodies: Sequence[str]) -> None:
            values = [json.loads(body) for body in bodies]
            await asyncio.to_thread(lambda: [hub.invoke("send", [value], tally.add) for value in values])
            await _until(tally)

        try:
            yield send
        finally:
            await asyncio.to_thread(hub.stop)

    async def fill(self, topic: str, bodies: Sequence[str]) -> None:
        control: Any = self.server
        await control.control("push", count=len(bodies), batch=50, size=len(bodies[0]) - 15)

    async def _connect(self) -> Any:
        opened = Tally(1)
        hub = HubConnectionBuilder().with_url(self.address, options={"skip_negotiation": True}).build()
        hub.on_open(opened.add)
        await asyncio.to_thread(hub.start)
        await _until(opened)
        return hub


async def _until(tally: Tally) -> None:
    """Wait until a library has called back as often as is wanted."""
    if not await asyncio.to_thread(tally.complete.wait, 300):
        raise TimeoutError(f"{tally.count} of {tally.wanted} within 300 s")


SIDES: dict[str, type[Bare]] = {
    "kafka": Kafka,
    "mqtt": Mqtt,
    "mosquitto": Mqtt,
    "hivemq": Mqtt,
    "activemq": ActiveMQ,
    "artemis": ActiveMQ,
    "signalr": SignalR,
}
