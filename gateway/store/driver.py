"""The seam between the store's verbs and the databases: how a script becomes a transaction.

A verb is written once, as a script (`gateway.store.script`); its few differing words come from the `Dialect`. A driver
runs it: begins, executes, commits, and translates whatever goes wrong into the gateway's own errors, at this edge and
nowhere else:

| error | what it says |
|---|---|
| `StoreUnavailable` | nothing was committed; the database is away, too slow, read-only, full, or kept deadlocking |
| `CommitUnknown` | the answer to COMMIT was lost: read back before deciding |
| `DataRefused` | nothing was committed; these very values will never be taken |
| `StoreError` | nothing was committed; the statement itself is wrong |
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Literal, Self

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import CommitUnknown, DataRefused, StoreError, StoreUnavailable
from gateway.store.script import Deferred, Result, Script, Sql, T
from gateway.store.url import engine_url

if TYPE_CHECKING:
    from gateway.store.transaction import JobTransaction

Make = Callable[[], Script[T]]
"""Makes a fresh script, so that a transaction the database broke off can be run again."""

ATTEMPTS = 5
"""How often a transaction is run that the database itself broke off (deadlock, serialization, lock wait)."""


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


class Fault(Enum):
    """What an error of a database driver means for the transaction it happened in."""

    BROKEN_OFF = auto()
    """The database chose it as a victim: running it again may well succeed."""
    UNAVAILABLE = auto()
    """The database is away, overloaded, or refuses for now."""
    REFUSED = auto()
    """These values will never be taken."""
    MISTAKE = auto()
    """Anything else: the statement, the schema or the rights are wrong."""


class BrokenOff(StoreUnavailable):
    """The database broke the transaction off (deadlock, serialization, lock wait): it can be run again at once."""


def translate(fault: Fault, error: BaseException) -> StoreError:
    """Return the gateway's error for a driver's. Nothing was committed; raise it `from` the driver's."""
    text = f"{type(error).__name__}: {error}"
    match fault:
        case Fault.BROKEN_OFF:
            return BrokenOff(text)
        case Fault.UNAVAILABLE:
            return StoreUnavailable(text)
        case Fault.REFUSED:
            return DataRefused(text)
        case Fault.MISTAKE:
            return StoreError(text)


def unknown(error: BaseException) -> CommitUnknown:
    """Return the error for a COMMIT whose answer never came."""
    return CommitUnknown(f"the answer to COMMIT was lost ({type(error).__name__}: {error})")


async def drive(script: Script[T], execute: Callable[[Sql | Deferred], Awaitable[Result]]) -> T:
    """Run a script to its end. Errors of `execute` are thrown into it; a cancellation closes it."""
    try:
        operation = next(script)
        while True:
            try:
                result = await execute(operation)
            except StoreError as error:
                operation = script.throw(error)
            else:
                operation = script.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        script.close()


class Wire(ABC):
    """One kind of raw driver connection: how to speak to it. Stateless; raises the driver's own errors."""

    @abstractmethod
    def fault(self, error: BaseException) -> Fault:
        """Say what an error means. Takes SQLAlchemy's wrapping of it, too."""

    @abstractmethod
    def ends(self, error: BaseException) -> bool:
        """Say whether the database has rolled the whole transaction back by itself, savepoints and all."""

    @abstractmethod
    async def execute(self, raw: Any, sql: Sql) -> Result:
        """Execute one statement."""

    @abstractmethod
    async def begin(self, raw: Any) -> None:
        """Begin a transaction."""

    @abstractmethod
    async def commit(self, raw: Any) -> None:
        """Commit. Raises if the database rolled back instead."""

    @abstractmethod
    async def rollback(self, raw: Any) -> None:
        """Roll back. Does nothing outside a transaction."""

    @abstractmethod
    def in_transaction(self, raw: Any) -> bool:
        """Say, without asking the server, whether a transaction is open."""

    @abstractmethod
    def usable(self, raw: Any) -> bool:
        """Say, without asking the server, whether the connection is still open."""

    @abstractmethod
    def terminate(self, raw: Any) -> None:
        """Drop the connection at once, without a word to the server. Never waits, never raises."""


