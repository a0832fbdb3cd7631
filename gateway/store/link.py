"""How a PostgreSQL database is reached: directly, or through a pooler that keeps no session.

The gateway's own connections forbid the planner every way but the intended index: statements first planned on an empty
table would otherwise keep a sequential scan for ever. Handlers' connections and readers are left as they are.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.store.sockets import keepalive, tls
from gateway.store.wire import SILENCE

_PLAIN = {"application_name": "gateway", "timezone": "UTC", "client_encoding": "utf8"}
"""Poolers know these, and give them to whatever session they lend."""
_NETWORK = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
UNNAMED: Mapping[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
"""asyncpg's and SQLAlchemy's ways of preparing no statement by name: another session would not know it."""


_EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001 - PostgreSQL's, without a zone
_MICROSECOND = timedelta(microseconds=1)


def limits(seconds: float) -> dict[str, str]:
    """Return how long a statement of the gateway may take, and its transactions may say nothing."""
    return {
        "statement_timeout": str(int(seconds * 1000)),
        "idle_in_transaction_session_timeout": str(SILENCE * 1000),
    }


@dataclass(frozen=True, slots=True)
class Link:
    """Makes connections. `seconds` is what connecting may take.

    `pooled`: settings are part of each transaction's beginning instead of the connection, as the next transaction may
    be served by another session, and the session afterwards by another client.
    """

    url: URL
    seconds: float
    pooled: bool

    def engine(self, settings: Mapping[str, str], **pool: Any) -> AsyncEngine:
        """Return an engine whose connections have these settings; pooled ones have them by `beginning`."""
        plain, arguments = self._address(settings, self.seconds)
        unnamed = UNNAMED if self.pooled else {}
        engine = create_async_engine(
            plain,
            connect_args={**arguments, **unnamed},
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            **pool,
        )

        @event.listens_for(engine.sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            connection.run_async(self._prepare)

        return engine

    def own_engine(self, settings: Mapping[str, str]) -> AsyncEngine:
        """Return an engine for the gateway's own connections, on which every row of a table can be read.

        What Python cannot hold, but people can insert by SQL, must not make a claim fail after it was committed.
        """
        engine = self.engine(settings, poolclass=NullPool, json_deserializer=_document)

        @event.listens_for(engine.sync_engine, "connect")
        def _(connection: Any, _: Any) -> None:
            connection.run_async(_read_any_moment)

        return engine

    def beginning(self, settings: Mapping[str, str]) -> str:
        """Return what begins a transaction that has these settings."""
        own = settings.items() if self.pooled else ()
        return "; ".join(["BEGIN", *(f"SET LOCAL {name} = '{value}'" for name, value in own)])

    async def connect(self, settings: Mapping[str, str], seconds: float) -> Any:
        """Return a connection outside of every pool; a pooled one has no settings."""
        plain, arguments = self._address(settings, seconds)
        _, where = plain.get_dialect()().create_connect_args(plain)
        where.pop("prepared_statement_cache_size", None)
        if self.pooled:
            arguments["statement_cache_size"] = 0
        raw = await asyncpg.connect(**dict(where) | arguments)
        await self._prepare(raw)
        return raw

    def _address(self, settings: Mapping[str, str], seconds: float) -> tuple[URL, dict[str, Any]]:
        """Return the URL as SQLAlchemy takes it, and what else asyncpg must know."""
        server = _PLAIN if self.pooled else {**_PLAIN, **_NETWORK, **settings}
        arguments: dict[str, Any] = {"server_settings": server, "timeout": seconds}
        secure = tls(self.url)
        if secure is not None:
            arguments["ssl"] = secure
        return self.url.difference_update_query(["sslmode", "sslrootcert"]), arguments

    async def _prepare(self, raw: Any) -> None:
        """Let neither side wait for a peer that is gone: the server for us, or we for it."""
        keepalive(raw._transport.get_extra_info("socket"))  # noqa: SLF001 - asyncpg does not offer the socket
        if self.pooled:
            return
        try:
            await raw.execute("SET client_connection_check_interval = 2000")
        except asyncpg.PostgresError:
            await asyncio.sleep(0)  # before PostgreSQL 14, or on a system that cannot tell: TCP's own timeouts remain


async def _read_any_moment(raw: Any) -> None:
    await raw.set_type_codec("timestamp", schema="pg_catalog", format="tuple", encoder=_encode, decoder=_decode)


def _encode(moment: date) -> tuple[int]:
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    return ((moment - _EPOCH) // _MICROSECOND,)


def _decode(value: tuple[int]) -> datetime:
    """Return the moment, or the nearest one that Python knows."""
    try:
        return _EPOCH + timedelta(microseconds=value[0])
    except OverflowError:
        return datetime.max if value[0] > 0 else datetime.min  # noqa: DTZ901 - as the column, without a zone


def _document(text: str) -> Any:
    """Return the JSON value; None for one that is too deep, or has a number too long, for Python."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
