"""Looking at a database from outside the gateway: rows by plain SQL, and its whole schema as a comparable value."""

import re
from contextlib import asynccontextmanager

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.store.url import engine_url


@asynccontextmanager
async def connected(url):
    engine = create_async_engine(engine_url(url))
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON").close())
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def rows(url, *statements):
    async with connected(url) as connection:
        for statement in statements:
            result = await connection.execute(text(statement) if isinstance(statement, str) else statement)
        return result.mappings().all() if result.returns_rows else []


async def row(url, *statements):
    (only,) = await rows(url, *statements)
    return only


async def describe(url):
    family = engine_url(url).get_backend_name()
    if family == "sqlite":
        found = await rows(url, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {r["name"]: re.sub(r'[\s"]', "", r["sql"]).lower() for r in found}
    if family == "mysql":
        names = [next(iter(r.values())) for r in await rows(url, "SHOW TABLES")]
        return {name: sorted_keys(await row(url, f"SHOW CREATE TABLE `{name}`")) for name in names}
    return {tuple(r.values())[:2]: tuple(r.values())[2:] for r in await rows(url, POSTGRESQL)}


def sorted_keys(shown):
    """Return the statement with its indexes in order of name; MySQL shows them in order of creation."""
    lines = [line.rstrip(",") for line in shown["Create Table"].splitlines()]
    return sorted(lines, key=lambda line: line if line.startswith("  KEY") else "")


POSTGRESQL = """
WITH t AS (SELECT oid, relname, reloptions FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r')
SELECT relname::text, 'column ' || attnum, concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
 attidentity, attgenerated, pg_get_expr(adbin, adrelid))
 FROM t JOIN pg_attribute ON attrelid = t.oid LEFT JOIN pg_attrdef ON adrelid = t.oid AND adnum = attnum
 WHERE attnum > 0
UNION ALL SELECT tablename::text, indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT relname::text, conname::text, pg_get_constraintdef(c.oid)
 FROM t JOIN pg_constraint c ON conrelid = t.oid
UNION ALL SELECT relname::text, tgname::text, pg_get_triggerdef(g.oid) FROM t JOIN pg_trigger g ON tgrelid = t.oid
 WHERE NOT tgisinternal
UNION ALL SELECT relname::text, 'options', reloptions::text FROM t
UNION ALL SELECT proname::text, 'function', pg_get_functiondef(oid)
 FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""