def original(error: BaseException) -> BaseException:
    """Return the driver's own error inside SQLAlchemy's wrapping, and inside its adapter's for asyncpg."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if type(error).__module__.startswith("sqlalchemy.") and error.__cause__ is not None:
        return error.__cause__
    return error


class Presence(ABC):
    """How the others see that this process is alive.

    It works in a thread of its own, so that a handler that blocks the event loop does not make the process look dead.
    """

    @property
    @abstractmethod
    def alive_since(self) -> float | None:
        """`time.monotonic()` since when the heartbeat has come through without a gap; None while it does not."""

    @abstractmethod
    async def start(self) -> None:
        """Take the session lock and insert the row. Raises `StoreError` if that is refused for good."""

    @abstractmethod
    async def stop(self) -> None:
        """Delete the row, release the lock, end the thread. Bounded; what fails is left to the lease."""


class Driver(ABC):
    """One database, opened. All methods are for the event loop that opened it."""

    dialect: Dialect
    engine: AsyncEngine
    """What handlers' transactions use; not for the gateway's own statements."""

    @classmethod
    @abstractmethod
    async def open(cls, url: URL, *, pool_size: int, statement_timeout: float) -> Self:
        """Connect once, to find out early. Raises `StoreUnavailable`, or `StoreError` for what cannot work."""

    @abstractmethod
    async def run(self, make: Make[T], *, retry: bool = False, single: bool = False) -> T:
        """Run a script as one transaction; on any error nothing of it stays.

        Broken-off transactions are run again a few times. `retry`: the script is idempotent, so it is also run
        again after a lost connection and after a lost COMMIT. `single`: it is exactly one statement, which then
        costs one round trip; a second one raises. A cancelled caller leaves no open transaction behind; whether a
        COMMIT already sent took effect is then unknown.
        """

    @abstractmethod
    async def read(self, make: Make[T]) -> T:
        """Run a script that only reads. Uses connections of its own, which the planner may serve as it likes."""

    @abstractmethod
    def transaction(self) -> "JobTransaction":
        """Return a handler's transaction, not yet opened."""

    @abstractmethod
    def presence(self, *, incarnation: str, name: str, version: str, lease: float) -> Presence:
        """Return the heartbeat of this process, not yet started."""

    @abstractmethod
    async def ping(self) -> None:
        """Return if the database answers within 2 s; else `StoreUnavailable`."""

    @abstractmethod
    async def durability(self) -> list[str]:
        """Return one line for each setting by which the database promises less than a commit that lasts."""

    @abstractmethod
    def listen(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop when another process has called `notify`; for ever, over reconnects.

        Only PostgreSQL tells; elsewhere it is never called, and polling finds the work.
        """

    @abstractmethod
    def notify(self) -> None:
        """Tell the other processes that there is work. Many calls within some milliseconds are one message."""

    @abstractmethod
    async def close(self) -> None:
        """Give every connection back. Bounded."""


async def open_driver(url: str, *, pool_size: int = 10, statement_timeout: float = 10.0) -> Driver:
    """Open the database a URL names: `sqlite:///file.db`, `postgresql://…`, `mysql://…` or `mariadb://…`."""
    parsed = engine_url(url)
    driver: type[Driver]
    match parsed.get_backend_name():
        case "sqlite":
            from gateway.store.sqlite import SqliteDriver

            driver = SqliteDriver
        case "postgresql":
            from gateway.store.postgresql import PostgresqlDriver

            driver = PostgresqlDriver
        case _:
            from gateway.store.mysql import MysqlDriver

            driver = MysqlDriver
    return await driver.open(parsed, pool_size=pool_size, statement_timeout=statement_timeout)
