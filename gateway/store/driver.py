"""The seam between the store's verbs and the databases: who runs a script as a transaction.

A verb is written once, as a script (`gateway.store.script`); its few differing words come from the `Dialect`. A driver
runs it: begins, executes, commits, and says in the gateway's own errors what went wrong (`gateway.store.wire`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.store.dialect import Dialect
from gateway.store.script import T
from gateway.store.transaction import JobTransaction
from gateway.store.values import Report
from gateway.store.wire import Make


class Presence(ABC):
    """How the others see that this process is alive.

    It works in a thread of its own, so that a handler that blocks the event loop does not make the process look dead.
    """

    def __init__(self) -> None:
        self.report: Report | None = None
        """What the next heartbeat tells; replaced whole, so that any thread may read it."""

    def tell(self, report: Report) -> None:
        """Have the heartbeat tell that; at once, if there is news in it beside the load."""
        last, self.report = self.report, report
        if last is None or (last.connectors, last.handlers) != (report.connectors, report.handlers):
            self._hear()

    @abstractmethod
    def _hear(self) -> None:
        """Let the heartbeat come at once."""

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
    def transaction(self) -> JobTransaction:
        """Return a handler's transaction, not yet opened."""

    @abstractmethod
    def presence(self, *, incarnation: str, name: str, version: str, lease: float) -> Presence:
        """Return the heartbeat of this process, not yet started."""

    def occupied(self) -> bool | None:
        """Say whether a gateway process runs on this database, where that is certain; None: only the rows tell."""
        return None

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
