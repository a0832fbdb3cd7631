"""One connection to an MQTT broker: paho's protocol on the event loop, without a thread once it is connected.

paho's own thread waits with `select`, which no socket beyond number 1023 survives, and dies silently of an error.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from connectors.mqtt.config import Address, MqttConfig, MqttEntry
from connectors.mqtt.link import Paho, explained, open_link
from gateway.errors import ConfigError, DeliveryError, Disconnected, NotConnected

_HOPELESS = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x9D})
"""Reasons to refuse a connection that time alone hardly changes: version, client id, login, ban, method, address."""

_NEVER = frozenset({0x87, 0x90, 0x95, 0x99, 0x9A, 0x9B})
"""Reasons to refuse a message that trying again does not change."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A received message as it came; `packet_id` is 0 for QoS 0. `size` is about how many bytes it holds."""

    packet_id: int
    qos: int
    repeated: bool
    retained: bool
    topic: str
    body: bytes
    content_type: str | None
    headers: tuple[tuple[str, bytes], ...]
    size: int


@dataclass(slots=True)
class Limits:
    """What the broker said about itself when it let us in."""

    session_present: bool = False
    receive_maximum: int = 65_535
    maximum_packet: int = 268_435_455
    maximum_qos: int = 2
    retain: bool = True
    session_expiry: int | None = None


