"""Enqueuing inside somebody else's transaction, through SQLAlchemy, whatever driver that one uses."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection, event, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from gateway.job import JobStatus, NewJob
from gateway.store.rows import encode_document, encode_payload, later, needs_clock
from gateway.store.tables import NOW, queue_jobs

Caller: TypeAlias = AsyncConnection | AsyncSession | Connection | Session


async def enqueue_within(caller: Caller, jobs: Sequence[NewJob], committing: Callable[[], None]) -> None:
    """Insert jobs in the caller's transaction; they exist if and when that commits, `committing` being called then.

    Raises what SQLAlchemy raises, for the caller to handle as any error of their own statements.
    """
    match caller:
        case AsyncSession():
            await caller.run_sync(lambda session: _insert(session.connection(), jobs, committing))
        case AsyncConnection():
            await caller.run_sync(lambda connection: _insert(connection, jobs, committing))
        case Session():
            _insert(caller.connection(), jobs, committing)
        case Connection():
            _insert(caller, jobs, committing)


def _insert(connection: Connection, jobs: Sequence[NewJob], committing: Callable[[], None]) -> None:
    now = _now(connection) if needs_clock(jobs) else None
    connection.execute(insert(queue_jobs), [_values(job, now) for job in jobs])
    event.listen(connection, "commit", lambda _: committing(), once=True)


def _now(connection: Connection) -> datetime:
    value: datetime | str | None = connection.scalar(select(NOW))
    assert value is not None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC)


def _values(job: NewJob, now: datetime | None) -> dict[str, Any]:
    payload, encoding = encode_payload(job.payload)
    due = job.scheduled_at if now is None or job.delay <= 0 else later(now, job.delay)
    ahead = now is not None and due is not None and due > now and job.status is JobStatus.PENDING
    return {
        "id": job.id,
        "type": int(job.type),
        "method": job.method,
        "protocol": job.protocol,
        "direction": str(job.direction),
        "handler": job.handler,
        "metadata": json.loads(encode_document(job.metadata)),
        "payload": payload,
        "payload_encoding": encoding,
        "status": int(JobStatus.SCHEDULED if ahead else job.status),
        "priority": job.priority,
        "max_retries": job.max_retries,
        "scheduled_at": due,
        "completed_at": now if job.status.final else None,
        "last_error": job.error,
        "parent_id": job.parent_id,
        "reference_id": job.reference_id,
        "created_by": job.created_by,
        "ordering_key": job.ordering_key,
    }
