"""SQLite: one file, one gateway process, one writer thread.

Commits are fsynced (`synchronous=FULL`, WAL). A handler's transaction takes the write lock when it opens and keeps it
until it ends: no other transaction of the gateway commits meanwhile, so a handler that waits for something slow
should do so before its first statement.
"""

import asyncio
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.errors import StoreError, StoreUnavailable
from gateway.store.dialect import Dialect
from gateway.store.driver import Driver, Presence
from gateway.store.guard import watch
from gateway.store.presence import FilePresence, Identity, is_locked
from gateway.store.script import Result, Sql, T
from gateway.store.transaction import JobTransaction
from gateway.store.wire import Fault, Make, Wire, original, translate
from gateway.store.writer import Runner, Writer

READERS = 2
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs"})
NETWORK_FUSE = ("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone")

_AWAY = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_INTERRUPT,
}
_DATA = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}
_NOW = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def _upsert(keys: Sequence[str], columns: Sequence[str]) -> str:
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
    return f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changes}"


def _moment(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


DIALECT = Dialect(
    name="sqlite",
    now=_NOW,
    placeholder=lambda _: "?",
    later=lambda seconds: f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {seconds}))",
    age=lambda column: f"((julianday('now') - julianday({column})) * 86400.0)",
    skip_locked="",
    ignore=lambda _: " ON CONFLICT DO NOTHING",
    upsert=_upsert,
    returning=True,
    arrays=False,
    moment=_moment,
    lock_held=lambda _: "FALSE",
)


class SqliteWire(Wire):
    """aiosqlite's connections, which handlers' transactions use."""

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""
        error = original(error)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Fault.BROKEN_OFF
        if code in _AWAY or isinstance(error, TimeoutError | OSError | MemoryError):
            return Fault.UNAVAILABLE
        if code in _DATA or isinstance(error, sqlite3.DataError | OverflowError | UnicodeError):
            return Fault.REFUSED
        if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError) and "binding" in str(error):
            return Fault.REFUSED
        return Fault.MISTAKE

    def ends(self, error: BaseException) -> bool:
        """Say whether SQLite may have rolled everything back."""
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _AWAY

    async def execute(self, raw: Any, sql: Sql) -> Result:
        """Execute one statement."""
        if sql.want == "many":
            async with raw.executemany(sql.text, sql.args):
                return Result()
        async with raw.execute(sql.text, sql.args) as cursor:
            if sql.want == "rows":
                return Result(rows=await cursor.fetchall())
            return Result(count=cursor.rowcount)

    async def begin(self, raw: Any) -> None:
        """Take the write lock: a transaction that read first could not be allowed to write later."""
        await (await raw.execute("BEGIN IMMEDIATE")).close()

    async def hurry(self, raw: Any, seconds: int) -> None:
        """Do nothing: nobody else waits, as one process has the file."""

    async def commit(self, raw: Any) -> None:
        """Commit; returns after the fsync."""
        await raw.commit()

    async def rollback(self, raw: Any) -> None:
        """Roll back."""
        await raw.rollback()

    def in_transaction(self, raw: Any) -> bool:
        """Say whether a transaction is open."""
        return bool(raw.in_transaction)

    def usable(self, raw: Any) -> bool:
        """Say whether the connection is still open."""
        return raw._connection is not None  # noqa: SLF001 - aiosqlite does not tell otherwise

    def terminate(self, raw: Any) -> None:
        """End a running statement, so that the connection can be closed."""
        if raw._connection is not None:  # noqa: SLF001 - aiosqlite would wait for the statement it is to interrupt
            raw._connection.interrupt()  # noqa: SLF001 - as above


