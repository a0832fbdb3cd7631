"""What the suite's tests have in hand: a fresh database, stores on it, plain SQL, and a driver that loses answers."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.errors import CommitUnknown
from gateway.job import NewJob, QueueJob
from gateway.outcome import Completed, Outcome
from gateway.store import Finish, Lane, Store
from gateway.store.driver import Driver
from gateway.store.migrate import migrate
from gateway.store.opening import open_driver
from gateway.store.script import T
from gateway.store.url import engine_url
from gateway.store.wire import Make

DEADLINE = 10.0
"""Seconds after which something that must happen has not."""

effects = Table("effects", MetaData(), Column("id", String(100), primary_key=True), Column("n", Integer))
"""A table of the handlers' own."""


async def until(condition: Callable[[], Awaitable[object]], seconds: float = DEADLINE) -> None:
    """Wait until a condition holds. Raises `TimeoutError` if it does not in time."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in the database
            await asyncio.sleep(0.02)


class Lossy:
    """A driver that loses the answer to the next COMMIT: `after` it took effect, or `before`.

    As the real ones do, it runs again what may be run again.
    """

    def __init__(self, inner: Driver) -> None:
        self.inner = inner
        self.lose: Literal["after", "before"] | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the driver's own."""
        return getattr(self.inner, name)

    async def run(self, make: Make[T], *, retry: bool = False, single: bool = False) -> T:
        """Run a script, and lose the answer if told to."""
        losing, self.lose = self.lose, None
        if losing == "after":
            await self.inner.run(make, retry=retry, single=single)
        if losing is None or retry:
            return await self.inner.run(make, retry=retry, single=single)
        raise CommitUnknown("lost by the test")


class Database:
    """One fresh database and the stores opened on it."""

    def __init__(self, url: str, engine: AsyncEngine) -> None:
        self.url, self.engine = url, engine
        self._stores: list[Store] = []

    async def sql(self, statement: str, **parameters: Any) -> Sequence[Sequence[Any]]:
        """Run plain SQL, as a person would beside the gateway."""
        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

    async def raw(self, statement: str) -> None:
        """Run one statement exactly as it stands."""
        async with self.engine.begin() as connection:
            await connection.exec_driver_sql(statement)

    async def value(self, statement: str, **parameters: Any) -> Any:
        """Return the one value a query gives."""
        rows = await self.sql(statement, **parameters)
        return rows[0][0]

    async def make_effects(self) -> None:
        """Create the handlers' table."""
        async with self.engine.begin() as connection:
            await connection.run_sync(effects.metadata.create_all)

    async def effects(self) -> list[str]:
        """Return what handlers have written."""
        return [row[0] for row in await self.sql("SELECT id FROM effects ORDER BY id")]

    async def open(self, **options: Any) -> Store:
        """Open a store that is seen alive."""
        store = await Store.open(self.url, instance="test", **options)
        self._stores.append(store)
        return store

    async def open_lossy(self) -> tuple[Store, Lossy]:
        """Open a store whose driver can be told to lose the answer to a COMMIT."""
        lossy = Lossy(await open_driver(self.url))
        store = Store(lossy, None, incarnation=f"lossy/{uuid.uuid4()}", lease=10.0)  # type: ignore[arg-type]
        self._stores.append(store)
        return store, lossy

    async def close(self) -> None:
        """Close all stores."""
        for store in self._stores:
            await store.close()
        await self.engine.dispose()


def jobs(count: int, handler: str = "h", **fields: Any) -> list[NewJob]:
    """Return new jobs."""
    return [NewJob(handler=handler, payload=str(n).encode(), **fields) for n in range(count)]


def finished(job: QueueJob, outcome: Outcome | None = None, **fields: Any) -> Finish:
    """Return how a job's attempt ended; successfully if nothing else is said."""
    return Finish(job=job, outcome=outcome or Completed(), **fields)


class Suite:
    """Base of the suite's parts."""

    shared: ClassVar[bool] = True
    """Whether several processes may use the database at once."""
    locks: ClassVar[bool] = True
    """Whether a killed process is noticed at once; else its lease must run out, as behind a pooler."""
    largest: ClassVar[int] = 16 * 1024 * 1024
    """Bytes of the largest payload that must come back."""

    @pytest.fixture
    def beside(self, url: str) -> str:
        """Return where plain SQL finds the same database, if not at `url`."""
        return url

    @pytest.fixture
    async def database(self, url: str, beside: str) -> AsyncIterator[Database]:
        """Give a fresh database with the gateway's tables."""
        await migrate(url)
        database = Database(url, create_async_engine(engine_url(beside), pool_size=2))
        yield database
        await database.close()

    @pytest.fixture
    async def store(self, database: Database) -> Store:
        """Give a store on it."""
        return await database.open()

    async def claim(self, store: Store, limit: int = 100, lane: str = Lane.RUN) -> list[QueueJob]:
        """Claim jobs of any handler."""
        return await store.claim(lane, limit, None)

    async def claim_one(self, store: Store, **fields: Any) -> QueueJob:
        """Enqueue a job and claim it."""
        job = NewJob(**{"handler": "h", **fields})
        await store.enqueue([job])
        (claimed,) = await self.claim(store, 1, Lane.of(job))
        assert claimed.id == job.id
        return claimed

    async def moment(self, database: Database, text: str) -> object:
        """Return a time as a parameter of plain SQL."""
        return text + ".000000" if database.engine.dialect.name == "sqlite" else datetime.fromisoformat(text)