class Client:
    """A connection from `connect` to `close`, never used again: an acknowledgement cannot reach a later one.

    Callbacks run in the event loop, inside of `loop_read`, and only hand over.
    """

    def __init__(self, config: MqttConfig, address: Address, *, session: str, keep: bool) -> None:
        self.limits = Limits()
        self._config, self.address = config, address
        self._session, self._keep = session, keep
        self._loop = asyncio.get_running_loop()
        self._paho: Paho | None = None
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._granted: asyncio.Future[Sequence[ReasonCode]] = self._loop.create_future()
        self._received: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._held = self._held_bytes = 0
        self._reading = self._writing = False
        self._heard = self._looked = 0.0
        self._sent: dict[int, asyncio.Future[str | None]] = {}
        self._window = asyncio.Semaphore(0)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect and log in. Raises `Disconnected`, or `ConfigError` if the broker will hardly change its mind."""
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                self._attach(await self._open())
                await self._connected
        except TimeoutError:
            self.close()
            seconds = self._config.connect_timeout
            raise Disconnected(f"{self.address} did not answer within {seconds:g} seconds") from None
        except (OSError, ValueError) as error:
            self.close()
            raise explained(self.address, error) from error
        except BaseException:
            self.close()
            raise

    async def subscribe(self, entries: Sequence[MqttEntry]) -> None:
        """Subscribe, and wait for the broker's consent. Raises `ConfigError` if it refuses, or grants less."""
        wanted: list[tuple[str, Any]] = [(entry.subscription, min(entry.qos, 1)) for entry in entries]
        if self._config.version == 5:
            wanted = [(entry.subscription, _options(entry)) for entry in entries]
        self._alive.subscribe(wanted)
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                granted = await self._granted
        except TimeoutError:
            raise Disconnected(f"{self.address} did not answer the subscription in time") from None
        for entry, reason in zip(entries, granted, strict=False):
            name = entry.subscription
            if reason.is_failure:
                raise ConfigError([f"{self.address} refuses the subscription to {name}: {reason}"])
            if reason.value < min(entry.qos, 1):
                raise ConfigError([f"{self.address} grants only QoS 0 to {name}: say qos: 0 if that will do"])

    async def watch(self) -> NoReturn:
        """Ask for signs of life. Raises `Disconnected` once the connection is lost, or the broker frozen."""
        keepalive = self._config.keepalive
        pause = keepalive / 8
        pinged = self._loop.time()
        while True:
            await asyncio.wait({self._lost}, timeout=pause)
            if self._lost.done():
                raise Disconnected(self._lost.result())
            now = self._loop.time()
            if now - self._looked > 3 * pause or not self._reading:
                self._heard = now  # it was this process that did not look
            self._looked = now
            if now - self._heard > keepalive:
                raise Disconnected(f"nothing was heard from {self.address} for {keepalive} seconds")
            if now - pinged >= keepalive / 3:
                pinged = now
                self._alive.ping()

    def close(self) -> None:
        """Say goodbye if it takes no waiting, and close. What was not acknowledged stays with the broker."""
        if self._paho is not None and not self._lost.done():
            if self._paho.is_connected():
                self._paho.disconnect()
                self._paho.loop_write()
            self._paho.drop()
        self._lose("the connection was closed")

    # -- in ------------------------------------------------------------------------------------------------------------

    async def take(self, count: int, size: int) -> list[Delivery]:
        """Wait for messages, and return the oldest: at most `count`, of about `size` bytes. They count as held."""
        while not self._received:
            self._arrived.clear()
            await self._arrived.wait()
        taken = [self._received.popleft()]
        size -= taken[0].size
        while self._received and len(taken) < count and self._received[0].size <= size:
            taken.append(self._received.popleft())
            size -= taken[-1].size
        return taken

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge in the order in which they came, and make room for as many."""
        if packet_ids := [each.packet_id for each in deliveries if each.qos == 1]:
            self._alive.acknowledge(packet_ids)
        for each in deliveries:
            if each.qos == 2:  # of a subscription that somebody else made for this session
                self._alive.ack(each.packet_id, 2)
        self._held -= len(deliveries)
        self._held_bytes -= sum(each.size for each in deliveries)
        if not self._reading and not self._full:
            self._resume()

    # -- out -----------------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, body: bytes, properties: Properties | None) -> str | None:
        """Send with QoS 1 and wait for the broker's answer. Raises `DeliveryError` or `Disconnected`."""
        try:
            async with asyncio.timeout(self._config.publish_timeout):
                await self._window.acquire()
                return await self._send(topic, body, properties)
        except TimeoutError:
            seconds = self._config.publish_timeout
            raise DeliveryError(f"{self.address} did not confirm the message within {seconds:g} seconds") from None

    async def _send(self, topic: str, body: bytes, properties: Properties | None) -> str | None:
        if self._paho is None or self._lost.done():
            self._window.release()
            raise NotConnected(f"it was not sent: the connection to {self.address} is lost")
        try:
            info = self._paho.publish(topic, body, 1, self._config.retain, properties)
        except (ValueError, struct.error) as error:
            self._window.release()
            raise DeliveryError(f"this cannot be an MQTT message: {error}", permanent=True) from error
        if info.rc != paho.MQTT_ERR_SUCCESS:
            self._window.release()
            raise NotConnected(f"it was not sent: {paho.error_string(info.rc)}")
        answer: asyncio.Future[str | None] = self._loop.create_future()
        self._sent[info.mid] = answer
        return await answer  # its place in the window is free once the broker has answered, not before

    def _on_publish(self, _c: Any, _u: Any, packet_id: int, reason: ReasonCode, properties: Properties) -> None:
        future = self._sent.pop(packet_id, None)
        self._window.release()
        if future is None or future.done():
            return
        text = getattr(properties, "ReasonString", None)
        if reason.is_failure:
            said = f"{self.address} refused the message: {reason}{f' ({text})' if text else ''}"
            future.set_exception(DeliveryError(said, permanent=reason.value in _NEVER))
        else:
            future.set_result(text or (None if reason.value == 0 else str(reason)))

    # -- paho ----------------------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> Paho:
        if self._paho is None or self._lost.done():
            raise Disconnected(self._lost.result() if self._lost.done() else f"{self.address} is not connected")
        return self._paho

    @property
    def _full(self) -> bool:
        # Brokers overrun what they were told; and an answer to what was sent is behind what is not read.
        return self._held > self._config.receive_maximum or self._held_bytes > self._config.max_pending_bytes

    async def _open(self) -> Paho:
        return await open_link(self._config, self.address, session=self._session, keep=self._keep)

    def _attach(self, client: Paho) -> None:
        self._paho = client
        client.heard = self._hear
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe = lambda _c, _u, _m, reasons, _p: _put(self._granted, reasons)
        client.on_publish, client.on_message = self._on_publish, self._on_message
        client.on_socket_close = lambda *_: self._detach()
        client.on_socket_register_write = lambda *_: self._wake()
        self._hear()
        self._looked = self._heard
        self._resume()
        self._write()

    def _wake(self) -> None:
        self._loop.call_soon(self._write)

    def _detach(self) -> None:
        if self._paho is not None:
            self._loop.remove_reader(self._paho.descriptor)
            self._loop.remove_writer(self._paho.descriptor)
        self._reading = self._writing = False
        self._loop.call_soon(self._lose, f"{self.address} closed the connection")  # unless a better reason comes first

    def _resume(self) -> None:
        if self._paho is not None and self._paho.socket() is not None:
            self._reading, self._heard = True, self._loop.time()
            self._loop.add_reader(self._paho.descriptor, self._read)
            self._loop.call_soon(self._read)  # what lies in the buffers wakes nobody

    def _pause(self) -> None:
        if self._reading and self._paho is not None:
            self._reading = False
            self._loop.remove_reader(self._paho.descriptor)

    def _hear(self) -> None:
        self._heard = self._loop.time()

    def _read(self) -> None:
        client = self._paho
        if client is None or not self._reading:
            return
        try:
            for _ in range(200):
                if client.loop_read() != paho.MQTT_ERR_SUCCESS or client.socket() is None:
                    self._lose(f"{self.address} closed the connection")
                    return
                if self._full:
                    self._pause()
                    return
                if not client.holds_more:
                    return
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes do to the parser, this life is over
            self._lose(f"{self.address} sent what could not be read: {error!r}")
            return
        self._loop.call_soon(self._read)  # others have their turn in between

    def _write(self) -> None:
        client = self._paho
        if client is None or client.socket() is None:
            return
        if client.loop_write() != paho.MQTT_ERR_SUCCESS or client.socket() is None:
            self._lose(f"the connection to {self.address} was lost")
        elif client.want_write() != self._writing:
            self._writing = client.want_write()
            if self._writing:
                self._loop.add_writer(client.descriptor, self._write)
            else:
                self._loop.remove_writer(client.descriptor)

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)
        if not self._connected.done():
            self._connected.set_exception(Disconnected(reason))
        if not self._granted.done():
            self._granted.set_exception(Disconnected(reason))
        for future in (self._connected, self._granted):
            if not future.cancelled():
                future.exception()  # seen: nobody may be waiting for it
        for waiting in self._sent.values():
            if not waiting.done():
                waiting.set_exception(Disconnected(f"{reason}, before the message was confirmed"))
                waiting.exception()
        self._sent.clear()
        self._window.release()  # whoever waits for room sees that there is no connection, and lets the next one see

    def _on_connect(self, _c: Any, _u: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            text = f"{self.address} refuses the connection: {reason}"
            hopeless = reason.value in _HOPELESS
            _fail(self._connected, ConfigError([text]) if hopeless else Disconnected(text))
            return
        limits = self.limits
        limits.session_present = bool(flags.session_present)
        limits.receive_maximum = getattr(properties, "ReceiveMaximum", limits.receive_maximum)
        limits.maximum_packet = getattr(properties, "MaximumPacketSize", limits.maximum_packet)
        limits.maximum_qos = getattr(properties, "MaximumQoS", limits.maximum_qos)
        limits.retain = bool(getattr(properties, "RetainAvailable", 1))
        limits.session_expiry = getattr(properties, "SessionExpiryInterval", None)
        for _ in range(min(self._config.max_inflight, limits.receive_maximum)):
            self._window.release()
        _put(self._connected, None)

    def _on_disconnect(self, _c: Any, _u: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        failure = self._paho.failure if self._paho is not None else None
        told = f": {reason}" if flags.is_disconnect_packet_from_server else f": {failure}" if failure else ""
        self._lose(f"{self.address} closed the connection{told}")

    def _on_message(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        headers, content_type = _carried(message)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = message._topic.decode("utf-8", "replace")  # noqa: SLF001 - else it would come again for ever
        delivery = Delivery(
            packet_id=message.mid,
            qos=message.qos,
            repeated=message.dup,
            retained=message.retain,
            topic=topic,
            body=bytes(message.payload),
            content_type=content_type,
            headers=headers,
            size=len(message.payload) + sum(len(value) for _, value in headers) + 500,
        )
        self._held += 1
        self._held_bytes += delivery.size
        self._received.append(delivery)
        self._arrived.set()


def _options(entry: MqttEntry) -> SubscribeOptions:
    kept = (
        SubscribeOptions.RETAIN_SEND_IF_NEW_SUB if entry.retained == "receive" else SubscribeOptions.RETAIN_DO_NOT_SEND
    )
    return SubscribeOptions(qos=min(entry.qos, 1), noLocal=entry.no_local, retainHandling=kept)


def _carried(message: paho.MQTTMessage) -> tuple[tuple[tuple[str, bytes], ...], str | None]:
    """Return the headers that an MQTT 5 message has, and its content type."""
    headers: list[tuple[str, bytes]] = [("mqtt-retained", b"true")] if message.retain else []
    properties = message.properties
    if properties is None:
        return tuple(headers), None
    carried = vars(properties)
    headers += [(name, value.encode()) for name, value in carried.get("UserProperty", ())]
    if "ResponseTopic" in carried:
        headers.append(("mqtt-response-topic", carried["ResponseTopic"].encode()))
    if "CorrelationData" in carried:
        headers.append(("mqtt-correlation-data", bytes(carried["CorrelationData"])))
    if "MessageExpiryInterval" in carried:
        headers.append(("mqtt-message-expiry", b"%d" % carried["MessageExpiryInterval"]))
    return tuple(headers), carried.get("ContentType")


def _put(future: "asyncio.Future[Any]", value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
