"""What the drivers of database servers have in common: pools, retries, deadlines."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.crashpoint import reach
from gateway.errors import CommitUnknown, StoreError, StoreUnavailable
from gateway.store.driver import Driver
from gateway.store.pool import Lane, Pool
from gateway.store.script import Deferred, Result, Script, Sql, T
from gateway.store.transaction import JobTransaction
from gateway.store.wire import ATTEMPTS, BrokenOff, Make, Wire, drive

OWN = 5
"""Connections for the gateway's own transactions: more only wait for each other's commits."""

READERS = 2
PING = 2.0


class ServerDriver(Driver):
    """A database server: `own` writes, `readers` read, `engine` serves the handlers' transactions.

    `pooled`: a connection keeps nothing from one transaction to the next, so that no statement stands outside of one.
    """

    def __init__(
        self, wire: Wire, *, own: Pool, readers: Pool, engine: AsyncEngine, seconds: float, pooled: bool = False
    ) -> None:
        self.engine = engine
        self.own, self.readers = own, readers
        self._wire, self._seconds, self._pooled = wire, seconds, pooled

    async def run(self, make: Make[T], *, retry: bool = False, single: bool = False) -> T:
        """Run a script as one transaction on a connection of the gateway's own."""
        once: Callable[[Lane, Make[T]], Awaitable[T]] = _single if single and not self._pooled else _transaction
        again: tuple[type[StoreError], ...] = (StoreUnavailable, CommitUnknown) if retry else (BrokenOff,)
        attempt = 1
        while True:
            try:
                async with self.own.lend() as lane:
                    return await once(lane, make)
            except again:
                if attempt == ATTEMPTS:
                    raise
            await asyncio.sleep(random.uniform(0.002, 0.02) * 2**attempt)  # noqa: S311 - spreads the contenders
            attempt += 1

    async def read(self, make: Make[T]) -> T:
        """Run a reading script, each statement for itself, on a connection the planner may serve as it likes."""
        async with self.readers.lend() as lane:
            return await (_looking(lane, make) if self._pooled else drive(make(), lane.execute))

    def transaction(self) -> JobTransaction:
        """Return a handler's transaction, not yet opened."""
        return JobTransaction(self.engine, self._wire, run=self.run, seconds=self._seconds)

    async def ping(self) -> None:
        """Ask for one row."""

        def script() -> Script[None]:
            yield Sql("SELECT 1", (), "rows")

        try:
            async with asyncio.timeout(PING):
                await self.read(script)
        except TimeoutError as error:
            raise StoreUnavailable(f"the database did not answer within {PING:g} s") from error

    async def close(self) -> None:
        """Give every connection back."""
        await self.own.close()
        await self.readers.close()
        try:
            async with asyncio.timeout(self._seconds):
                await self.engine.dispose()
        except TimeoutError as error:
            raise StoreUnavailable("the database's connections could not be closed in time") from error


async def _transaction(lane: Lane, make: Make[T]) -> T:
    await lane.begin()
    try:
        value = await drive(make(), lane.execute)
    except Exception:
        if not lane.broken:
            await lane.rollback()
        raise
    await _shielded(lane, lane.commit())
    return value


async def _looking(lane: Lane, make: Make[T]) -> T:
    await lane.begin()
    try:
        return await drive(make(), lane.execute)
    finally:
        if not lane.broken:
            await lane.rollback()


async def _single(lane: Lane, make: Make[T]) -> T:
    """Run the one statement of a script without BEGIN and COMMIT, which it implies."""
    done = False

    async def execute(operation: Sql | Deferred) -> Result:
        nonlocal done
        if done:
            raise StoreError("a single script has one statement")
        done = True
        try:
            reach("single.before_commit")
            result = await lane.execute(operation)
            reach("single.after_commit")
        except BrokenOff:
            raise
        except StoreUnavailable as error:
            raise CommitUnknown(f"the answer was lost ({error})") from error
        return result

    return await _shielded(lane, drive(make(), execute))


async def _shielded(lane: Lane, commit: Awaitable[T]) -> T:
    """Await what commits. A cancellation waits for it, bounded; the lane is dropped after a second one, or an error."""
    task: asyncio.Task[T] = asyncio.ensure_future(_awaited(commit))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        lane.broken = True
        (result,) = await asyncio.gather(task, return_exceptions=True)
        lane.broken = isinstance(result, BaseException)
        raise


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable
