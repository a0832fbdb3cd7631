"""The one thread that writes to an SQLite file, with group commit.

Everything that waits while a transaction commits goes into the next one, each script in a savepoint of its own: one
fsync for many. A handler's own transaction borrows the file for its time (`turn`): between its transactions and ours
nobody ever spins on a lock. Results reach the event loop only after the COMMIT that holds them has returned.
"""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic

from sqlalchemy import StaticPool, create_engine

from gateway.crashpoint import reach
from gateway.errors import CommitUnknown, StoreError, StoreUnavailable
from gateway.store.guard import watch_text
from gateway.store.script import Deferred, Result, Script, Sql, T
from gateway.store.wire import Fault, Make, translate

GROUP = 500
"""The most scripts that share one commit."""


def execute(connection: sqlite3.Connection, sql: Sql) -> Result:
    """Execute one statement on a plain sqlite3 connection."""
    if sql.want == "many":
        connection.executemany(sql.text, sql.args)
        return Result()
    cursor = connection.execute(sql.text, sql.args)
    try:
        return Result(rows=cursor.fetchall()) if sql.want == "rows" else Result(count=cursor.rowcount)
    finally:
        cursor.close()


class Runner:
    """Runs scripts on one sqlite3 connection, in the thread that made it. Statements end at `deadline`."""

    def __init__(self, connection: sqlite3.Connection, fault: Callable[[BaseException], Fault]) -> None:
        self.connection = connection
        self.deadline = float("inf")
        self._fault = fault
        connection.set_progress_handler(lambda: time.monotonic() > self.deadline, 20_000)
        engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
        watch_text(engine)
        self._alchemy = engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def drive(self, script: Script[T]) -> T:
        """Run a script to its end. Errors of its statements are thrown into it."""
        try:
            operation = next(script)
            while True:
                try:
                    result = self._execute(operation)
                except StoreError as error:
                    operation = script.throw(error)
                else:
                    operation = script.send(result)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            script.close()

    def close(self) -> None:
        """Close the connection."""
        self._alchemy.close()
        self.connection.close()

    def _execute(self, operation: Sql | Deferred) -> Result:
        try:
            if isinstance(operation, Sql):
                return execute(self.connection, operation)
            done = self._alchemy.execute(operation.statement, list(operation.parameters) or None)
            return Result(count=max(done.rowcount, 0))
        except StoreError:
            raise
        except Exception as error:
            raise translate(self._fault(error), error) from error


@dataclass(eq=False, slots=True)
class _Work(Generic[T]):
    """A script that waits for its group. Who takes `once` first decides: the thread runs it, or its caller drops it."""

    make: Make[T]
    future: "asyncio.Future[T]"
    once: threading.Lock = field(default_factory=threading.Lock)


