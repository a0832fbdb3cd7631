"""The gateway's side: the same rows through its inbox and its executor, each with the store of a real database."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sqlalchemy import Column, MetaData, String, Table, insert
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.connector import InboundEntry
from gateway.coordination import Wakeup
from gateway.executor import Executor
from gateway.handler import Context, Handler
from gateway.inbox import InboxWriter
from gateway.message import Message
from gateway.store import Store
from gateway.store.migrate import migrate
from gateway.store.url import engine_url
from gateway.telemetry import subscribed

effect = Table("bench_effect", MetaData(), Column("job", String(64)), Column("data", String(255)))
ENTRY = InboundEntry(handler="bench.run")
ADD = insert(effect)
CALL = 20
"""Messages in one `receive`, and `CALLERS` calls at once: a broker's fetches, not one request after another."""
CALLERS = 50


def bodies(count: int, size: int = 1024) -> list[str]:
    """Return JSON bodies of about `size` bytes."""
    pad = "x" * (size - 60)
    return [json.dumps({"order": number, "data": f"effect of {number}", "pad": pad}) for number in range(count)]


async def prepare(url: str) -> None:
    """Make the schema and the table for the handlers' effects."""
    await migrate(url)
    engine = create_async_engine(engine_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(effect.metadata.create_all)
    await engine.dispose()


async def deferred(context: Context) -> dict[str, bool]:
    """Write one row with the outcome; jobs share their commits."""
    context.defer(ADD, {"job": context.job.id, "data": context.message.json()["data"]})
    return {"ok": True}


async def own(context: Context) -> dict[str, bool]:
    """Write one row in a transaction of the job's own."""
    await context.session.execute(ADD, {"job": context.job.id, "data": context.message.json()["data"]})
    return {"ok": True}


async def ingest(store: Store, payloads: Sequence[str]) -> None:
    """Receive every body as a connector would: returned means durable."""
    inbox = InboxWriter(store).connection("bench", "memory")
    calls = iter([payloads[at : at + CALL] for at in range(0, len(payloads), CALL)])

    async def caller() -> None:
        for call in calls:
            await inbox.receive([Message(topic="bench", body=body.encode()) for body in call], ENTRY)

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())


async def drain(store: Store, function: Callable[[Context], Awaitable[object]], count: int, workers: int) -> None:
    """Run `count` waiting jobs to their end, with a running executor."""
    handler = Handler.of("bench.run", function)
    executor = Executor(store, lambda _: handler, ["bench.run"], wake=Wakeup(), workers=workers)
    done = asyncio.Event()
    left = count

    def watch(event: str, _fields: dict[str, object]) -> None:
        nonlocal left
        left -= event == "job.finished"
        if not left:
            done.set()

    with subscribed(watch):
        running = asyncio.create_task(executor.run())
        await done.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def sqlite_path(url: str) -> str:
    """Return the file of an SQLite URL."""
    return str(Path(url.removeprefix("sqlite:///")))
