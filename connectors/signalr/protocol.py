"""Hub messages and their bytes: signalrcore's protocols, with the parts of them replaced that lose what they carry.

Its readers drop a MessagePack frame they cannot read, its writers change numbers and write no answers. Here a message
that cannot be read is an error, and a JSON event keeps the very text in which the hub wrote its arguments.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack  # type: ignore[import-untyped]
from signalrcore.messages.message_type import MessageType  # type: ignore[import-untyped]
from signalrcore.messages.ping_message import PingMessage  # type: ignore[import-untyped]
from signalrcore.protocol.json_hub_protocol import JsonHubProtocol  # type: ignore[import-untyped]
from signalrcore.protocol.messagepack_protocol import MessagePackHubProtocol  # type: ignore[import-untyped]

Frame: TypeAlias = str | bytes


class Event(NamedTuple):
    """What the hub invokes on its clients. `body` is the JSON list `arguments`, as the hub wrote it if it wrote JSON.

    With an `invocation_id` the hub waits for an answer.
    """

    target: str
    body: bytes
    arguments: Sequence[Any]
    headers: Mapping[str, str]
    invocation_id: str | None


class Answer(NamedTuple):
    """A completion: what became of an invocation of ours."""

    invocation_id: str
    error: str | None
    result: Any


class Farewell(NamedTuple):
    """The hub ends the connection."""

    error: str | None


Incoming: TypeAlias = Event | Answer | Farewell


class Json(JsonHubProtocol):  # type: ignore[misc]
    """The JSON protocol, version 1."""

    def parse_messages(self, raw: Frame) -> list[Incoming]:
        """Return the messages of a frame. Raises `ValueError` if it is no frame of this protocol."""
        return list(self.read(raw))

    def read(self, raw: Frame) -> Iterator[Incoming]:
        """Yield the messages of a frame one by one, so that those before a broken one are not lost with it."""
        text = raw if isinstance(raw, str) else raw.decode()
        *records, rest = text.split(self.record_separator)
        for record in records:
            try:
                members = {name: (value, source) for name, value, source in _members(record)}
            except (IndexError, RecursionError) as error:
                raise ValueError("a record is no complete JSON object") from error
            yield from _incoming_json(members)
        if rest:
            raise ValueError("a record does not end")

    def handshake(self) -> Frame:
        """Return what opens a connection."""
        return str(self.encode(self.handshake_message()))

    def ping(self) -> Frame:
        """Return a sign of life."""
        return str(self.encode(PingMessage()))

    def invocation(self, invocation_id: str, target: str, arguments: str | list[Any], headers: dict[str, str]) -> Frame:
        """Return an invocation. Arguments given as JSON text go out as that text, with the numbers as they are."""
        source = arguments if isinstance(arguments, str) else _dump(arguments)
        head = f'{{"type":1,"invocationId":{json.dumps(invocation_id)},"target":{json.dumps(target)}'
        return f'{head},"headers":{_dump(headers)},"arguments":{source}}}{self.record_separator}'

    def completion(self, invocation_id: str, *, result: str | None = None, error: str | None = None) -> Frame:
        """Return the answer to an invocation of the hub's."""
        outcome = {"result": result} if error is None else {"error": error}
        return _dump({"type": 3, "invocationId": invocation_id, **outcome}) + str(self.record_separator)


class MessagePack(MessagePackHubProtocol):  # type: ignore[misc]
    """The MessagePack protocol, version 1."""

    def parse_messages(self, raw: bytes) -> list[Incoming]:
        """Return the messages of a frame. Raises `ValueError` if it is no frame of this protocol."""
        return list(self.read(raw))

    def read(self, raw: Frame) -> Iterator[Incoming]:
        """Yield the messages of a frame one by one, so that those before a broken one are not lost with it."""
        if isinstance(raw, str):
            raise ValueError("text, where MessagePack was agreed on")  # noqa: TRY004 - as all that cannot be read
        at = 0
        while at < len(raw):
            length, at = _length(raw, at)
            if at + length > len(raw):
                raise ValueError("a message does not end")
            yield from _incoming_msgpack(_unpack(raw[at : at + length]))
            at += length

    def handshake(self) -> Frame:
        """Return what opens a connection; it is JSON here too."""
        return str(self.encode(self.handshake_message())).encode()

    def ping(self) -> Frame:
        """Return a sign of life."""
        return bytes(self.encode(PingMessage()))

    def invocation(self, invocation_id: str, target: str, arguments: str | list[Any], headers: dict[str, str]) -> Frame:
        """Return an invocation. Raises `ValueError` for a whole number of more than 64 bits."""
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
        try:
            return self._frame([1, headers, invocation_id, target, values, []])
        except OverflowError as error:
            raise ValueError("MessagePack has no whole numbers of more than 64 bits") from error

    def completion(self, invocation_id: str, *, result: str | None = None, error: str | None = None) -> Frame:
        """Return the answer to an invocation of the hub's."""
        return self._frame([3, {}, invocation_id, 3 if error is None else 1, result if error is None else error])

    def _frame(self, message: list[Any]) -> bytes:
        packed = msgpack.packb(message, unicode_errors="surrogatepass", strict_types=False)
        return bytes(self._to_varint(len(packed))) + bytes(packed)


