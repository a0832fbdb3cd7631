"""What an inbound entry's expressions decide about a message, before it becomes a job."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gateway.errors import ExpressionError
from gateway.expression import Expression, Scope, parse
from gateway.expression.scope import canonical
from gateway.expression.values import boolean, floating, kind
from gateway.job import MAX_PRIORITY
from gateway.message import Message

T = TypeVar("T")

MAX_KEY = 1024
"""Characters of what `dedupe` or `ordering` give."""


@dataclass(slots=True)
class Ruling:
    """What becomes of one message. `error`: an expression had no value, so it ends as a Failed row with this reason."""

    wanted: bool = True
    dedupe: str | None = None
    ordering: bytes | None = None
    priority: int | None = None
    error: str | None = None


NO_RULING: Final = Ruling()
"""Of an entry without expressions."""


class Rules:
    """The expressions of one entry, compiled once. Raises `ValueError` for one that is none."""

    def __init__(self, *, when: str | None, dedupe: str | None, ordering: str | None, priority: str | None) -> None:
        self._when, self._dedupe, self._ordering, self._priority = (
            None if text is None else parse(text) for text in (when, dedupe, ordering, priority)
        )

    def judge(self, message: Message) -> Ruling:
        """Decide about a message. Never raises, whatever the message is."""
        scope, ruling = Scope(message), Ruling()
        wanted = _value("when", self._when, scope, ruling, boolean)
        if wanted is False:
            ruling.wanted = False
            return ruling
        ruling.dedupe = _value("dedupe", self._dedupe, scope, ruling, _key)
        ordering = _value("ordering", self._ordering, scope, ruling, _key)
        ruling.ordering = None if ordering is None else _bytes(ordering)
        ruling.priority = _value("priority", self._priority, scope, ruling, _clamped)
        return ruling


def _value(name: str, expression: Expression | None, scope: Scope, ruling: Ruling, of: Callable[[Any], T]) -> T | None:
    """Return what an expression gives, None if there is none; a failure becomes the ruling's error."""
    if expression is None:
        return None
    try:
        return of(expression.evaluate(scope))
    except ExpressionError as error:
        ruling.error = ruling.error or f"'{name}' has no value for this message: {error}"
        return None


def _key(value: Any) -> str | None:
    if value is None:
        return None
    text = canonical(value)
    if len(text) > MAX_KEY:
        raise ExpressionError(f"a key has at most {MAX_KEY} characters, this one has {len(text)}")
    return text


def _clamped(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, str | bool):
        raise ExpressionError(f"a priority is a number, this is {kind(value)}")
    number = floating(value)
    if number != number:  # noqa: PLR0124 - only NaN differs from itself
        raise ExpressionError("a priority is a number, this is none")
    return int(max(-MAX_PRIORITY, min(MAX_PRIORITY, number)))


def _bytes(text: str) -> bytes:
    """Return the bytes a key came from; half a surrogate pair, which JSON can hold, keeps a form of its own."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
