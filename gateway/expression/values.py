"""What the operators and functions do with values: JSON's, and nothing else."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from gateway.errors import ExpressionError
from gateway.expression.scope import canonical

MAX_TEXT: Final = 65_536
"""Characters of a text that an expression makes."""
_WHOLE = re.compile(r"[-+]?[0-9]+")
_FLOATING = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_RANGE: Final = range(-(2**63), 2**63)


def kind(value: Any) -> str:
    """Return what a value is, as people call it; never the value itself, which may be secret."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


def boolean(value: Any) -> bool:
    """Return true or false. Raises `ExpressionError` for anything else."""
    if value is True or value is False:
        return bool(value)
    raise ExpressionError(f"expected true or false, this is {kind(value)}")


def member(value: Any, name: Any) -> Any:
    """Return what an object has under a name, or a list at a place; null if it has nothing there."""
    match value, name:
        case None, _:
            return None
        case dict(), str():
            return value.get(name)
        case list(), int() if not isinstance(name, bool):
            return value[name] if 0 <= name < len(value) else None
        case _:
            raise ExpressionError(f"{kind(value)} has no member that is named by {kind(name)}")


def equal(left: Any, right: Any) -> bool:
    """Compare any two values; those of different kinds differ."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def contained(item: Any, container: Any) -> bool:
    """Say whether a list holds an item, or an object a name. Nothing is in null."""
    match container:
        case None:
            return False
        case list():
            return any(equal(item, each) for each in container)
        case dict():
            return isinstance(item, str) and item in container
        case _:
            raise ExpressionError(f"'in' looks into a list or an object, this is {kind(container)}")


def ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Return a comparison of two numbers or two texts, which raises `ExpressionError` for anything else."""

    def compared(left: Any, right: Any) -> bool:
        if _numbers(left, right) or (isinstance(left, str) and isinstance(right, str)):
            return compare(left, right)
        raise ExpressionError(f"{kind(left)} cannot be compared with {kind(right)}")

    return compared


def add(left: Any, right: Any) -> Any:
    """Add two numbers, or put two texts together."""
    if isinstance(left, str) and isinstance(right, str):
        if len(left) + len(right) > MAX_TEXT:
            raise ExpressionError(f"a text that an expression makes has at most {MAX_TEXT} characters")
        return left + right
    return _calculated(operator.add, left, right)


def subtract(left: Any, right: Any) -> Any:
    """Subtract numbers."""
    return _calculated(operator.sub, left, right)


def multiply(left: Any, right: Any) -> Any:
    """Multiply numbers."""
    return _calculated(operator.mul, left, right)


def divide(left: Any, right: Any) -> Any:
    """Divide numbers; whole ones give a whole one, rounded towards zero."""
    return _calculated(_quotient, left, right)


def remainder(left: Any, right: Any) -> Any:
    """Return what is left of a division, with the sign of the dividend."""
    return _calculated(lambda a, b: a - b * _quotient(a, b) if _whole(a, b) else math.fmod(a, b), left, right)


def negate(value: Any) -> Any:
    """Return the negative number."""
    return subtract(0, value)


def size(value: Any) -> int:
    """Return the number of characters, items or members."""
    if isinstance(value, str | list | dict):
        return len(value)
    raise ExpressionError(f"{kind(value)} has no size")


def whole(value: Any) -> int:
    """Return a number without its fraction, or the whole number that a text is."""
    if _is_number(value) or (isinstance(value, str) and _WHOLE.fullmatch(value)):
        with suppress(ValueError, OverflowError):
            number = int(value)
            if number in _RANGE:
                return number
    raise ExpressionError(f"{kind(value)} that is no whole number of 64 bits")


def floating(value: Any) -> float:
    """Return a number as a floating one, or the number that a text is."""
    if _is_number(value) or (isinstance(value, str) and _FLOATING.fullmatch(value)):
        with suppress(OverflowError):
            return float(value)
    raise ExpressionError(f"{kind(value)} that is no number")


def of_texts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of texts, which raises `ExpressionError` for anything else."""

    def applied(*values: Any) -> Any:
        for value in values:
            if not isinstance(value, str):
                raise ExpressionError(f"expected text, this is {kind(value)}")
        return function(*values)

    return applied


def _lower(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


FUNCTIONS: Final[Mapping[str, tuple[int, Callable[..., Any]]]] = {
    "size": (1, size),
    "string": (1, canonical),
    "int": (1, whole),
    "double": (1, floating),
}
METHODS: Final[Mapping[str, tuple[int, Callable[..., Any]]]] = {
    "startsWith": (1, of_texts(str.startswith)),
    "endsWith": (1, of_texts(str.endswith)),
    "contains": (1, of_texts(lambda text, part: part in text)),
    "lowerAscii": (0, of_texts(_lower)),
    "size": (0, size),
}


def _calculated(calculate: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if not _numbers(left, right):
        raise ExpressionError(f"{kind(left)} and {kind(right)} cannot be calculated with")
    if any(isinstance(number, int) and number not in _RANGE for number in (left, right)):
        raise ExpressionError("a whole number is calculated with in 64 bits")
    try:
        result = calculate(left, right)
    except (ArithmeticError, ValueError) as error:
        raise ExpressionError(f"the numbers cannot be calculated with: {error}") from error
    if isinstance(result, int) and result not in _RANGE:
        raise ExpressionError("a whole number is calculated with in 64 bits")
    return result


def _quotient(left: Any, right: Any) -> Any:
    if not _whole(left, right):
        return left / right
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _whole(left: Any, right: Any) -> bool:
    return isinstance(left, int) and isinstance(right, int)


def _numbers(left: Any, right: Any) -> bool:
    return _is_number(left) and _is_number(right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
