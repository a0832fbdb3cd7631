"""Transactions as scripts: what is done, apart from how a driver does it.

A script is a generator that yields statements and is sent each one's `Result`. The same script runs on an async
driver (PostgreSQL, MySQL), in the SQLite writer's thread, and inside a handler's own transaction, so every verb of
the store is written once. It never commits: whoever runs it does. An error of a statement is thrown into it.
The idea is sans-I/O's (https://sans-io.readthedocs.io).
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from sqlalchemy.sql.base import Executable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sql:
    """One statement as the driver takes it. `many`: `args` is a sequence of rows, run as one batch."""

    text: str
    args: Sequence[Any] = ()
    want: Literal["rows", "count", "many"] = "count"


@dataclass(frozen=True, slots=True)
class Deferred:
    """A handler's deferred write: an SQLAlchemy statement and the parameters of every job that asked for it."""

    statement: Executable
    parameters: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """`rows` for "rows"; `count` of affected rows for "count" (0 for "many", whose count drivers do not give)."""

    rows: Sequence[Sequence[Any]] = ()
    count: int = 0


Script: TypeAlias = Generator[Sql | Deferred, Result, T]
