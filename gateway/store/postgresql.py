"""PostgreSQL, through asyncpg: directly, or behind a pooler such as PgBouncer in transaction mode.

Behind a pooler a connection has another server session in each transaction, so nothing that belongs to a session is
used: leases instead of session locks, polling instead of LISTEN, and all in transactions that bring their settings.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL

from gateway.errors import StoreError, StoreUnavailable
from gateway.store.dialect import Dialect
from gateway.store.driver import Presence
from gateway.store.guard import watch, watch_text
from gateway.store.link import PLANNER, Link, limits
from gateway.store.notify import Bell
from gateway.store.pool import Pool
from gateway.store.presence import Identity, ServerPresence, Session
from gateway.store.script import Result, Script, Sql
from gateway.store.server import OWN, PING, READERS, ServerDriver
from gateway.store.wire import Fault, Wire, original
from gateway.telemetry import emit

_BROKEN_OFF = frozenset({"40001", "40P01", "55P03"})
_AWAY = ("08", "53", "57", "58", "F0", "XX", "28")
_AWAY_CODES = frozenset({"25006", "25P03", "25P04", "3D000", "40003", "55000", "55006"})
_DATA = ("22", "23", "44", "54", "P0", "21")
_PG_NOW = "(statement_timestamp() AT TIME ZONE 'utc')"
_LOCKED = """EXISTS (SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
 AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
 AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended({column}, 0))"""


def _upsert(keys: Sequence[str], columns: Sequence[str]) -> str:
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
    return f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changes}"


def _moment(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(tzinfo=None)


DIALECT = Dialect(
    name="postgresql",
    now=_PG_NOW,
    placeholder=lambda n: f"${n}",
    later=lambda seconds: f"({_PG_NOW} + make_interval(secs => {seconds}))",
    age=lambda column: f"extract(epoch FROM {_PG_NOW} - {column})::float8",
    skip_locked=" FOR UPDATE SKIP LOCKED",
    ignore=lambda _: " ON CONFLICT DO NOTHING",
    upsert=_upsert,
    returning=True,
    arrays=True,
    moment=_moment,
    lock_held=lambda column: _LOCKED.format(column=column),
)


class PostgresqlWire(Wire):
    """asyncpg's connections. `beginning` is what begins a transaction; `queues` is as in `Wire`."""

    def __init__(self, beginning: str = "BEGIN", *, queues: bool = False) -> None:
        self._beginning = beginning
        self.queues = queues

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""
        error = original(error)
        code = getattr(error, "sqlstate", None) or ""
        if code in _BROKEN_OFF:
            return Fault.BROKEN_OFF
        if code.startswith(_AWAY) or code in _AWAY_CODES:
            return Fault.UNAVAILABLE
        if code.startswith(_DATA) or isinstance(error, asyncpg.DataError | UnicodeError | OverflowError):
            return Fault.REFUSED
        if isinstance(error, asyncpg.exceptions._base.DataError):  # noqa: SLF001 - the public name is the server's
            return Fault.REFUSED
        if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
            return Fault.UNAVAILABLE
        return Fault.MISTAKE

    def ends(self, error: BaseException) -> bool:  # noqa: ARG002 - no error does
        """Say no: PostgreSQL only refuses to go on, until a rollback."""
        return False

    async def execute(self, raw: Any, sql: Sql) -> Result:
        """Execute one statement, prepared once per connection."""
        match sql.want:
            case "rows":
                return Result(rows=await raw.fetch(sql.text, *sql.args))
            case "many":
                await raw.executemany(sql.text, sql.args)
                return Result()
            case "count":
                status = await raw.execute(sql.text, *sql.args)
                last = status.rpartition(" ")[2]
                return Result(count=int(last) if last.isdigit() else 0)

    async def begin(self, raw: Any) -> None:
        """Begin, with what must be said at the beginning."""
        await raw.execute(self._beginning)

    async def hurry(self, raw: Any, seconds: int) -> None:
        """Do nothing: the statement that finishes a job says so itself, which saves a round trip."""

    async def commit(self, raw: Any) -> None:
        """Commit; PostgreSQL answers a COMMIT after an error with ROLLBACK, which is none."""
        status = await raw.execute("COMMIT")
        if status != "COMMIT":
            raise StoreError(f"the database answered COMMIT with {status}: a statement had failed before")

    async def rollback(self, raw: Any) -> None:
        """Roll back."""
        if raw.is_in_transaction():
            await raw.execute("ROLLBACK")

    def in_transaction(self, raw: Any) -> bool:
        """Say whether a transaction is open."""
        return not raw.is_closed() and bool(raw.is_in_transaction())

    def usable(self, raw: Any) -> bool:
        """Say whether the connection is still open."""
        return not raw.is_closed()

    def terminate(self, raw: Any) -> None:
        """Drop the connection."""
        if not raw.is_closed():
            raw.terminate()


