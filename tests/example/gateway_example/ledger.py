"""The table in which each committed effect of a handler shows. Nothing in it is unique, so that a double shows too."""

from typing import Any, Protocol

from sqlalchemy import Column, Integer, MetaData, String, Table

from gateway.job import QueueJob

metadata = MetaData()

effects = Table(
    "effects",
    metadata,
    Column("jobid", String(255), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("token", String(64)),
    Column("handler", String(255), nullable=False),
)


class HasJob(Protocol):
    """What the handlers' contexts have in common."""

    @property
    def job(self) -> QueueJob:
        """The job that runs."""


def row(context: HasJob) -> dict[str, Any]:
    """Return the row that this attempt leaves behind if it commits."""
    job = context.job
    return {"jobid": job.id, "attempt": job.attempt, "token": job.claim_token, "handler": job.handler}
