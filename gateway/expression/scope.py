"""What an expression sees of a message."""

import json
from functools import cached_property
from typing import Any

from gateway.errors import ExpressionError, PayloadError
from gateway.message import Message

VARIABLES = ("topic", "key", "headers", "parameters", "content_type", "body")


class Scope:
    """One message's variables, each made when it is first used: shared by all expressions over that message.

    Bytes that are not UTF-8 become text that no other bytes become, so that different keys stay different.
    """

    def __init__(self, message: Message) -> None:
        self._message = message

    @property
    def topic(self) -> str:
        """Where the message came from."""
        return self._message.topic

    @property
    def key(self) -> str | None:
        """Its key, null if it has none."""
        return None if self._message.key is None else _text(self._message.key)

    @property
    def content_type(self) -> str | None:
        """Its media type, null if its source did not say."""
        return self._message.content_type

    @cached_property
    def headers(self) -> "Headers":
        """The first header of each name."""
        return Headers((name.lower(), _text(value)) for name, value in reversed(self._message.headers))

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The captures of the entry's path or topic."""
        return dict(self._message.parameters)

    @property
    def body(self) -> Any:
        """The decoded body; null if there is none. Raises `ExpressionError` if it is not JSON."""
        value = self._decoded
        if isinstance(value, ExpressionError):
            raise value
        return value

    @cached_property
    def _decoded(self) -> Any:
        if self._message.tombstone or not self._message.body:
            return None
        try:
            return self._message.json()
        except PayloadError as error:
            return ExpressionError(str(error))


class Headers(dict[str, str]):
    """Headers by lower-case name, found in any case."""

    def get(self, key: Any, default: Any = None) -> Any:
        """Return a header's value."""
        return super().get(key.lower(), default)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(key.lower())


def canonical(value: Any) -> str:
    """Return a value as the text that stands for it in a key. Raises `ExpressionError` for objects and null."""
    match value:
        case str():
            return value
        case bool() | int() | float():
            return json.dumps(value)
        case list() if all(item is None or isinstance(item, str | bool | int | float) for item in value):
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        case _:
            raise ExpressionError("a key is text, a number, true or false, or a list of these")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
