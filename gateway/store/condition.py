"""A schedule's condition: people's own SQL, which may look and never change anything.

Three fences, each enough by itself for what it knows of. The text must be one SELECT or one expression, without
anything in it that writes or locks, and without functions known to act; what runs is the parser's own rendering of it,
so that a comment that only a server reads as code is not there any more. It runs in a READ ONLY transaction, which
ends by ROLLBACK, with a timeout. And it may be asked on another URL, such as a user's with no rights or a replica.
"""

import asyncio
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from gateway.errors import ConfigError, GatewayError
from gateway.store.driver import Driver
from gateway.store.opening import open_driver
from gateway.store.script import Script, Sql
from gateway.store.turns import Asking, Verdict
from gateway.store.url import engine_url

AT_ONCE: Final = 2
"""Conditions that are asked at the same time: a driver has so many connections for reading."""
_PARSER: Final = {"postgresql": "postgres", "mysql": "mysql", "sqlite": "sqlite"}
_ACTING: Final = frozenset(
    {
        "get_lock", "release_lock", "release_all_locks", "load_file", "sys_exec", "sys_eval", "sys_set",
        "load_extension", "readfile", "writefile", "edit", "fts3_tokenizer",
        "nextval", "setval", "set_config", "pg_notify", "pg_cancel_backend", "pg_terminate_backend", "pg_promote",
        "pg_reload_conf", "pg_rotate_logfile", "pg_switch_wal", "pg_create_restore_point", "pg_export_snapshot",
        "pg_stat_file", "pg_log_backend_memory_contexts",
    }
)  # fmt: skip
"""Functions that a READ ONLY transaction lets act."""
_ACTING_KINDS: Final = (
    "pg_advisory_", "pg_try_advisory_", "pg_read_", "pg_ls_", "pg_file_", "pg_logical_", "pg_replication_",
    "pg_create_", "pg_drop_", "pg_copy_", "pg_stat_reset", "pg_wal_", "pg_backup_", "lo_", "dblink", "query_to_xml",
    "cursor_to_xml",
)  # fmt: skip
"""What the names of whole families of such begin with."""


class Conditions:
    """Asks conditions on one database, to which it connects at the first one. Close it in the loop that used it."""

    def __init__(self, url: str, *, seconds: float) -> None:
        self._url, self._seconds = url, seconds
        self._database = family(url)
        self._driver: Driver | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Give the connections back. Bounded."""
        if self._driver is not None:
            await self._driver.close()
            self._driver = None

    async def ping(self) -> None:
        """Return if the database can be reached; else `StoreError`."""
        await (await self._opened()).ping()

    async def ask(self, asking: Asking) -> Verdict:
        """Say whether a condition holds: the first value of the first row is true, or a number that is not 0.

        No row, NULL, false and 0 do not hold, nor does whatever goes wrong, which is then told in the verdict.
        """
        try:
            text = checked(asking.condition, self._database)
            value = await (await self._opened()).read(lambda: self._asked(text))
            return Verdict(asked=asking, holds=_is_true(value))
        except ConfigError as error:
            return Verdict(asked=asking, holds=False, error="; ".join(error.mistakes))
        except (GatewayError, ValueError) as error:
            return Verdict(asked=asking, holds=False, error=f"condition: {error}")

    async def _opened(self) -> Driver:
        async with self._opening:
            if self._driver is None:
                self._driver = await open_driver(self._url, pool_size=AT_ONCE, statement_timeout=self._seconds)
            return self._driver

    def _asked(self, text: str) -> Script[Any]:
        for statement in _fence(self._database, 0.9 * self._seconds):
            yield Sql(statement)
        rows = (yield Sql(text, (), "rows")).rows
        if self._database != "sqlite":
            yield Sql("ROLLBACK")
        return rows[0][0] if rows else None


@lru_cache(maxsize=1024)
def checked(text: str, database: str) -> str:
    """Return a condition as the query that is run. Raises `ConfigError` for what is none, or may do more than look.

    `database`: postgresql, mysql or sqlite, whose SQL it is.
    """
    import sqlglot
    from sqlglot import errors, exp

    dialect = _PARSER[database]
    try:
        found = [statement for statement in sqlglot.parse(text, dialect=dialect) if statement is not None]
    except (errors.SqlglotError, RecursionError) as error:
        raise ConfigError([f"condition: it cannot be read as SQL: {str(error).splitlines()[0]}"]) from None
    if len(found) != 1 or not isinstance(found[0], exp.Query | exp.Condition):
        raise ConfigError(["condition: write one SELECT, or one expression"])
    (root,) = found
    writing = (exp.DML, exp.DDL, exp.Command, exp.Into, exp.Lock, exp.Set, exp.Pragma)
    for node in root.walk():
        if isinstance(node, writing):
            raise ConfigError([f"condition: it may only look, and this does more: {_shown(node.sql(dialect=dialect))}"])
        if isinstance(node, exp.Func) and _acts(node.name if isinstance(node, exp.Anonymous) else node.sql_name()):
            raise ConfigError(
                [f"condition: it may only look, and this function does more: {node.sql(dialect=dialect)}"]
            )
    query = root if isinstance(root, exp.Query) else exp.select(root)
    if isinstance(query, exp.Select | exp.SetOperation) and query.args.get("limit") is None:
        query = query.limit(1)
    return query.sql(dialect=dialect, comments=False, normalize_functions=False)


def family(url: str) -> str:
    """Return which SQL a database speaks: postgresql, mysql or sqlite."""
    return engine_url(url).get_backend_name()


def _acts(name: str) -> bool:
    return name.lower() in _ACTING or name.lower().startswith(_ACTING_KINDS)


def _shown(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _fence(database: str, seconds: float) -> list[str]:
    """Return what makes the transaction that follows unable to write, and short. SQLite's readers are so always.

    The server gives up before we do, as only its error says what took too long.
    """
    milliseconds = max(1, int(seconds * 1000))
    match database:
        case "postgresql":
            return ["BEGIN", "SET TRANSACTION READ ONLY", f"SET LOCAL statement_timeout = {milliseconds}"]
        case "mysql":  # each comment is code to one of the two, and nothing to the other
            timeout = f"/*M!100100 max_statement_time = {seconds} */ /*!50708 max_execution_time = {milliseconds} */"
            return [f"SET SESSION {timeout}", "SET SESSION TRANSACTION READ ONLY", "START TRANSACTION READ ONLY"]
        case _:
            return []


def _is_true(value: Any) -> bool:
    match value:
        case None:
            return False
        case bool() | int() | float() | Decimal():
            return value != 0
        case bytes():  # MySQL's BIT
            return any(value)
        case str() if value.strip().lower() in ("t", "true", "f", "false"):
            return value.strip().lower().startswith("t")
        case str():
            return float(value) != 0
        case _:
            raise ValueError(f"{value!r} is neither true nor false, nor a number")
