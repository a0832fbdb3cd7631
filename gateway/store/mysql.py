"""MySQL and MariaDB, through asyncmy.

Sessions are READ COMMITTED, strict and in UTC. The connection is always in autocommit mode and a transaction begins
with BEGIN, so that one that was left (a raw COMMIT, DDL, a procedure that commits) is seen at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import asyncmy
from asyncmy.errors import Error, OperationalError
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.errors import DataRefused
from gateway.store.dialect import Dialect
from gateway.store.driver import Presence
from gateway.store.guard import watch, watch_text
from gateway.store.pool import Pool
from gateway.store.presence import Identity, ServerPresence, Session
from gateway.store.script import Result, Script, Sql
from gateway.store.server import OWN, READERS, ServerDriver
from gateway.store.sockets import keepalive
from gateway.store.wire import SILENCE, Fault, Wire, original

DEADLOCK = 1213
_BROKEN_OFF = frozenset({DEADLOCK, 1205, 3572, 1020})
_AWAY = frozenset(
    {1021, 1037, 1038, 1040, 1041, 1042, 1043, 1044, 1045, 1049, 1053, 1077, 1078, 1079, 1080, 1114, 1129, 1130}
    | {1152, 1154, 1155, 1156, 1157, 1158, 1159, 1160, 1161, 1184, 1189, 1190, 1203, 1226, 1290, 1317, 1526, 1792}
    | {1836, 1927, 1969, 3024, 3032, 3118, 3159, 3168, 3169, 4031}
)
_CLIENT = range(2000, 2100)
_DATA = frozenset(
    {1022, 1048, 1062, 1118, 1138, 1153, 1169, 1216, 1217, 1263, 1264, 1265, 1292, 1300, 1364, 1365, 1366, 1367, 1369}
    | {1406, 1411, 1416, 1426, 1441, 1451, 1452, 1557, 1586, 1588, 1644, 1690, 1761, 1762, 3140, 3141, 3146, 3156}
    | {3157, 3158, 3819, 3903, 4025, 4078}
)
_LOCK_WAIT = 3
"""Seconds a statement of ours waits for a row: we run it again, so that a deadlock of another kind is broken soon."""

_IN_TRANSACTION = 1
"""SERVER_STATUS_IN_TRANS."""

_CONNECT: dict[str, Any] = {"charset": "utf8mb4", "autocommit": True}
_SET_OPTION, _ONE_STATEMENT = 0x1B, b"\x01\x00"
"""COM_CONNECT: dict[str, Any] = {"charset": "utf8mb4", "autocommit": True}
_SET_OPTION, MYSQL_OPTION_MULTI_STATEMENTS_OFF."""

_NOW = "UTC_TIMESTAMP(6)"
_PACKET = 4096
"""Bytes of a packet left for what is not the largest value."""


def _upsert(_: Sequence[str], columns: Sequence[str]) -> str:
    changes = ", ".join(f"{column} = VALUES({column})" for column in columns)
    return f" ON DUPLICATE KEY UPDATE {changes}"


def _moment(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(tzinfo=None)


DIALECT = Dialect(
    name="mysql",
    now=_NOW,
    placeholder=lambda _: "%s",
    later=lambda seconds: f"({_NOW} + INTERVAL {seconds} SECOND)",
    age=lambda column: f"(TIMESTAMPDIFF(MICROSECOND, {column}, {_NOW}) / 1000000.0)",
    skip_locked=" FOR UPDATE SKIP LOCKED",
    ignore=lambda column: f" ON DUPLICATE KEY UPDATE {column} = {column}",
    upsert=_upsert,
    returning=False,
    arrays=False,
    moment=_moment,
    lock_held=lambda column: f"(IS_USED_LOCK(CONCAT('gateway:', SHA1(COALESCE({column}, '')))) IS NOT NULL)",
)


class MysqlWire(Wire):
    """asyncmy's connections."""

    def fault(self, error: BaseException) -> Fault:
        """Say what an error means."""
        error = original(error)
        code = error.args[0] if isinstance(error, Error) and error.args and isinstance(error.args[0], int) else 0
        if code in _BROKEN_OFF:
            return Fault.BROKEN_OFF
        if code in _AWAY or code in _CLIENT or isinstance(error, OSError | EOFError):
            return Fault.UNAVAILABLE
        if code in _DATA or isinstance(error, DataRefused | UnicodeError | OverflowError):
            return Fault.REFUSED
        if isinstance(error, OperationalError) and not code:
            return Fault.UNAVAILABLE
        return Fault.MISTAKE

    def ends(self, error: BaseException) -> bool:
        """Say whether it was a deadlock: InnoDB then rolls everything back, and later statements would commit alone."""
        return isinstance(error, Error) and bool(error.args) and error.args[0] == DEADLOCK

    async def execute(self, raw: Any, sql: Sql) -> Result:
        """Execute one statement."""
        _fits(raw, sql)
        async with raw.cursor() as cursor:
            if sql.want == "many":
                await cursor.executemany(sql.text, sql.args)
                return Result()
            await cursor.execute(sql.text, sql.args or None)
            if sql.want == "rows":
                return Result(rows=await cursor.fetchall())
            return Result(count=max(cursor.rowcount, 0))

    async def begin(self, raw: Any) -> None:
        """Begin, with as much time as ever."""
        if getattr(raw, "gateway_hurried", False):
            await self._wait(raw, "DEFAULT")
            raw.gateway_hurried = False
        await raw.begin()

    async def hurry(self, raw: Any, seconds: int) -> None:
        """Bound the session's silence, until the next transaction begins."""
        raw.gateway_hurried = True
        await self._wait(raw, str(seconds))

    async def _wait(self, raw: Any, seconds: str) -> None:
        async with raw.cursor() as cursor:
            await cursor.execute(f"SET SESSION {raw.gateway_silence} = {seconds}")

    async def commit(self, raw: Any) -> None:
        """Commit."""
        await raw.commit()

    async def rollback(self, raw: Any) -> None:
        """Roll back."""
        await raw.rollback()

    def in_transaction(self, raw: Any) -> bool:
        """Say whether a transaction is open."""
        return bool(raw.server_status & _IN_TRANSACTION)

    def usable(self, raw: Any) -> bool:
        """Say whether the connection is still open."""
        return bool(raw.connected) and not raw._stream_broken  # noqa: SLF001 - asyncmy does not tell otherwise

    def terminate(self, raw: Any) -> None:
        """Drop the connection; a plain close would wait for a dead peer to read."""
        transport = raw._transport  # noqa: SLF001 - as above
        if transport is not None:
            transport.abort()
        raw.close()


