"""A real store on SQLite, and one that a test can hold up or let fail."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from gateway.store import Store
from gateway.store.migrate import folder, migrate

_migrated: list[bytes] = []
"""A migrated, empty database: migrating it for each test would be most of the test's time."""


@asynccontextmanager
async def sqlite_store(path: Path, *, instance: str = "test") -> AsyncIterator[Store]:
    """A fresh database, opened."""
    file = path / "gateway.db"
    url = f"sqlite:///{file}"
    if not _migrated:
        await migrate(url)
        _migrated.append(file.read_bytes())
    file.write_bytes(_migrated[0])
    store = await Store.open(url, instance=instance)
    try:
        yield store
    finally:
        await store.close()


def without_schedules(file: Path) -> Path:
    """Make a gateway's database in which nothing happens by the clock: the sample schedules are not there."""
    if not file.exists():
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript((folder() / "sql" / "sqlite.sql").read_text() + "DELETE FROM jobs;")
    return file


class Faulty:
    """Passes every verb on to a store; `before[verb]` is awaited first and may wait or raise."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.before: dict[str, Callable[..., Awaitable[None]]] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, verb: str) -> Any:
        target = getattr(self.store, verb)
        if not asyncio.iscoroutinefunction(target):
            return target

        async def call(*args: Any, **keywords: Any) -> Any:
            self.calls.append((verb, args))
            if verb in self.before:
                await self.before[verb](*args, **keywords)
            return await target(*args, **keywords)

        return call

    def fail(self, verb: str, *errors: Exception) -> None:
        """Let the next calls of a verb fail with these, one each."""
        left = list(errors)

        async def raise_next(*_: Any, **__: Any) -> None:
            if left:
                raise left.pop(0)

        self.before[verb] = raise_next

    def hold(self, verb: str) -> asyncio.Event:
        """Let a verb wait until the event is set."""
        gate = asyncio.Event()

        async def wait(*_: Any, **__: Any) -> None:
            await gate.wait()

        self.before[verb] = wait
        return gate


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it can only be seen by asking
            await asyncio.sleep(0.002)


async def until_it_is(condition: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    """Wait for a condition that has to ask."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - it can only be seen by asking
            await asyncio.sleep(0.005)