@dataclass(eq=False, slots=True)
class Turn:
    """The file, lent to one handler's transaction until `release`."""

    granted: "asyncio.Future[None]"
    returned: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Give the file back. May be called more than once, and before it was granted."""
        self.granted.cancel()
        self.returned.set()


_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Writer(threading.Thread):
    """The writer thread.

    `connect` is called in it. `intact` is asked before each group and raises if the file is no longer the one that was
    opened: what goes into a deleted file would be acknowledged and lost.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        fault: Callable[[BaseException], Fault],
        intact: Callable[[], None],
        seconds: float,
    ) -> None:
        super().__init__(name="gateway-sqlite-writer", daemon=True)
        self._connect, self._fault, self._intact, self._seconds = connect, fault, intact, seconds
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Work[Any] | Turn | None] = queue.SimpleQueue()
        self._runner: Runner | None = None
        self._lent: Turn | None = None
        self._closed = False

    async def submit(self, make: Make[T]) -> T:
        """Run a script in the next group; return once that is committed. Cancelled before it began, it never runs."""
        if self._closed:
            raise StoreUnavailable("the database is closed")
        work = _Work(make, self._loop.create_future())
        self._queue.put(work)
        try:
            return await self._outcome(work)
        finally:
            work.once.acquire(blocking=False)
            work.future.cancel()

    def turn(self) -> Turn:
        """Ask for the file; `await turn.granted` waits until all that was queued before is committed."""
        turn = Turn(self._loop.create_future())
        if self._closed:
            turn.granted.set_exception(StoreUnavailable("the database is closed"))
        else:
            self._queue.put(turn)
        return turn

    async def close(self) -> None:
        """Commit what is queued, then end the thread. A turn still lent is taken back. Bounded."""
        self._closed = True
        self._queue.put(None)
        if self._lent is not None:
            self._lent.release()
        await asyncio.to_thread(self.join, 2 * self._seconds)

    async def _outcome(self, work: _Work[T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(work.future)
        except TimeoutError:
            if work.once.acquire(blocking=False):
                raise StoreUnavailable(f"the database's writer was busy for {self._seconds:g} s") from None
        try:  # it has begun, and statements end at their own deadline: what takes longer is the disk
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(work.future)
        except TimeoutError as error:
            raise CommitUnknown(f"the disk did not confirm a commit within {self._seconds:g} s") from error

    def run(self) -> None:
        """Work until closed. Called by the thread itself."""
        try:
            item = self._queue.get()
            while item is not None:
                if isinstance(item, Turn):
                    self._lend(item)
                    item = self._queue.get()
                else:
                    group, item = self._collect(item)
                    self._loop.call_soon_threadsafe(_deliver, self._commit(group))
                    item = item or self._queue.get()
        finally:
            if self._runner is not None:
                self._runner.close()

    def _collect(self, first: _Work[Any]) -> tuple[list[_Work[Any]], _Work[Any] | Turn | None]:
        """Return everything that is queued, up to a group's size or a turn, and the first item after it."""
        group: list[_Work[Any]] = []
        item: _Work[Any] | Turn | None = first
        while isinstance(item, _Work) and len(group) < GROUP:
            if item.once.acquire(blocking=False):
                group.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, None
        if item is None:  # closing: seen again once this group is committed
            self._queue.put(None)
        return group, item

    def _lend(self, turn: Turn) -> None:
        self._lent = turn
        self._loop.call_soon_threadsafe(_grant, turn, self._closed)
        turn.returned.wait()
        self._lent = None

    def _commit(self, group: list[_Work[Any]]) -> list[_Outcome]:
        committing = False
        try:
            runner = self._runner = self._runner or Runner(self._connect(), self._fault)
            self._intact()
            runner.deadline = time.monotonic() + self._seconds
            runner.connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._one(runner, work) for work in group]
            runner.deadline = float("inf")
            committing = True
            reach("writer.before_commit")
            runner.connection.execute("COMMIT")
            reach("writer.after_commit")
        except Exception as error:  # noqa: BLE001 - each caller gets it
            self._abandon()
            return [(work.future, None, self._failure(error, committing)) for work in group]
        return outcomes

    def _one(self, runner: Runner, work: _Work[Any]) -> _Outcome:
        runner.connection.execute("SAVEPOINT script")
        try:
            value = runner.drive(work.make())
        except Exception as error:
            if not runner.connection.in_transaction:
                raise  # SQLite has rolled everything back: disk full, interrupted, …
            runner.connection.execute("ROLLBACK TO script")
            runner.connection.execute("RELEASE script")
            return work.future, None, error
        runner.connection.execute("RELEASE script")
        return work.future, value, None

    def _failure(self, error: Exception, committing: bool) -> StoreError:
        if isinstance(error, StoreUnavailable):
            return StoreUnavailable(str(error))
        if committing and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            return CommitUnknown(f"the disk failed during COMMIT: {error}")
        fault = self._fault(error)
        return translate(Fault.UNAVAILABLE if fault is Fault.BROKEN_OFF else fault, error)

    def _abandon(self) -> None:
        """Roll back; a connection that cannot even do that is thrown away."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        runner.deadline = float("inf")
        try:
            if runner.connection.in_transaction:
                runner.connection.execute("ROLLBACK")
        except sqlite3.Error:
            runner.close()
        else:
            self._runner = runner


def _grant(turn: Turn, closed: bool) -> None:
    if closed and not turn.granted.done():
        turn.granted.set_exception(StoreUnavailable("the database is closed"))
    if turn.granted.done():
        turn.returned.set()
    else:
        turn.granted.set_result(None)


def _deliver(outcomes: list[_Outcome]) -> None:
    for future, value, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