class SqliteDriver(Driver):
    """One SQLite file."""

    dialect = DIALECT

    def __init__(self, path: Path, engine: AsyncEngine, seconds: float) -> None:
        self.engine = engine
        self._path = path
        self._seconds = seconds
        self._wire = SqliteWire()
        self._inode = path.stat().st_ino
        self._local = threading.local()
        self._readers: list[Runner] = []
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="gateway-sqlite-reader")
        self._writer = Writer(
            lambda: _connect(path, seconds), fault=self._wire.fault, intact=self._intact, seconds=seconds
        )
        self._writer.start()

    @classmethod
    async def open(cls, url: URL, *, pool_size: int, statement_timeout: float) -> Self:  # noqa: ARG003 - one writer
        """Check the file and its place, and open it."""
        assert url.database is not None
        path = Path.cwd() / url.database
        try:
            await asyncio.to_thread(_check, path, statement_timeout)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"cannot open the database {path}: {error}") from error
        return cls(path, _engine(path, statement_timeout), statement_timeout)

    async def run(self, make: Make[T], *, retry: bool = False, single: bool = False) -> T:  # noqa: ARG002 - no gain here
        """Run a script in the writer's next group commit."""
        return await self._writer.submit(make)

    async def read(self, make: Make[T]) -> T:
        """Run a reading script on a connection that cannot write, over one snapshot."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, make, self._seconds)

    def transaction(self) -> JobTransaction:
        """Return a handler's transaction; it waits for its turn when it opens."""
        return JobTransaction(self.engine, self._wire, run=self.run, seconds=self._seconds, turn=self._writer.turn)

    def presence(self, *, incarnation: str, name: str, version: str, lease: float) -> Presence:
        """Return the lock on the file and the row."""
        return FilePresence(self, self._path, Identity.of(incarnation, name, version), seconds=lease)

    def occupied(self) -> bool:
        """Say whether a process holds the lock on the file."""
        return is_locked(self._path)

    async def ping(self) -> None:
        """Read one row, and see that the file is still there."""

        def script() -> Any:
            yield Sql("SELECT count(*) FROM sqlite_master", (), "rows")

        self._intact()
        try:
            async with asyncio.timeout(2):
                await self.read(script)
        except TimeoutError as error:
            raise StoreUnavailable("the database did not answer within 2 s") from error

    async def durability(self) -> list[str]:
        """Warn about a writer that does not wait for the disk."""

        def script() -> Any:
            mode = yield Sql("PRAGMA synchronous", (), "rows")
            journal = yield Sql("PRAGMA journal_mode", (), "rows")
            return mode.rows[0][0], journal.rows[0][0]

        synchronous, journal = await self.run(script)
        warnings = []
        if synchronous < 2:
            warnings.append("SQLite synchronous is not FULL: a power cut can lose acknowledged messages")
        if journal != "wal":
            warnings.append(f"SQLite journal_mode is {journal}, not WAL: readers and the writer block each other")
        return warnings

    def listen(self, callback: Callable[[], None]) -> None:
        """Nobody else writes jobs here but commands, whose jobs polling finds."""

    def notify(self) -> None:
        """There is nobody to tell."""

    async def close(self) -> None:
        """Commit what is queued and close all connections."""
        await self._writer.close()
        await asyncio.to_thread(self._threads.shutdown)
        for reader in self._readers:
            reader.close()
        await self.engine.dispose()

    def _read(self, make: Make[T], seconds: float) -> T:
        try:
            runner: Runner | None = getattr(self._local, "runner", None)
            if runner is None:
                runner = self._local.runner = Runner(_connect(self._path, seconds, query_only=True), self._wire.fault)
                self._readers.append(runner)
            runner.deadline = time.monotonic() + seconds
            runner.connection.execute("BEGIN")
        except sqlite3.Error as error:
            raise translate(self._wire.fault(error), error) from error
        try:
            return runner.drive(make())
        finally:
            runner.deadline = float("inf")
            if runner.connection.in_transaction:
                runner.connection.execute("ROLLBACK")

    def _intact(self) -> None:
        try:
            same = self._path.stat().st_ino == self._inode
        except OSError:
            same = False
        if not same:
            raise StoreUnavailable(f"{self._path} was replaced or deleted while in use: restart the gateway")


def _connect(path: Path, seconds: float, *, query_only: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=seconds, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.text_factory = _text
    connection.execute("PRAGMA synchronous=FULL")
    if query_only:
        connection.execute("PRAGMA query_only=ON")
    return connection


def _text(value: bytes) -> str:
    """Read any text: SQLite keeps by hand inserted bytes that are no UTF-8, and one such row would block its lane."""
    return value.decode("utf-8", "replace")


def _check(path: Path, seconds: float) -> None:
    """Refuse what cannot be safe, and bring the file into WAL mode."""
    kind = _file_system(path.parent)
    if kind in NETWORK or kind.startswith(NETWORK_FUSE):
        raise StoreError(
            f"{path} is on a network file system ({kind}), where SQLite's locks cannot be trusted: "
            "use a local disk, or PostgreSQL or MySQL"
        )
    connection = _connect(path, seconds)
    try:
        (journal,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if journal != "wal":
            raise StoreError(f"{path} cannot use write-ahead logging (journal_mode stays {journal})")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(f"{path} is damaged ({verdict}): restore a backup, or recover it with `sqlite3 .recover`")
    finally:
        connection.close()


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder; empty where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return ""
    folder = folder.resolve()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    holding = [m for m in mounts if folder.is_relative_to(m[1].replace("\\040", " "))]
    return max(reversed(holding), key=lambda m: len(m[1]))[2] if holding else ""


def _engine(path: Path, seconds: float) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        connect_args={"timeout": seconds, "isolation_level": None},
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=2,
        max_overflow=0,
        pool_timeout=seconds,
    )

    watch(engine.sync_engine)

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return engine
