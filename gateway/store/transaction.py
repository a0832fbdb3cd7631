"""A handler's transaction, and how it ends: with the job's outcome in the same COMMIT, or without a trace."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from gateway.crashpoint import reach
from gateway.errors import CommitUnknown, StoreError, StoreUnavailable, TransactionRefused
from gateway.store.guard import OPTION, Guard
from gateway.store.script import Deferred, Result, Sql, T
from gateway.store.wire import SILENCE, Fault, Make, Wire, drive, original, translate, unknown
from gateway.telemetry import emit

PROBE = 2.0
"""Seconds that BEGIN may take where it waits for nothing: longer means a dead connection."""

PAUSE = 0.2
"""Seconds between two attempts to ask whether a lost COMMIT took effect."""


class Turn(Protocol):
    """Permission to write, where only one may (SQLite)."""

    granted: "asyncio.Future[None]"

    def release(self) -> None:
        """Give it back. May be called more than once."""


class Run(Protocol):
    """`Driver.run`."""

    def __call__(self, make: Make[bool], *, retry: bool = False) -> Awaitable[bool]:
        """Run a script as a transaction of its own."""


class JobConnection(AsyncConnection):
    """SQLAlchemy's connection, without the calls that would end the job's transaction."""

    def __init__(self, engine: AsyncEngine, guard: Guard) -> None:
        super().__init__(engine)
        self._guard = guard

    def begin(self) -> NoReturn:
        """Refused: the transaction has begun."""
        raise self._guard.refuse("the job's transaction has begun already; use savepoint()")

    async def commit(self) -> NoReturn:
        """Refused: the gateway commits."""
        raise self._guard.refuse("the gateway commits the job's transaction, together with its outcome")

    async def rollback(self) -> NoReturn:
        """Refused: raising an error rolls back."""
        raise self._guard.refuse("raise an error to roll the job's transaction back, or use savepoint()")

    async def close(self) -> NoReturn:
        """Refused: the gateway closes."""
        raise self._guard.refuse("the gateway closes the job's connection")

    async def invalidate(self, exception: BaseException | None = None) -> NoReturn:  # noqa: ARG002 - SQLAlchemy's name
        """Refused: the gateway closes."""
        raise self._guard.refuse("the gateway closes the job's connection")


class JobSyncSession(Session):
    """The session a plain `def` handler sees, on the same transaction; it opens it at its first statement."""

    transaction: "JobTransaction"

    def get_bind(self, *_: Any, **__: Any) -> Connection:
        """Return the job's connection, opening it first if need be."""
        return self.transaction.bind()

    def begin(self, nested: bool = False) -> Any:
        """Begin a savepoint; refused for anything else."""
        if not nested:
            raise self.transaction.guard.refuse("the job's transaction begins by itself; use savepoint()")
        return super().begin(nested=True)

    def commit(self) -> None:
        """Refused: the gateway commits."""
        raise self.transaction.guard.refuse("the gateway commits the job's transaction, together with its outcome")

    def rollback(self) -> None:
        """Refused: raising an error rolls back."""
        raise self.transaction.guard.refuse("raise an error to roll the job's transaction back, or use savepoint()")

    def close(self) -> None:
        """Refused until the gateway itself ends the transaction."""
        if not self.transaction.guard.ended:
            raise self.transaction.guard.refuse("the gateway closes the job's session")
        super().close()

    def invalidate(self) -> None:
        """Refused: the gateway closes."""
        raise self.transaction.guard.refuse("the gateway closes the job's session")

    reset = close


class JobSession(AsyncSession):
    """SQLAlchemy's session, without the calls that would end the job's transaction."""

    sync_session_class = JobSyncSession
    sync_session: JobSyncSession

    def begin(self) -> NoReturn:
        """Refused: it begins by itself."""
        raise self.sync_session.transaction.guard.refuse("the job's transaction begins by itself; use savepoint()")


