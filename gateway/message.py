"""The unit that connectors carry, and how it is kept in a job's row.

A message's body is the row's payload; everything else goes into the row's metadata as JSON, so that SQL users
can read it and so that no byte of it can refuse a row: what is not plain text is kept as `{"base64": "…"}`.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from gateway.errors import PayloadError

Json: TypeAlias = dict[str, Any]


class Position(NamedTuple):
    """Where a message stands in its source's log. `next_offset` is the offset to read after it.

    `state` is text that its connector keeps beside the position, for itself: stored with the message, or not at all.
    """

    cluster: str
    topic: str
    partition: int
    offset: int
    next_offset: int
    topic_id: str = ""
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A value: it has no acknowledgement state and no broker type, and the gateway never decodes its body.

    `topic` is the real one: Kafka or MQTT topic, STOMP destination, SignalR target, HTTP path. `headers` may
    repeat and may be binary. `parameters` are named captures of a path or filter. `dedupe_id` makes redeliveries
    one job; `dedupe_scope` narrows where it is unique (HTTP: path and principal). A `tombstone` has no body.
    """

    topic: str
    body: bytes = b""
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    content_type: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    position: Position | None = None
    dedupe_id: str | None = None
    dedupe_scope: str = ""
    timestamp: datetime | None = None
    tombstone: bool = False
    message_id: str | None = None
    """Outbound: the job's id, the same on every repeat, which receivers use to drop duplicates."""

    def header(self, name: str) -> str | None:
        """Return the first header of that name, in any case, decoded as UTF-8 or else Latin-1; None if absent."""
        wanted = name.lower()
        return next((_text(value) for key, value in self.headers if key.lower() == wanted), None)

    def text(self) -> str:
        """Return the body as UTF-8 text. Raises `PayloadError` if it is none."""
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise PayloadError(f"the message's body is not UTF-8 text: {error}") from error

    def json(self) -> Any:
        """Return the body as JSON. Raises `PayloadError` if it is none (NaN and deep nesting included)."""
        try:
            return json.loads(self.body, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"the message's body is not JSON: {error}") from error

    def to_metadata(self) -> Json:
        """Return all but the body as JSON values; absent parts are left out."""
        data: Json = {"topic": _safe(self.topic)}
        if self.key is not None:
            data["key"] = _pack(self.key)
        if self.headers:
            data["headers"] = [[_safe(name), _pack(value)] for name, value in self.headers]
        if self.content_type is not None:
            data["content_type"] = _safe(self.content_type)
        if self.parameters:
            data["parameters"] = {_safe(name): _safe(value) for name, value in self.parameters.items()}
        if self.position is not None:
            data["position"] = self.position._asdict()
        if self.dedupe_id is not None:
            data["dedupe_id"] = _safe(self.dedupe_id)
        if self.timestamp is not None:
            data["timestamp"] = self.timestamp.isoformat()
        return data

    @classmethod
    def from_row(cls, payload: bytes | None, metadata: Json, *, message_id: str | None = None) -> "Message":
        """Rebuild a message from a row's payload and metadata.

        Rows written by hand may have anything there: what is missing or of another type is left out.
        """
        parameters, position, timestamp = (metadata.get(k) for k in ("parameters", "position", "timestamp"))
        return cls(
            topic=str(metadata.get("topic") or ""),
            body=payload or b"",
            key=None if metadata.get("key") is None else _unpack(metadata["key"]),
            headers=_headers(metadata.get("headers")),
            content_type=_optional_text(metadata.get("content_type")),
            parameters={str(k): str(v) for k, v in parameters.items()} if isinstance(parameters, dict) else {},
            position=_position(position),
            dedupe_id=_optional_text(metadata.get("dedupe_id")),
            timestamp=_timestamp(timestamp),
            tombstone=payload is None,
            message_id=message_id,
        )


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _safe(text: str) -> str:
    """PostgreSQL's JSON cannot hold NUL, and no database takes half of a surrogate pair."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _pack(value: bytes) -> str | dict[str, str]:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\x00"
    return {"base64": base64.b64encode(value).decode()} if "\x00" in text else text


def _unpack(value: Any) -> bytes:
    if isinstance(value, dict) and isinstance(value.get("base64"), str):
        try:
            return base64.b64decode(value["base64"])
        except ValueError:
            return str(value["base64"]).encode("utf-8", "replace")
    return value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value).encode()


def _headers(value: Any) -> tuple[tuple[str, bytes], ...]:
    pairs = value.items() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return tuple((str(pair[0]), _unpack(pair[1])) for pair in pairs if len(pair) == 2)


def _optional_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _position(value: Any) -> Position | None:
    try:
        return Position(**value) if isinstance(value, dict) else None
    except TypeError:
        return None


def _timestamp(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
