"""A fresh, empty database of its own for a test, on a server that is already running."""

import asyncio
import secrets
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """Create a database on `server`, yield its URL, drop it, whatever sessions are still open on it."""
    name = f"test_{secrets.token_hex(6)}"
    _await(_execute(server, [f"CREATE DATABASE {name}"]))
    try:
        yield f"{server.rstrip('/')}/{name}"
    finally:
        _await(_drop(server, name))


async def _drop(server: str, name: str) -> None:
    if urlsplit(server).scheme == "postgresql":
        await _execute(server, [f"DROP DATABASE {name} WITH (FORCE)"])
        return
    sessions = await _execute(server, [f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"])
    for (session,) in sessions:
        try:
            await _execute(server, [f"KILL {session}"])
        except Exception as error:
            if "Unknown thread id" not in str(error):
                raise
    await _execute(server, ["SET lock_wait_timeout = 20", f"DROP DATABASE {name}"])


async def _execute(server: str, statements: list[str]) -> list[Any]:
    address = urlsplit(server)
    host, port, user = address.hostname or "127.0.0.1", address.port, address.username
    if address.scheme == "postgresql":
        import asyncpg

        session = await asyncpg.connect(
            host=host, port=port, user=user, password=address.password, database="postgres", timeout=20
        )
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await session.fetch(statement, timeout=30)
            return rows
        finally:
            await session.close(timeout=5)
    import asyncmy

    connection = await asyncmy.connect(
        host=host, port=port or 3306, user=user, password=address.password or "", autocommit=True, connect_timeout=20
    )
    try:
        async with connection.cursor() as cursor:
            for statement in statements:
                await asyncio.wait_for(cursor.execute(statement), 30)
            return list(await cursor.fetchall())
    finally:
        await connection.ensure_closed()


def _await(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it on a loop in another thread: the test's own loop must not notice."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result(timeout=90)
