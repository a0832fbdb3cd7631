"""SQL written once: the words that differ per database are filled in, once per process.

A template has PostgreSQL's numbered parameters, in any order and repeated, and these words:

| word | becomes |
|---|---|
| `{now}` `{skip_locked}` | as in `Dialect` |
| `{later $1}` `{age column}` `{held column}` | as in `Dialect` (`held`: `lock_held`) |
| `{partition}` `{condition}` | the column of that name, a reserved word in MySQL |
| `{force index}` | the index MySQL must use, whose statistics may be minutes behind; nothing elsewhere |
| `{any $1}` | `= ANY($1)` and its likes: the parameter is a collection of texts |
| `{text $1}` `{number $1}` `{real $1}` `{time $1}` | the parameter, where PostgreSQL cannot infer its type |
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from gateway.store.dialect import Dialect
from gateway.store.script import Sql

_WORD = re.compile(r"\{(\w+)(?: ([^}]*))?\}")
_PARAMETER = re.compile(r"\$(\d+)")
_CASTS = {"text": "text", "number": "bigint", "real": "double precision", "time": "timestamp"}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement in one database's words."""

    text: str
    order: tuple[int, ...]
    """Which argument each placeholder takes."""
    collections: frozenset[int]
    dialect: Dialect

    def __call__(self, *args: Any, want: Literal["rows", "count"] = "count") -> Sql:
        """Return the statement with its arguments: `$1` first."""
        given = [_collection(self.dialect, v) if n in self.collections else v for n, v in enumerate(args)]
        return Sql(self.text, given if self.dialect.arrays else [given[n] for n in self.order], want)

    def rows(self, *args: Any) -> Sql:
        """Return the statement with its arguments, its rows being wanted."""
        return self(*args, want="rows")


@cache
def compose(dialect: Dialect, template: str) -> Statement:
    """Return a template in the words of a database."""
    collections: set[int] = set()

    def word(match: re.Match[str]) -> str:
        name, argument = match[1], match[2]
        if name == "any":
            collections.add(int(argument[1:]) - 1)
        return _word(dialect, name, argument)

    order: list[int] = []

    def parameter(match: re.Match[str]) -> str:
        order.append(int(match[1]) - 1)
        return dialect.placeholder(int(match[1]))

    text = _PARAMETER.sub(parameter, _WORD.sub(word, template))
    return Statement(" ".join(text.split()), tuple(order), frozenset(collections), dialect)


def _word(dialect: Dialect, name: str, argument: str) -> str:
    if name in _CASTS:
        return f"{argument}::{_CASTS[name]}" if dialect.arrays else argument
    words: dict[str, Callable[[], str]] = {
        "now": lambda: dialect.now,
        "skip_locked": lambda: dialect.skip_locked,
        "later": lambda: dialect.later(argument),
        "age": lambda: dialect.age(argument),
        "held": lambda: dialect.lock_held(argument),
        "any": lambda: _any(dialect, argument),
        "partition": lambda: "`partition`" if dialect.name == "mysql" else "partition",
        "condition": lambda: "`condition`" if dialect.name == "mysql" else "condition",
        "force": lambda: f"FORCE INDEX ({argument})" if dialect.name == "mysql" else "",
    }
    return words[name]()


def _any(dialect: Dialect, parameter: str) -> str:
    match dialect.name:
        case "postgresql":
            return f"= ANY({parameter}::text[])"
        case "mysql":
            return f"IN {parameter}"
        case "sqlite":
            return f"IN (SELECT value FROM json_each({parameter}))"


def _collection(dialect: Dialect, values: Collection[str]) -> Any:
    match dialect.name:
        case "postgresql":
            return list(values)
        case "mysql":
            return tuple(values) or (None,)
        case "sqlite":
            return json.dumps(list(values))
