"""STOMP 1.2 between bytes and messages: what is cut from a stream, and which headers carry what."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from gateway.errors import DeliveryError
from gateway.message import Message

Headers: TypeAlias = dict[str, str]

MAX_HEAD = 1024 * 1024
"""Bytes of a frame's headers at most, and of all that comes without a frame."""

MAX_HEADER = 10_000
"""Bytes of one header, its name included: with more, Classic (10 KiB) ends the connection."""
MAX_HEADERS = 900
"""Headers of one frame, likewise (1000)."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,18})[ \t]*\r?$", re.MULTILINE)
_ARTEMIS_ID = re.compile(r"[0-9]+,([0-9]+)")
_TEXT_TYPE = re.compile(r"text/|application/(json|xml|javascript)\b|[^;]*\+(json|xml)\b", re.IGNORECASE)
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", ":": "\\c", "\x00": "\ufffd"})

_EPOCH = datetime.fromtimestamp(0, UTC)

_NOT_STORED = frozenset({"subscription", "ack", "content-length", "content-type", "destination", "receipt"})
_OURS = frozenset({
    "destination", "destination-type", "content-length", "content-type", "persistent", "receipt", "receipt-id",
    "transaction", "id", "ack", "subscription", "selector", "message-id", "redelivered", "timestamp", "session",
    "server", "version", "accept-version", "host", "login", "passcode", "heart-beat", "client-id", "x-message-id",
    "amq-msg-type", "transformation", "amq_scheduled_cron",
})  # fmt: skip
"""Names that belong to the protocol, to the broker or to what a message has fields for: none is taken from headers."""
_NUMBERS = {
    "priority": re.compile(r"[0-9]"),
    "expires": re.compile(r"[0-9]{1,18}"),
    "amq_scheduled_delay": re.compile(r"[0-9]{1,18}"),
    "amq_scheduled_period": re.compile(r"[0-9]{1,18}"),
    "amq_scheduled_repeat": re.compile(r"[0-9]{1,9}"),
}
"""Where Classic cuts the connection, without a word, if there is anything else."""


class Splitter:
    """Cuts a stream into frames, a NUL byte in a body included, in time that grows with its length only.

    stomp.py's own reader loses a frame that follows two line ends in one read, as heart-beats are.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._looked = 0
        self._end: int | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what has come, and give each frame that is whole. Raises `ValueError` if this is no STOMP."""
        self._buffer += data
        while self._whole():
            assert self._end is not None
            frame = bytes(self._buffer[: self._end])
            if self._buffer[self._end]:
                raise ValueError("a frame does not end where its content-length says")
            del self._buffer[: self._end + 1]
            self._looked, self._end = 0, None
            yield frame

    def __len__(self) -> int:
        """Return how many bytes wait for the rest of their frame."""
        return len(self._buffer)

    def _whole(self) -> bool:
        if self._end is None:
            self._end = self._find_end()
        return self._end is not None and self._end < len(self._buffer)

    def _find_end(self) -> int | None:
        """Return where the NUL is or will be that ends the first frame, if that can be told."""
        if not self._looked:
            blank = len(self._buffer) - len(self._buffer.lstrip(b"\r\n"))
            del self._buffer[:blank]
        head = _HEAD_END.search(self._buffer)
        if head is None:
            if len(self._buffer) > MAX_HEAD:
                raise ValueError("a frame's headers are too long")
            return None
        length = _LENGTH.search(self._buffer, 0, head.start() + 1)
        if length is not None:
            return head.end() + int(length[1])
        end = self._buffer.find(b"\x00", max(head.end(), self._looked))
        self._looked = len(self._buffer)
        return None if end < 0 else end


def received(headers: Headers, body: bytes, key_header: str, scope: str | None) -> Message:
    """Return the message of a MESSAGE frame. Without a `scope` its redeliveries are not recognised."""
    key = headers.get(key_header)
    if key is None and key_header == "JMSXGroupID":
        key = headers.get("_AMQ_GROUP_ID")
    return Message(
        topic=headers.get("destination", ""),
        body=body,
        key=None if key is None else key.encode(),
        headers=tuple((name, value.encode()) for name, value in headers.items() if name not in _NOT_STORED),
        content_type=headers.get("content-type"),
        dedupe_id=None if scope is None else dedupe_id(headers),
        dedupe_scope=scope or "",
        timestamp=_timestamp(headers.get("timestamp")),
    )


def dedupe_id(headers: Headers) -> str | None:
    """Return what is the same whenever a message is delivered again, and different for any other message.

    Classic's ids are unique in the world. Artemis puts the consumer's number before the message's own, which counts
    from the start of that broker's journal: the number alone would hide a message of another broker, or of a new one.
    """
    message_id = headers.get("message-id")
    if message_id is None or message_id.startswith("ID:"):
        return message_id
    artemis = _ARTEMIS_ID.fullmatch(message_id)
    return f"{artemis[1] if artemis else message_id}@{headers.get('timestamp', '')}"


def sendable(message: Message, *, as_text: bool | None) -> Headers:
    """Return the headers of a SEND frame, names escaped; stomp.py escapes the values.

    Without `content-length` a body arrives in Java as text, with it as bytes; None decides by the content type.
    Raises a permanent `DeliveryError` for headers that no broker takes.
    """
    headers: Headers = {}
    for name, raw in message.headers:
        value = _clean(_decoded(raw))
        if _is_free(name.lower(), value):
            headers.setdefault(name.translate(_ESCAPES), value)
    headers["persistent"] = "true"
    if message.message_id is not None:
        headers["x-message-id"] = _clean(message.message_id)
    if message.key is not None:
        headers["JMSXGroupID"] = _clean(_decoded(message.key))
    if message.content_type is not None:
        headers["content-type"] = _clean(message.content_type)
    if as_text is None:
        as_text = message.content_type is not None and _TEXT_TYPE.match(message.content_type) is not None
    if not (as_text and _is_text(message.body)):
        headers["content-length"] = str(len(message.body))
    _check_lengths(headers)
    return headers


def _check_lengths(headers: Headers) -> None:
    for name, value in headers.items():
        if len(name.encode()) + len(value.translate(_ESCAPES).encode()) > MAX_HEADER:
            raise DeliveryError(f"the header {name[:40]!r} is longer than {MAX_HEADER} bytes", permanent=True)
    if len(headers) > MAX_HEADERS:
        raise DeliveryError(f"it has more than {MAX_HEADERS} headers", permanent=True)


def acknowledgements(ids: Iterable[str]) -> bytes:
    """Return the ACK frames of these ids, in one piece."""
    return b"".join(b"ACK\nid:%b\n\n\x00" % ack.translate(_ESCAPES).encode() for ack in ids)


def destination(name: str) -> str:
    """Return where a message goes: a bare name is a queue."""
    return name if name.startswith("/") else f"/queue/{name}"


def _is_free(name: str, value: str) -> bool:
    """Say whether a header may be sent under its own name: one that a broker trips over is left out."""
    if not name or name in _OURS or name.startswith(("jms", "_amq")):
        return False
    number = _NUMBERS.get(name)
    return number is None or number.fullmatch(value) is not None


def _is_text(body: bytes) -> bool:
    try:
        return "\x00" not in body.decode()
    except UnicodeDecodeError:
        return False


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _clean(text: str) -> str:
    """STOMP cannot escape NUL, which would end the frame."""
    return text.replace("\x00", "\ufffd")


def _timestamp(milliseconds: str | None) -> datetime | None:
    try:
        return (
            None if milliseconds is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(milliseconds))
        )
    except (ValueError, OverflowError):
        return None