WIRE = PostgresqlWire()


class PostgresqlDriver(ServerDriver):
    """One PostgreSQL database."""

    dialect = DIALECT

    def __init__(self, link: Link, *, pool_size: int) -> None:
        seconds = link.seconds
        ours = limits(seconds)
        own, readers = link.own_engine(ours | PLANNER), link.own_engine(ours)
        engine = link.engine({}, pool_size=pool_size, max_overflow=0, pool_timeout=seconds)
        watch(engine.sync_engine)
        watch_text(own.sync_engine)
        own_wire, reading = PostgresqlWire(link.beginning(ours | PLANNER)), PostgresqlWire(link.beginning(ours))
        super().__init__(
            PostgresqlWire(queues=link.pooled),
            own=Pool(own, own_wire, size=min(OWN, pool_size), seconds=seconds),
            readers=Pool(readers, reading, size=READERS, seconds=seconds),
            engine=engine,
            seconds=seconds,
            pooled=link.pooled,
        )
        self._link = link
        self._bell = Bell(lambda: link.connect(ours, seconds), self.run, seconds=seconds)

    @classmethod
    async def open(cls, url: URL, *, pool_size: int, statement_timeout: float) -> Self:
        """Connect once, to find out early, and whether a pooler stands between."""
        driver = cls(Link(url, statement_timeout, pooled=True), pool_size=pool_size)
        try:
            if await driver.is_pooled():
                emit("store.pooled")
                return driver
        except BaseException:
            await driver.close()
            raise
        await driver.close()
        return cls(Link(url, statement_timeout, pooled=False), pool_size=pool_size)

    async def is_pooled(self) -> bool:
        """Say whether a pooler stands between: it invents the process that a connection says it is served by."""
        try:
            async with asyncio.timeout(PING), self.readers.lend() as lane:
                served = await lane.execute(Sql("SELECT pg_backend_pid()", (), "rows"))
                return bool(served.rows[0][0] != lane.raw.get_server_pid())
        except TimeoutError as error:
            raise StoreUnavailable(f"the database did not answer within {PING:g} s") from error

    def presence(self, *, incarnation: str, name: str, version: str, lease: float) -> Presence:
        """Return the heartbeat of this process, not yet started. Behind a pooler nobody can see a session lock."""
        seconds = max(lease / 3, 0.1)

        async def connect() -> Session:
            raw = await self._link.connect({"statement_timeout": str(int(seconds * 1000))}, seconds)
            return Session(WIRE, raw, raw.close)

        lock = None
        if not self._link.pooled:
            lock = Sql("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", (incarnation,), "rows")
        return ServerPresence(connect, DIALECT, Identity.of(incarnation, name, version), lock, seconds=seconds)

    async def durability(self) -> list[str]:
        """Warn about settings by which a commit may not last."""

        def script() -> Script[dict[str, str]]:
            found = yield Sql(
                "SELECT name, setting FROM pg_settings WHERE name IN "
                "('fsync', 'synchronous_commit', 'full_page_writes')",
                (),
                "rows",
            )
            return {row[0]: row[1] for row in found.rows}

        settings = await self.read(script)
        return [
            f"PostgreSQL {name} is off: {what}"
            for name, what in (
                ("fsync", "a crash of the machine can lose acknowledged messages and damage the database"),
                ("synchronous_commit", "a crash of the server can lose acknowledged messages"),
                ("full_page_writes", "a crash of the machine can damage the database"),
            )
            if settings.get(name) == "off"
        ]

    def listen(self, callback: Callable[[], None]) -> None:
        """Call `callback` when another process has called `notify`; behind a pooler polling finds the work."""
        if not self._link.pooled:
            self._bell.listen(callback)

    def notify(self) -> None:
        """Tell the other processes, at most once in some milliseconds."""
        self._bell.ring()

    async def close(self) -> None:
        """Give every connection back."""
        await self._bell.close()
        await super().close()
