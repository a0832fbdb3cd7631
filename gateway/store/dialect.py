"""The words of SQL that differ per database, as data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The words of SQL that differ. Times are parameters and values as the driver takes and gives them."""

    name: Literal["postgresql", "mysql", "sqlite"]
    now: str
    """The database's UTC time at the start of the statement, to the microsecond where it has that."""
    placeholder: Callable[[int], str]
    """The n-th parameter, from 1. Only PostgreSQL may use them out of order; in MySQL's text a literal % is doubled."""
    later: Callable[[str], str]
    """`now` plus that many seconds (a float, may be negative), given as SQL, usually a placeholder."""
    age: Callable[[str], str]
    """Seconds from the time in that column until now, as a float."""
    skip_locked: str
    """Ends a SELECT that locks its rows and passes over those locked by others; empty where one writer rules."""
    ignore: Callable[[str], str]
    """Ends an INSERT: a row that would collide is left out. The argument is any column of the table."""
    upsert: Callable[[Sequence[str], Sequence[str]], str]
    """Ends an INSERT: on a collision in these key columns, these columns take the new row's values."""
    returning: bool
    """Whether INSERT, UPDATE and DELETE know RETURNING."""
    arrays: bool
    """Whether one parameter can be an array: `= ANY($1)`, `unnest($1)`, data-modifying WITH. PostgreSQL only."""
    moment: Callable[[datetime], Any]
    """An aware time as a parameter."""
    lock_held: Callable[[str], str]
    """Whether the incarnation named in that column holds its session lock right now. On SQLite nobody but this
    process ever does, so it is always false: leave yourself out of the question."""

    def placeholders(self, count: int, start: int = 1) -> str:
        """Return `count` placeholders, comma-separated, the first one being number `start`."""
        return ", ".join(self.placeholder(n) for n in range(start, start + count))

    def instant(self, value: Any) -> datetime | None:
        """Return a time column's value as an aware UTC time. Accepts what people write into SQLite by hand."""
        if value is None:
            return None
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
