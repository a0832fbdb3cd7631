"""What was received becomes messages for the inbox, and a message becomes what is sent. Values and decisions only."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from paho.mqtt.properties import Properties

from connectors.mqtt.client import Delivery, Limits
from connectors.mqtt.config import MqttConfig, MqttEntry
from connectors.mqtt.topics import clean, complaint
from connectors.mqtt.window import Window, digest_of
from gateway.errors import DeliveryError
from gateway.message import Message


@dataclass(slots=True)
class Call:
    """What one `receive` is given. `open`: more may be added; `marked`: some of it stands in the window."""

    entry: MqttEntry
    messages: list[Message] = field(default_factory=list)
    open: bool = True
    marked: bool = False


class Sorter:
    """Gives each message its entry and its captures, and sees which of them are redeliveries.

    The last message of a call carries the marks of all before it, so that they are stored together; a redelivery is a
    call of its own and carries a position that is stored already, which makes the inbox count and forget it.
    """

    def __init__(self, entries: Sequence[MqttEntry], window: Window, warn: Callable[[str], None]) -> None:
        self._filters = [(entry, entry.filter) for entry in entries]
        self._window, self._warn = window, warn
        self._warned = False
        self._route = lru_cache(maxsize=4096)(self._find)

    def sort(self, deliveries: Sequence[Delivery]) -> list[Call]:
        """Return the calls to make, all at once and in this order."""
        calls: list[Call] = []
        for delivery in deliveries:
            entry, parameters = self._route(delivery.topic)
            if entry is None:
                self._complain(delivery.topic)
            elif not delivery.retained or entry.retained == "receive":
                self._add(calls, delivery, entry, _message(delivery, parameters))
        self._close(calls)
        return calls

    def _add(self, calls: list[Call], delivery: Delivery, entry: MqttEntry, message: Message) -> None:
        window = self._window
        digest = digest_of(message) if delivery.qos else 0
        if delivery.qos and delivery.repeated and window.knows(delivery.packet_id, digest):
            self._close(calls)
            known = replace(message, position=window.repeated(delivery.packet_id))
            calls.append(Call(entry, [known], open=False))
            return
        if not calls or not calls[-1].open or calls[-1].entry is not entry or (delivery.qos and not window.room):
            self._close(calls)
            calls.append(Call(entry))
        if delivery.qos:
            window.add(delivery.packet_id, digest)
            calls[-1].marked = True
        calls[-1].messages.append(message)

    def _close(self, calls: list[Call]) -> None:
        if calls and calls[-1].open:
            calls[-1].open = False
            if calls[-1].marked:
                calls[-1].messages[-1] = replace(calls[-1].messages[-1], position=self._window.position())

    def _find(self, topic: str) -> tuple[MqttEntry | None, Mapping[str, str]]:
        for entry, each in self._filters:
            captures = each.match(topic)
            if captures is not None:
                return entry, captures
        return None, {}

    def _complain(self, topic: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(
                f"{topic!r} fits no entry, such messages are acknowledged and forgotten: the session still has a"
                " subscription that the configuration has not"
            )


def refuse(config: MqttConfig, limits: Limits, message: Message) -> None:
    """Raise a permanent `DeliveryError` for what this broker will never take."""
    reason = complaint(message.topic)
    if reason is not None:
        raise DeliveryError(f"{message.topic!r} is no topic to publish to: {reason}", permanent=True)
    if limits.maximum_qos == 0:
        raise DeliveryError("the broker takes QoS 0 only, which confirms nothing", permanent=True)
    if config.retain and not limits.retain:
        raise DeliveryError("the broker keeps no messages, and 'retain' is on", permanent=True)
    headers = sum(len(name) + len(value) + 5 for name, value in _pairs(message))
    if len(message.topic.encode()) + len(message.body) + headers + 20 > limits.maximum_packet:
        size = f"{limits.maximum_packet} bytes"
        raise DeliveryError(f"the message is larger than the broker takes ({size})", permanent=True)


class Packed(Properties):
    """Properties as bytes, with their length: paho's own would take half of the time of a publish."""

    packed: bytes

    def __init__(self, packed: bytes) -> None:
        length, more = bytearray(), len(packed)
        while more >= 128:
            length.append(more % 128 | 128)
            more //= 128
        length.append(more)
        object.__setattr__(self, "packed", bytes(length) + packed)

    def pack(self) -> bytes:
        """Return them as they stand in a packet."""
        return self.packed


def properties_of(message: Message) -> Packed:
    """Return the MQTT 5 properties of a message: those that have a name of their own, the rest as user properties."""
    single: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    if message.content_type is not None:
        single[b"\x03"] = _string(clean(message.content_type).encode())
    for name, value in _pairs(message):
        text = _text(value)
        if name == "mqtt-correlation-data" and b"\x09" not in single:
            single[b"\x09"] = _string(value)
        elif name == "mqtt-response-topic" and b"\x08" not in single and complaint(text) is None:
            single[b"\x08"] = _string(text.encode())
        elif name == "mqtt-message-expiry" and b"\x02" not in single and re.fullmatch(r"[0-9]{1,9}", text):
            single[b"\x02"] = int(text).to_bytes(4, "big")
        else:
            pairs.append(b"\x26" + _string(clean(name).encode()) + _string(text.encode()))
    return Packed(b"".join([*(identifier + value for identifier, value in single.items()), *pairs]))


def _string(data: bytes) -> bytes:
    if len(data) > 65_535:
        raise DeliveryError("a header is longer than MQTT can carry (65535 bytes)", permanent=True)
    return len(data).to_bytes(2, "big") + data


def _pairs(message: Message) -> Iterator[tuple[str, bytes]]:
    for name, value in message.headers:
        if name != "mqtt-retained" and (name != "message-id" or message.message_id is None):
            yield name, value
    if message.message_id is not None:
        yield "message-id", message.message_id.encode()


def _message(delivery: Delivery, parameters: Mapping[str, str]) -> Message:
    return Message(
        topic=delivery.topic,
        body=delivery.body,
        headers=delivery.headers,
        content_type=delivery.content_type,
        parameters=parameters,
    )


def _text(value: bytes) -> str:
    try:
        return clean(value.decode())
    except UnicodeDecodeError:
        return clean(value.decode("latin-1"))