WIRE = MysqlWire()


def _fits(raw: Any, sql: Sql) -> None:
    """Refuse a value larger than a packet here: the server would drop the connection, which looks like an outage."""
    limit = getattr(raw, "gateway_packet", 0) - _PACKET
    rows = sql.args if sql.want == "many" else (sql.args,)
    for row in rows:
        size = sum(len(value) for value in row if isinstance(value, str | bytes))
        if size > limit > 0:
            raise DataRefused(f"{size} bytes do not fit into max_allowed_packet ({limit + _PACKET} bytes)")


class MysqlDriver(ServerDriver):
    """One MySQL or MariaDB database."""

    dialect = DIALECT

    def __init__(self, url: URL, *, pool_size: int, seconds: float) -> None:
        own = _engine(url, seconds, ours=True, poolclass=NullPool)
        readers = _engine(url, seconds, ours=True, poolclass=NullPool)
        engine = _engine(url, seconds, ours=False, pool_size=pool_size, max_overflow=0, pool_timeout=seconds)
        watch(engine.sync_engine)
        watch_text(own.sync_engine)
        super().__init__(
            WIRE,
            own=Pool(own, WIRE, size=min(OWN, pool_size), seconds=seconds, idle=10.0),
            readers=Pool(readers, WIRE, size=READERS, seconds=seconds, idle=10.0),
            engine=engine,
            seconds=seconds,
        )

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
            async with asyncio.timeout(seconds):
                _, arguments = self.engine.dialect.create_connect_args(self.engine.url)
                raw = await asyncmy.connect(**dict(arguments) | _CONNECT, connect_timeout=seconds)
                await _prepare(raw, ours=False)
            return Session(WIRE, raw, raw.ensure_closed)

        lock = Sql("SELECT GET_LOCK(CONCAT('gateway:', SHA1(%s)), 0)", (incarnation,), "rows")
        return ServerPresence(connect, DIALECT, Identity.of(incarnation, name, version), lock, seconds=seconds)

    async def durability(self) -> list[str]:
        """Warn about settings by which a commit may not last."""

        def script() -> Script[tuple[dict[str, str], list[str]]]:
            found = yield Sql(
                "SHOW GLOBAL VARIABLES WHERE Variable_name IN "
                "('innodb_flush_log_at_trx_commit', 'sync_binlog', 'log_bin', 'innodb_doublewrite')",
                (),
                "rows",
            )
            tables = yield Sql(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() "
                "AND table_type = 'BASE TABLE' AND engine <> 'InnoDB'",
                (),
                "rows",
            )
            return {row[0].lower(): row[1] for row in found.rows}, [row[0] for row in tables.rows]

        settings, tables = await self.read(script)
        warnings = []
        if settings.get("innodb_flush_log_at_trx_commit") != "1":
            warnings.append("MySQL innodb_flush_log_at_trx_commit is not 1: a crash can lose acknowledged messages")
        if settings.get("log_bin") == "ON" and settings.get("sync_binlog") != "1":
            warnings.append("MySQL sync_binlog is not 1: after a crash, replicas may lack acknowledged messages")
        if settings.get("innodb_doublewrite") == "OFF":
            warnings.append("MySQL innodb_doublewrite is off: a crash of the machine can damage the database")
        warnings += [f"MySQL table {table} is not InnoDB: it knows no transactions" for table in tables]
        return warnings

    def listen(self, callback: Callable[[], None]) -> None:
        """MySQL has no such call: polling finds the work."""

    def notify(self) -> None:
        """MySQL has no such call."""


