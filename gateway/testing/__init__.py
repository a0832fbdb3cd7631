"""For users' tests: run a handler, and the suites that every connector and every database must pass.

async def test_an_order_is_placed():
    run = await run_handler(place_order, {"id": "1"}, schema=shop.metadata)
    assert run.job.status is JobStatus.COMPLETED
    assert run.rows["orders"] == [{"id": "1"}]
    assert [message.topic for message in run.published] == ["orders.billed"]
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.coordination import Wakeup
from gateway.effects import Headers, check_keywords, encode_body, encode_headers, encode_key
from gateway.executor import Executor
from gateway.handler import Handler
from gateway.job import PUBLISH, Direction, JobHistory, NewJob, QueueJob
from gateway.message import Json, Message
from gateway.store import JobFilter, Store
from gateway.store.migrate import migrate

_NAME = "handler.under.test"


class MessageOptions(TypedDict, total=False):
    """What the message of `run_handler` holds besides its body."""

    topic: str
    key: str | bytes
    headers: Headers
    content_type: str
    parameters: Mapping[str, str]
    metadata: Json
    """Added to the job's metadata, as an entry's `metadata` is."""
    max_retries: int
    """0 unless given: what fails, fails for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerRun:
    """What became of one attempt."""

    job: QueueJob
    """The job afterwards; `last_error` says what went wrong."""
    history: JobHistory
    """The attempt."""
    published: Sequence[Message]
    """What it published, in order."""
    enqueued: Sequence[QueueJob]
    """The jobs it enqueued, in order."""
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    """All rows of the tables of `schema`, by table name."""

    @property
    def result(self) -> Any:
        """What the handler returned, as it was stored."""
        return None if self.job.result is None else json.loads(self.job.result)


async def run_handler(
    function: Callable[[Any], Any],
    body: Any = None,
    *,
    schema: MetaData | str | None = None,
    prepare: Sequence[str] = (),
    **message: Unpack[MessageOptions],
) -> HandlerRun:
    """Run a handler once, as a gateway would, against a throw-away SQLite database with the tables of `schema`.

    `body` is bytes, text, a JSON value, or None for a tombstone. `schema` is SQLAlchemy's metadata or SQL text,
    `prepare` more SQL to run before. Whatever the handler raises is in the returned job's `last_error`.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'gateway.db'}"
        await migrate(url)
        store = await Store.open(url, instance="test")
        try:
            tables = await _prepare(store.engine, schema, prepare)
            job = _job(body, message)
            await store.enqueue([job])
            handler = Handler.of(_NAME, function)
            await Executor(store, {_NAME: handler}.get, [_NAME], wake=Wakeup(), workers=1).once()
            return await _outcome(store, job.id, tables)
        finally:
            await store.close()


def _job(body: Any, options: MessageOptions) -> NewJob:
    check_keywords("run_handler", options, MessageOptions)
    payload, content_type = encode_body(body)
    key = options.get("key")
    message = Message(
        topic=options.get("topic", "test"),
        key=None if key is None else encode_key(key),
        headers=encode_headers(options.get("headers", ())),
        content_type=options.get("content_type", content_type),
        parameters=options.get("parameters", {}),
    )
    return NewJob(
        handler=_NAME,
        payload=payload,
        metadata={**message.to_metadata(), **options.get("metadata", {})},
        direction=Direction.INBOUND,
        max_retries=options.get("max_retries", 0),
    )


async def _prepare(engine: AsyncEngine, schema: MetaData | str | None, prepare: Sequence[str]) -> set[str]:
    """Make the tables, and return their names."""
    async with engine.begin() as connection:
        before = await connection.run_sync(_tables)
        if isinstance(schema, MetaData):
            await connection.run_sync(schema.create_all)
        scripts = [schema] if isinstance(schema, str) else []
        for statement in ";".join([*scripts, *prepare]).split(";"):
            if statement.strip():
                await connection.execute(text(statement))
        return await connection.run_sync(_tables) - before


def _tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def _outcome(store: Store, job_id: str, tables: set[str]) -> HandlerRun:
    job = await store.get(job_id)
    children = sorted(await store.list(JobFilter(parent_id=job_id, limit=10_000)), key=lambda child: child.sequence)
    rows: dict[str, Sequence[Mapping[str, Any]]] = {}
    async with store.engine.connect() as connection:
        for table in sorted(tables):
            found = await connection.execute(text(f'SELECT * FROM "{table}"'))  # noqa: S608 - the test's own table
            rows[table] = [dict(row) for row in found.mappings()]
    assert job is not None, "nobody but this function knows the database"
    return HandlerRun(
        job=job,
        history=(await store.history(job_id))[-1],
        published=[child.message for child in children if child.handler == PUBLISH],
        enqueued=[child for child in children if child.handler != PUBLISH],
        rows=rows,
    )
