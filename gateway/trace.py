"""The trace that a message belongs to (W3C Trace Context), so that it goes on in what its job sends and starts."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from gateway.message import Json, Message

NAMES: Final = ("traceparent", "tracestate")
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?")
MAX_LENGTH: Final = 1024
"""Characters of either; more is no trace but a burden."""


def trace_of(metadata: Json) -> Mapping[str, str]:
    """Return `traceparent`, and `tracestate` if there is one, of a job's metadata; nothing unless they are valid.

    What the job was enqueued with counts before the headers of its message.
    """
    given: Mapping[str, str | None] = {name: _text(metadata.get(name)) for name in NAMES}
    if given["traceparent"] is None:
        message = Message.from_row(None, {"headers": metadata.get("headers")})
        names = [name.lower() for name, _ in message.headers]
        given = {name: message.header(name) if names.count(name) == 1 else None for name in NAMES}
    if not _is_parent(given["traceparent"]):
        return {}
    return {name: value for name, value in given.items() if value is not None and _is_plain(value)}


def is_traced(names: Iterable[str]) -> bool:
    """Say whether one of these names, of headers or metadata, says to which trace a message belongs."""
    return any(name.lower() == "traceparent" for name in names)


def _is_parent(value: str | None) -> bool:
    match = None if value is None else _PARENT.fullmatch(value)
    return match is not None and not (match["more"] and match[0].startswith("00"))


def _is_plain(value: str) -> bool:
    return len(value) <= MAX_LENGTH and value.isascii() and value.isprintable()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