class JobTransaction:
    """One handler's transaction: nothing is opened before its first use.

    For one task at a time; `rollback` alone may be called from another, and then drops a statement that is running.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        wire: Wire,
        *,
        run: Run,
        seconds: float,
        turn: Callable[[], Turn] | None = None,
    ) -> None:
        self.guard = Guard(wire)
        self._engine, self._wire, self._run, self._seconds, self._turn = engine, wire, run, seconds, turn
        self._lent: Turn | None = None
        self._opening: asyncio.Future[JobConnection] | None = None
        self._connection: JobConnection | None = None
        self._raw: Any = None
        self._broken = False
        self._session: JobSession | None = None
        self._finishing: asyncio.Task[Any] | None = None
        self._ending: asyncio.Future[None] | None = None

    @property
    def opened(self) -> bool:
        """Whether the handler has used it: an object added to the session counts, though it is written only later."""
        session = self._session
        return self._opening is not None or (session is not None and bool(session.new or session.deleted))

    @property
    def outage(self) -> StoreError | None:
        """Set if the database went away underneath: the handler's failure is then no fault of its own."""
        return self.guard.outage

    @property
    def session(self) -> JobSession:
        """The session, made at first access; it opens the transaction at its first statement."""
        if self._session is None:
            self._session = JobSession(join_transaction_mode="rollback_only", expire_on_commit=False)
            self._session.sync_session.transaction = self
        return self._session

    async def connection(self) -> AsyncConnection:
        """Return the connection, opening the transaction at first. Raises `StoreUnavailable`."""
        if self._connection is not None and not self.guard.ended:
            return self._connection
        if self.guard.ended:
            raise TransactionRefused("the job's transaction is over")
        if self._opening is not None:
            return await asyncio.shield(self._opening)
        self._opening = asyncio.get_running_loop().create_future()
        try:
            self._connection = await self._open()
        except BaseException as error:
            self._opening.set_exception(self.guard.outage or StoreUnavailable(_text(error)))
            self._opening.exception()  # seen: nobody else need have asked
            raise
        self._opening.set_result(self._connection)
        return self._connection

    def bind(self) -> Connection:
        """Return the sync connection, from within SQLAlchemy's greenlet."""
        connection = self._connection if not self.guard.ended else None
        sync = (connection or await_only(self.connection())).sync_connection
        assert sync is not None
        return sync

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo what fails inside alone; its error is forgiven if it is caught outside of the block."""
        scope = self._session if self._session is not None else await self.connection()
        async with scope.begin_nested():
            yield

    async def finish(self, make: Make[T], *, resolve: Make[bool] | None) -> T:
        """Run a script at the end of the transaction and commit both.

        `resolve` says after a lost COMMIT, on a fresh connection, whether it took effect; it must wait for the job's
        row first. Raises the script's own errors, `TransactionPoisoned`, `TransactionRefused`, `StoreUnavailable`,
        `DataRefused`: then nothing is written. `CommitUnknown` only if nobody could be asked. Once called it runs
        to its end: a cancelled caller does not stop it.
        """
        task = asyncio.get_running_loop().create_task(self._finish(make, resolve))
        self._finishing = task
        return await asyncio.shield(task)

    async def rollback(self) -> None:
        """Roll back and give the connection back, or wait for a `finish` under way. Idempotent and bounded."""
        if self._finishing is not None and not self._finishing.done():
            await asyncio.shield(asyncio.gather(self._finishing, return_exceptions=True))
        await self._rollback()

    async def _rollback(self) -> None:
        if self._ending is None:
            self.guard.ended = True
            self._ending = asyncio.get_running_loop().create_task(self._end())
        if not self._ending.done():
            await asyncio.shield(self._ending)

    async def _conclude(self) -> None:
        """Do as `_rollback`, in the task that finishes: no cancellation reaches it."""
        if self._ending is None:
            self.guard.ended = True
            self._ending = asyncio.get_running_loop().create_future()
            try:
                await self._end()
            finally:
                self._ending.set_result(None)

    async def _open(self) -> JobConnection:
        connection = JobConnection(self._engine, self.guard)
        try:
            async with asyncio.timeout(self._seconds):
                if self._turn is not None:
                    self._lent = self._turn()
                    await self._lent.granted
                _ = await connection.start()
                while not await self._begun(connection):
                    self._wire.terminate(self._raw)
                    await AsyncConnection.invalidate(connection)
                sync = connection.sync_connection
                assert sync is not None
                sync.execution_options(**{OPTION: self.guard})
                sync.begin()
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(self._give_back(connection, broken=True)))
            if not isinstance(error, Exception):
                raise
            self.guard.outage = error if isinstance(error, StoreError) else StoreUnavailable(_text(original(error)))
            raise self.guard.outage from error
        return connection

    async def _begun(self, connection: JobConnection) -> bool:
        """Begin; False if the pool gave a connection that was dead already."""
        self._raw = (await connection.get_raw_connection()).driver_connection
        if not self._wire.usable(self._raw):
            return False
        at_once = self._turn is None and not self._wire.queues
        try:
            async with asyncio.timeout(min(PROBE, self._seconds) if at_once else self._seconds):
                await self._wire.begin(self._raw)
        except Exception as error:
            if self._turn is None and self._wire.fault(error) is Fault.UNAVAILABLE:
                return False
            raise
        return True

    async def _finish(self, make: Make[T], resolve: Make[bool] | None) -> T:
        try:
            _ = await self.connection()
            self.guard.verify()
            if self._session is not None:
                await self._flush(self._session)
                self.guard.verify()
            if not self._wire.usable(self._raw):
                self._broken = True
                raise StoreUnavailable("the connection was lost before the job's transaction could end")
            if not self._wire.in_transaction(self._raw):
                raise TransactionRefused("the handler left the job's transaction on the driver's own connection")
            if self._turn is None:
                await self._hurry()
            value = await drive(make(), self._execute)
            await self._commit(resolve)
        finally:
            await self._conclude()
        return value

    async def _hurry(self) -> None:
        """Let a server end the transaction by itself, should this process fall silent before its COMMIT."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._wire.hurry(self._raw, SILENCE)
        except Exception as error:
            raise translate(self._wire.fault(error), original(error)) from error

    async def _flush(self, session: JobSession) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await session.flush()
        except (SQLAlchemyError, TimeoutError) as error:
            raise translate(self._wire.fault(error), original(error)) from error

    async def _execute(self, operation: Sql | Deferred) -> Result:
        assert self._connection is not None
        try:
            async with asyncio.timeout(self._seconds):
                if isinstance(operation, Sql):
                    return await self._wire.execute(self._raw, operation)
                return await execute_deferred(self._connection, operation)
        except StoreError:
            raise
        except Exception as error:
            raise translate(self._wire.fault(error), original(error)) from error

    async def _commit(self, resolve: Make[bool] | None) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                reach("own.before_commit")
                await self._wire.commit(self._raw)
                reach("own.after_commit")
        except StoreError:
            raise
        except Exception as error:
            fault = self._wire.fault(error)
            if fault is not Fault.UNAVAILABLE:
                raise translate(fault, error) from error
            lost = unknown(error)
            self._broken = True
            await self._conclude()  # frees what the answer may need: on SQLite, the writer
            if resolve is None:
                raise lost from error
            if not await self._resolved(resolve, lost):
                raise StoreUnavailable(f"{lost}; it was not committed") from error

    async def _resolved(self, resolve: Make[bool], lost: CommitUnknown) -> bool:
        """Ask until the database answers, within a few deadlines."""
        loop = asyncio.get_running_loop()
        until = loop.time() + 3 * self._seconds
        while True:
            try:
                return await self._run(resolve, retry=True)
            except (StoreUnavailable, CommitUnknown) as error:
                if loop.time() > until:
                    raise lost from error
                await asyncio.sleep(PAUSE)

    async def _end(self) -> None:
        opening = self._opening
        if opening is None:
            return
        if not opening.done():  # in a task that does not heed its cancellation; opening has a deadline
            await asyncio.wait([opening], timeout=2 * self._seconds)
        connection = self._connection
        if connection is None:
            return  # never opened, and given back by whoever tried
        lost = self._raw is not None and not self._wire.usable(self._raw)
        broken = self._broken or self.guard.running or connection.invalidated or lost
        sound = False
        try:
            if not broken:
                async with asyncio.timeout(self._seconds):
                    if self._session is not None:
                        await AsyncSession.close(self._session)
                    await self._wire.rollback(self._raw)
                sound = True
        except Exception as error:  # noqa: BLE001 - whatever it is: a connection in doubt is dropped
            emit("store.unavailable", error=_text(original(error)))
        finally:
            await self._give_back(connection, broken=not sound)

    async def _give_back(self, connection: JobConnection, *, broken: bool) -> None:
        """Return the connection to its pool, or drop it."""
        try:
            if broken and self._raw is not None:
                self._wire.terminate(self._raw)
            if connection.sync_connection is not None:
                async with asyncio.timeout(self._seconds):
                    if broken and not connection.invalidated:
                        await AsyncConnection.invalidate(connection)
                    await AsyncConnection.close(connection)
        except Exception as error:  # noqa: BLE001 - the connection is dropped already
            emit("store.unavailable", error=_text(original(error)))
        finally:
            if self._lent is not None:
                self._lent.release()


async def execute_deferred(connection: AsyncConnection, deferred: Deferred) -> Result:
    """Execute a handler's deferred write for all the jobs that asked for it."""
    done = await AsyncConnection.execute(connection, deferred.statement, list(deferred.parameters) or None)
    return Result(count=max(done.rowcount, 0))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