def _engine(url: URL, seconds: float, *, ours: bool, **pool: Any) -> AsyncEngine:
    engine = create_async_engine(
        url,
        connect_args=_CONNECT | {"connect_timeout": seconds},
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        **pool,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.run_async(lambda raw: _prepare(raw, ours=ours))

    return engine


async def _prepare(raw: Any, *, ours: bool) -> None:
    """Make the session strict, in UTC, and impatient."""
    keepalive(raw._transport.get_extra_info("socket"))  # noqa: SLF001 - asyncmy does not offer the socket
    await raw._execute_command(_SET_OPTION, _ONE_STATEMENT)  # noqa: SLF001 - asyncmy always asks for several at once
    await raw.read_packet()
    async with raw.cursor() as cursor:
        await cursor.execute(
            "SET SESSION time_zone = '+00:00', sql_notes = 0, "
            "sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION')"
        )
        await cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        await cursor.execute("SELECT @@max_allowed_packet, VERSION()")
        packet, version = (await cursor.fetchall())[0]
        raw.gateway_packet = int(packet)
        raw.gateway_silence = "idle_transaction_timeout" if "MariaDB" in version else "wait_timeout"
        if ours:
            # Without the second, MySQL reads the whole table once a list has some 700 ids.
            own = "wait_timeout = 15, range_optimizer_max_mem_size = 0"
            idle = f"idle_transaction_timeout = {SILENCE}" if "MariaDB" in version else own
            await cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {_LOCK_WAIT}, {idle}")
