"""How the other processes see that this one is alive, and what it tells of itself.

Two clocks tell of a death: a session lock, which the database frees within milliseconds of a crash, and the row in
`gateway_instances`, whose heartbeat grows old when the network is cut. Both live on one connection in a thread of
their own. SQLite has one process per file, so there the lock on `<file>.lock` decides.

Each heartbeat also writes the last `Report`, which the event loop made: when that is stuck, the report grows old
while the heartbeat goes on.
"""

import asyncio
import fcntl
import os
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import StoreError, StoreUnavailable
from gateway.store.dialect import Dialect
from gateway.store.driver import Driver, Presence
from gateway.store.rows import encode_document
from gateway.store.script import Result, Script, Sql
from gateway.store.statement import compose
from gateway.store.values import Report
from gateway.store.wire import Wire
from gateway.telemetry import emit

MAX_PAUSE = 0.6
"""Seconds between two attempts to connect, at most."""
LOOK = 0.1
"""Seconds until a lost connection is noticed. Others take one without its session lock for dead soon after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this process is, as `gateway_instances` shows it."""

    incarnation: str
    name: str
    version: str
    host: str
    pid: int

    @classmethod
    def of(cls, incarnation: str, name: str, version: str) -> "Identity":
        """Return the identity of the calling process."""
        return cls(incarnation=incarnation, name=name, version=version, host=socket.gethostname(), pid=os.getpid())


def insert(dialect: Dialect, who: Identity, *, lock: bool) -> Sql:
    """Insert this process's row, or refresh it if it is still there."""
    marks = [dialect.placeholder(n) for n in range(1, 7)]
    return Sql(
        "INSERT INTO gateway_instances (id, name, version, host, pid, sessionlock, startedat, heartbeatat) "
        f"VALUES ({', '.join(marks)}, {dialect.now}, {dialect.now})"
        + dialect.upsert(("id",), ("heartbeatat", "sessionlock")),
        (who.incarnation, who.name, who.version, who.host, who.pid, lock),
    )


_BEAT = "UPDATE gateway_instances SET heartbeatat = {now} WHERE id = $1"
_TELL = """UPDATE gateway_instances SET heartbeatat = {now}, reportedat = {later $2}, running = $3, workers = $4
 WHERE id = $1"""
_TELL_ALL = """UPDATE gateway_instances SET heartbeatat = {now}, reportedat = {later $2}, running = $3, workers = $4,
 connectors = $5, handlers = $6 WHERE id = $1"""


def beat(dialect: Dialect, who: Identity, report: Report | None = None, last: Report | None = None) -> Sql:
    """Refresh the heartbeat, and what the process told of itself; counts zero if somebody has pruned the row.

    `last` is what stands there already: lists that are the same as then are not written again.
    """
    if report is None:
        return compose(dialect, _BEAT)(who.incarnation)
    load = (who.incarnation, report.at - time.monotonic(), report.running, report.workers)
    if last is not None and (last.connectors, last.handlers) == (report.connectors, report.handlers):
        return compose(dialect, _TELL)(*load)
    return compose(dialect, _TELL_ALL)(*load, encode_document(report.connectors), encode_document(report.handlers))


def delete(dialect: Dialect, who: Identity) -> Sql:
    """Delete the row: an orderly end."""
    text = f"DELETE FROM gateway_instances WHERE id = {dialect.placeholder(1)}"
    return Sql(text, (who.incarnation,))


