"""The gateway's own connections to a database server: few, kept, and dropped at the first doubt.

A lane is a driver connection and SQLAlchemy's view of the same connection: statements go to the driver as they are,
handlers' deferred writes through SQLAlchemy, both into the one transaction that the lane has begun.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.crashpoint import reach
from gateway.errors import StoreError, StoreUnavailable
from gateway.store.script import Deferred, Result, Sql, T
from gateway.store.transaction import execute_deferred
from gateway.store.wire import Fault, Wire, original, translate, unknown
from gateway.telemetry import emit


@dataclass(eq=False)
class Lane:
    """One connection. Every method is bounded; after an error that leaves it in doubt it is `broken`."""

    wire: Wire
    raw: Any
    alchemy: AsyncConnection
    seconds: float
    used: float = 0.0
    broken: bool = False

    async def execute(self, operation: Sql | Deferred) -> Result:
        """Execute one statement. Raises the gateway's errors."""
        if isinstance(operation, Sql):
            return await self._bounded(self.wire.execute(self.raw, operation))
        return await self._bounded(execute_deferred(self.alchemy, operation))

    async def begin(self) -> None:
        """Begin a transaction."""
        await self._bounded(self.wire.begin(self.raw))

    async def rollback(self) -> None:
        """Roll back; a lane that cannot is broken."""
        try:
            await self._bounded(self.wire.rollback(self.raw))
        except StoreError:
            self.broken = True

    async def commit(self) -> None:
        """Commit. Raises `CommitUnknown` if the answer was lost."""
        try:
            async with asyncio.timeout(self.seconds):
                reach("pool.before_commit")
                await self.wire.commit(self.raw)
                reach("pool.after_commit")
        except StoreError:
            raise
        except Exception as error:
            fault = self.wire.fault(error)
            if fault is Fault.UNAVAILABLE:
                self.broken = True
                raise unknown(error) from error
            raise translate(fault, error) from error

    async def _bounded(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.seconds):
                return await work
        except StoreError:
            raise
        except Exception as error:
            fault = self.wire.fault(error)
            self.broken = self.broken or fault is Fault.UNAVAILABLE
            raise translate(fault, original(error)) from error
        except BaseException:
            self.broken = True
            raise


class Pool:
    """At most `size` lanes, made when needed, lent last in, first out."""

    def __init__(self, engine: AsyncEngine, wire: Wire, *, size: int, seconds: float, idle: float = 300.0) -> None:
        self._engine, self._wire, self._seconds, self._idle = engine, wire, seconds, idle
        self._free: list[Lane] = []
        self._slots = asyncio.Semaphore(size)
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self.lent = 0

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Lane]:
        """Lend a lane for one transaction. One that comes back broken, or from a cancelled borrower, is dropped."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._slots.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(f"no database connection was free within {self._seconds:g} s") from error
        self.lent += 1
        lane = None
        try:
            lane = self._take() or await self._connect()
            yield lane
        finally:
            self.lent -= 1
            self._slots.release()
            if lane is not None:
                self._back(lane)

    async def close(self) -> None:
        """Close all lanes; those that are lent as they come back. Bounded."""
        self._closed = True
        while self._free:
            self._drop(self._free.pop())
        if self._closing:
            await asyncio.wait(self._closing, timeout=self._seconds)
        await self._engine.dispose()

    def _take(self) -> Lane | None:
        now = asyncio.get_running_loop().time()
        while self._free:
            lane = self._free.pop()
            if now - lane.used < self._idle and self._wire.usable(lane.raw):
                return lane
            self._drop(lane)
        return None

    def _back(self, lane: Lane) -> None:
        if self._closed or lane.broken or self._wire.in_transaction(lane.raw) or not self._wire.usable(lane.raw):
            self._drop(lane)
        else:
            lane.used = asyncio.get_running_loop().time()
            self._free.append(lane)

    async def _connect(self) -> Lane:
        connection = self._engine.connect()
        try:
            async with asyncio.timeout(self._seconds):
                connection = await connection.start()
                raw = (await connection.get_raw_connection()).driver_connection
        except BaseException as error:
            if connection.sync_connection is not None:
                await connection.close()
            if isinstance(error, SQLAlchemyError | OSError | TimeoutError):
                raise StoreUnavailable(f"{type(original(error)).__name__}: {original(error)}") from error
            if isinstance(error, Exception):
                raise translate(self._wire.fault(error), original(error)) from error
            raise
        return Lane(self._wire, raw, connection, self._seconds)

    def _drop(self, lane: Lane) -> None:
        self._wire.terminate(lane.raw)
        task = asyncio.get_running_loop().create_task(_close(lane))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close(lane: Lane) -> None:
    try:
        async with asyncio.timeout(lane.seconds):
            if not lane.alchemy.invalidated:
                await lane.alchemy.invalidate()
            await lane.alchemy.close()
    except Exception as error:  # noqa: BLE001 - the socket is closed already; this was SQLAlchemy's part of it
        emit("store.unavailable", error=f"{type(error).__name__}: {error}")