Protocol: TypeAlias = Json | MessagePack


def _incoming_json(members: Mapping[str, tuple[Any, str]]) -> Iterator[Incoming]:
    def of(name: str) -> Any:
        return members.get(name, (None, ""))[0]

    kind = of("type")
    if kind == MessageType.invocation.value:
        arguments, source = members.get("arguments", ([], "[]"))
        yield _event(
            of("target"), source.encode("utf-8", "surrogatepass"), arguments, of("headers"), of("invocationId")
        )
    elif kind == MessageType.completion.value:
        yield Answer(str(of("invocationId")), _optional(of("error")), of("result"))
    elif kind == MessageType.close.value:
        yield Farewell(_optional(of("error")))


def _incoming_msgpack(fields: Any) -> Iterator[Incoming]:
    try:
        kind = fields[0]
        if kind == MessageType.invocation.value:
            arguments = _plain(fields[4])
            yield _event(fields[3], _dump(arguments).encode(), arguments, fields[1], fields[2])
        elif kind == MessageType.completion.value:
            value = fields[4] if fields[3] in (1, 3) else None
            yield Answer(
                str(fields[2]), _optional(value if fields[3] == 1 else None), _plain(value) if fields[3] == 3 else None
            )
        elif kind == MessageType.close.value:
            yield Farewell(_optional(fields[1]))
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("a message has not the parts of its kind") from error


def _event(target: Any, body: bytes, arguments: Any, headers: Any, invocation_id: Any) -> Event:
    if not isinstance(target, str) or not isinstance(arguments, list):
        raise ValueError("an invocation has no target or no list of arguments")  # noqa: TRY004 - as all else here
    known = {str(name): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
    return Event(target, body, arguments, known, _optional(invocation_id))


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)


_SPACE = re.compile(r"[ \t\r\n]*")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _members(record: str) -> Iterator[tuple[str, Any, str]]:
    """Go through the members of a JSON object: name, value, and the text the value was written in."""

    def skip(position: int) -> int:
        return _SPACE.match(record, position).end()  # type: ignore[union-attr]  # it always matches

    at = skip(0)
    if record[at] != "{":
        raise ValueError("a record is no JSON object")
    at = skip(at + 1)
    while record[at] != "}":
        name, at = _DECODER.raw_decode(record, at)
        at = skip(at)
        if record[at] != ":":
            raise ValueError("a record is no JSON object")
        start = skip(at + 1)
        value, end = _DECODER.raw_decode(record, start)
        yield name, value, record[start:end]
        at = skip(end)
        if record[at] == ",":
            at = skip(at + 1)
        elif record[at] != "}":
            raise ValueError("a record is no JSON object")
    if skip(at + 1) != len(record):
        raise ValueError("something follows a record's JSON object")


def _length(raw: bytes, at: int) -> tuple[int, int]:
    length = 0
    for shift in range(0, 35, 7):
        if at >= len(raw):
            break
        byte, at = raw[at], at + 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, at
    raise ValueError("a message's length cannot be read")


def _unpack(raw: bytes) -> Any:
    try:
        return msgpack.unpackb(raw, timestamp=3, strict_map_key=False, unicode_errors="surrogateescape")
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise ValueError(f"a message is no MessagePack: {type(error).__name__}") from error


def _plain(value: Any) -> Any:
    """Return a MessagePack value as JSON has it: binary as base64, times as text, other names than text as text."""
    if isinstance(value, dict):
        return {name if isinstance(name, str) else _dump(_plain(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, msgpack.ExtType):  # which is a tuple too
        return {"type": value.code, "data": _base64(value.data)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return _base64(value)
    if isinstance(value, float) and (value - value) != 0:
        return {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    return value if value is None or isinstance(value, str | int | float) else value.isoformat()


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_base64)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only escape
        return json.dumps(value, separators=(",", ":"), default=_base64)
    return text


def _base64(value: bytes) -> str:
    """Write bytes as .NET does in JSON."""
    return base64.b64encode(value).decode()
