"""How a script meets a driver: what an error means, and how one raw connection is spoken to.

Whatever goes wrong is translated into the gateway's own errors, at this edge and nowhere else:

| error | what it says |
|---|---|
| `StoreUnavailable` | nothing was committed; the database is away, too slow, read-only, full, or kept deadlocking |
| `CommitUnknown` | the answer to COMMIT was lost: read back before deciding |
| `DataRefused` | nothing was committed; these very values will never be taken |
| `StoreError` | nothing was committed; the statement itself is wrong |
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any

from sqlalchemy.exc import DBAPIError

from gateway.errors import CommitUnknown, DataRefused, StoreError, StoreUnavailable
from gateway.store.script import Deferred, Result, Script, Sql, T

Make = Callable[[], Script[T]]
"""Makes a fresh script, so that a transaction the database broke off can be run again."""

ATTEMPTS = 5
"""How often a transaction is run that the database itself broke off (deadlock, serialization, lock wait)."""


SILENCE = 10
"""Seconds after which a transaction that says nothing must let go of the gateway's rows, as its process is paused."""


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

    queues: bool = False
    """Whether a transaction may have to wait for its turn before it begins, as behind a pooler."""

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
    async def hurry(self, raw: Any, seconds: int) -> None:
        """Have the server end this transaction if it says nothing for so long: it holds rows that others wait for."""

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