def is_locked(path: Path) -> bool:
    """Say whether a gateway process runs on that SQLite file."""
    try:
        file = os.open(_lock_of(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


class FilePresence(Presence):
    """SQLite's: a lock on `<file>.lock` that refuses a second gateway process, and the row.

    Nobody else needs the heartbeat, so it is a task of the event loop. It writes every `seconds`, and news at once.
    """

    def __init__(self, driver: Driver, path: Path, who: Identity, *, seconds: float) -> None:
        super().__init__()
        self._driver, self._who, self._seconds = driver, who, seconds
        self._path = _lock_of(path)
        self._news = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None
        self._file: int | None = None
        self._since: float | None = None

    @property
    def alive_since(self) -> float | None:
        """Since `start`."""
        return self._since

    async def start(self) -> None:
        """Take the lock. Raises `StoreError` if another gateway process has it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise StoreError(
                f"another gateway process is running on this SQLite file ({self._path} is locked): stop it first, "
                "or use PostgreSQL or MySQL to run several"
            ) from error
        try:
            await self._run(insert(self._driver.dialect, self._who, lock=True))
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self._since = time.monotonic()
        self._beating = asyncio.create_task(self._beat(), name="presence")

    async def stop(self) -> None:
        """Delete the row and release the lock."""
        if self._file is None or self._beating is None:
            return
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        try:
            await self._run(delete(self._driver.dialect, self._who))
        except StoreError as error:
            emit("store.unavailable", error=error)  # the row means nothing without the lock
        finally:
            os.close(self._file)
            self._file, self._since, self._beating = None, None, None

    def _hear(self) -> None:
        self._news.set()

    async def _beat(self) -> None:
        told: Report | None = None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await self._news.wait()
            self._news.clear()
            report = self.report
            try:
                await self._run(beat(self._driver.dialect, self._who, report, told))
                told = report
            except StoreError as error:
                emit("store.unavailable", error=error)

    async def _run(self, sql: Sql) -> None:
        def script() -> Script[None]:
            yield sql

        await self._driver.run(script)


@dataclass(frozen=True, slots=True)
class Session:
    """A connection of the presence's own, and how to close it with a word to the server."""

    wire: Wire
    raw: Any
    close: Callable[[], Awaitable[None]]


class ServerPresence(Presence):
    """A database server's: lock and heartbeat on one connection, in a thread with an event loop of its own.

    It connects again for ever. `lock` is a query whose one value says whether the session lock was taken. Where it was
    not, or where there can be none (behind a pooler: None), the row says so, and only the lease counts.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Session]],
        dialect: Dialect,
        who: Identity,
        lock: Sql | None,
        *,
        seconds: float,
    ) -> None:
        super().__init__()
        self._connect, self._dialect, self._who, self._lock, self._seconds = connect, dialect, who, lock, seconds
        self._since: float | None = None
        self._stopping = False
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: Callable[[Exception | None], object] | None = None
        self._thread = threading.Thread(target=self._work, name="gateway-presence", daemon=True)

    @property
    def alive_since(self) -> float | None:
        """Since when the heartbeat has come through."""
        return self._since

    async def start(self) -> None:
        """Start the thread; return once it has the row, or raise `StoreUnavailable` if the first attempt fails."""
        loop = asyncio.get_running_loop()
        first: asyncio.Future[None] = loop.create_future()
        self._started = lambda error: loop.call_soon_threadsafe(_settle, first, error)
        self._thread.start()
        try:
            await first
        except BaseException:
            self._halt()
            raise

    async def stop(self) -> None:
        """Delete the row, release the lock, end the thread."""
        if self._thread.is_alive():
            self._halt()
            await asyncio.to_thread(self._thread.join, 4 * self._seconds)

    def _halt(self) -> None:
        self._stopping = True
        self._hear()

    def _hear(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    def _work(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            try:
                await self._connected()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt may succeed
                if self._started is not None:
                    self._started(error)
                    return
                emit("store.unavailable", error=f"{type(error).__name__}: {error}")
            lost, self._since = self._since is not None, None
            await self._pause(random.uniform(0.0, LOOK) if lost else random.uniform(LOOK, MAX_PAUSE))  # noqa: S311 - spreads

    async def _connected(self) -> None:
        """Keep lock and row until stopped, or until the connection is lost."""
        session = await self._connect()
        try:
            entered = await self._enter(session)
            self._since = time.monotonic()
            if self._started is not None:
                self._started(None)
                self._started = None
            told: Report | None = None
            while not await self._rest(session):
                if not entered:
                    entered = await self._enter(session)
                report = self.report
                if (await self._execute(session, beat(self._dialect, self._who, report, told))).count == 0:
                    entered, report = await self._enter(session), None
                told = report
            await self._execute(session, delete(self._dialect, self._who))
            async with asyncio.timeout(self._seconds):
                await session.close()
        finally:
            session.wire.terminate(session.raw)

    async def _enter(self, session: Session) -> bool:
        """Take the lock if it can be had, and write the row; false if a lock is still to be taken."""
        locked = self._lock is not None and bool((await self._execute(session, self._lock)).rows[0][0])
        await self._execute(session, insert(self._dialect, self._who, lock=locked))
        return locked or self._lock is None

    async def _execute(self, session: Session, sql: Sql) -> Result:
        async with asyncio.timeout(self._seconds):
            return await session.wire.execute(session.raw, sql)

    async def _rest(self, session: Session) -> bool:
        """Wait for the next heartbeat, for news, or for the loss of the connection; true as soon as it is to stop."""
        ends = time.monotonic() + self._seconds
        while session.wire.usable(session.raw) and (left := ends - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK, left)):
                    await self._news.wait()
                    break
        self._news.clear()
        return self._stopping

    async def _pause(self, seconds: float) -> bool:
        """Wait, at most until there is news; true as soon as it is to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
        return self._stopping


def _settle(first: "asyncio.Future[None]", error: Exception | None) -> None:
    if first.done():
        return
    if error is None:
        first.set_result(None)
    else:
        first.set_exception(StoreUnavailable(f"{type(error).__name__}: {error}"))
