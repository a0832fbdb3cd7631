"""PostgreSQL, through asyncpg.

The gateway's own connections forbid the planner every way but the intended index: statements first planned on an empty
table would otherwise keep a sequential scan for ever. Handlers' connections and readers are left as they are.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.errors import StoreError
from gateway.store.dialect import Dialect
from gateway.store.driver import Presence
from gateway.store.guard import watch, watch_text
from gateway.store.notify import Bell
from gateway.store.pool import Pool
from gateway.store.presence import Identity, ServerPresence, Session
from gateway.store.script import Result, Script, Sql
from gateway.store.server import OWN, READERS, ServerDriver
from gateway.store.sockets import keepalive, tls
from gateway.store.wire import Fault, Wire, original

_PLAIN = {
    "application_name": "gateway",
    "timezone": "UTC",
    "client_encoding": "utf8",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
_PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
_IDLE = 10.0
"""Seconds after which the server ends a transaction of ours that says nothing: a paused process must not hold locks."""

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
    """asyncpg's connections."""

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
        """Begin."""
        await raw.execute("BEGIN")

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

    def __init__(self, url: URL, *, pool_size: int, seconds: float) -> None:
        milliseconds = str(int(seconds * 1000))
        ours = {"statement_timeout": milliseconds, "idle_in_transaction_session_timeout": str(int(_IDLE * 1000))}
        own = _engine(url, ours | _PLANNER, seconds, poolclass=NullPool)
        readers = _engine(url, ours, seconds, poolclass=NullPool)
        engine = _engine(url, {}, seconds, pool_size=pool_size, max_overflow=0, pool_timeout=seconds)
        watch(engine.sync_engine)
        watch_text(own.sync_engine)
        super().__init__(
            WIRE,
            own=Pool(own, WIRE, size=min(OWN, pool_size), seconds=seconds),
            readers=Pool(readers, WIRE, size=READERS, seconds=seconds),
            engine=engine,
            seconds=seconds,
        )
        self._url = url
        self._bell = Bell(lambda: _connect(url, ours, seconds), seconds=seconds)

    @classmethod
    async def open(cls, url: URL, *, pool_size: int, statement_timeout: float) -> Self:
        """Connect once, to find out early."""
        driver = cls(url, pool_size=pool_size, seconds=statement_timeout)
        try:
            await driver.ping()
        except BaseException:
            await driver.close()
            raise
        return driver

    def presence(self, *, incarnation: str, name: str, version: str, lease: float) -> Presence:
        """Return the heartbeat of this process, not yet started."""
        seconds = max(lease / 3, 0.1)

        async def connect() -> Session:
            raw = await _connect(self._url, {"statement_timeout": str(int(seconds * 1000))}, seconds)
            return Session(WIRE, raw, raw.close)

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
        """Call `callback` when another process has called `notify`."""
        self._bell.listen(callback)

    def notify(self) -> None:
        """Tell the other processes, at most once in some milliseconds."""
        self._bell.ring(self.own)

    async def close(self) -> None:
        """Give every connection back."""
        await self._bell.close()
        await super().close()


def _engine(url: URL, settings: dict[str, str], seconds: float, **pool: Any) -> AsyncEngine:
    plain, arguments = _address(url, settings, seconds)
    engine = create_async_engine(
        plain, connect_args=arguments, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True, **pool
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.run_async(_prepare)

    return engine


def _address(url: URL, settings: dict[str, str], seconds: float) -> tuple[URL, dict[str, Any]]:
    """Return the URL as SQLAlchemy takes it, and what else asyncpg must know."""
    arguments: dict[str, Any] = {"server_settings": _PLAIN | settings, "timeout": seconds}
    secure = tls(url)
    if secure is not None:
        arguments["ssl"] = secure
    return url.difference_update_query(["sslmode", "sslrootcert"]), arguments


async def _connect(url: URL, settings: dict[str, str], seconds: float) -> Any:
    """Return a connection outside of every pool."""
    plain, arguments = _address(url, settings, seconds)
    _, where = plain.get_dialect()().create_connect_args(plain)
    where.pop("prepared_statement_cache_size", None)
    raw = await asyncpg.connect(**dict(where) | arguments)
    await _prepare(raw)
    return raw


async def _prepare(raw: Any) -> None:
    """Let neither side wait for a peer that is gone: the server for us, or we for it."""
    keepalive(raw._transport.get_extra_info("socket"))  # noqa: SLF001 - asyncpg does not offer the socket
    try:
        await raw.execute("SET client_connection_check_interval = 2000")
    except asyncpg.PostgresError:
        await asyncio.sleep(0)  # before PostgreSQL 14, or on a system that cannot tell: TCP's own timeouts remain
