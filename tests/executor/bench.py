"""An executor on a real database, and the table into which its handlers write their one effect per job."""

import asyncio
from contextlib import asynccontextmanager

from sqlalchemy import Column, MetaData, String, Table, insert, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.coordination import Wakeup
from gateway.executor import Executor
from gateway.handler import Handler
from gateway.job import NewJob
from gateway.outcome import RetryPolicy
from gateway.store import JobFilter, Store
from gateway.store.migrate import migrate
from gateway.store.url import engine_url
from gateway.telemetry import subscribed

effects = Table("effects", MetaData(), Column("job", String(64)), Column("note", String(64), unique=True))
effect = insert(effects)


class Bench:
    def __init__(self, store, url):
        self.store = store
        self.url = url
        self.handlers = {}
        self.wake = Wakeup()
        self.events = []
        store.on_ready = lambda lanes: [self.wake.set(lane) for lane in lanes]

    def executor(self, **options):
        options = {"policy": RetryPolicy(delay=0.0), "poll_interval": 0.2, "patience": 0.05, **options}
        return Executor(self.store, self.handlers.get, list(self.handlers), wake=self.wake, **options)

    def told(self, event):
        return [fields for name, fields in self.events if name == event]

    async def add(self, function, payload=b"{}", *, name="h", **options):
        self.handlers[name] = Handler.of(name, function)
        job = NewJob(handler=name, payload=payload, **options)
        await self.store.enqueue([job])
        return job.id

    async def run(self, function, payload=b"{}", *, executor=None, **options):
        """Let one job run once, and return it as it is then."""
        executing = executor or {}
        job = await self.add(function, payload, **{"max_retries": 0, **options})
        async with asyncio.timeout(20):
            assert await self.executor(**executing).once() == 1
        return await self.store.get(job)

    async def effects(self):
        async with self.store.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(select(effects.c.job, effects.c.note))]

    async def children(self, job):
        return await self.store.list(JobFilter(parent_id=job))

    async def errors(self, job):
        return [row.error for row in await self.store.history(job)]


@asynccontextmanager
async def bench(url, **options):
    await migrate(url)
    engine = create_async_engine(engine_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(effects.metadata.create_all)
    await engine.dispose()
    store = await Store.open(url, instance="bench", **options)
    made = Bench(store, url)
    try:
        with subscribed(lambda event, fields: made.events.append((event, fields))):
            yield made
    finally:
        await store.close()


@asynccontextmanager
async def other(b):
    """Another gateway on the same database; SQLite has one only, whose store both executors share."""
    if b.url.startswith("sqlite"):
        yield b
        return
    store = await Store.open(b.url, instance="other")
    try:
        made = Bench(store, b.url)
        made.handlers = b.handlers
        yield made
    finally:
        await store.close()


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(executor):
    task = asyncio.create_task(executor.run())
    try:
        yield executor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert executor.held == frozenset()


async def note(context):
    context.defer(effect, {"job": context.job.id, "note": context.job.id})


async def enqueue(b, count, name="h", **options):
    jobs = [NewJob(handler=name, **{"max_retries": 0, **options}) for _ in range(count)]
    await b.store.enqueue(jobs)
    return [job.id for job in jobs]


async def statuses(b, jobs):
    return [(await b.store.get(job)).status for job in jobs]


async def make_suspect(b, job):
    async with b.store.engine.begin() as connection:
        await connection.execute(
            text("UPDATE queue_jobs SET crashcount = 2, statusid = 0, scheduledat = NULL WHERE id = :id"), {"id": job}
        )
