"""Jobs over HTTP: list, show, create, cancel, retry."""

import json
from datetime import datetime
from typing import Annotated, Any

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from gateway.admin.requests import read_json, single_values, validate
from gateway.admin.rows import history_as_json, job_as_json, moment, status_word
from gateway.admin.running import Running
from gateway.job import Direction, JobStatus, JobType, NewJob, QueueJob
from gateway.message import Json
from gateway.schedules import no_message
from gateway.store import JobFilter
from gateway.web.routes import Refusal, json_response

MAX_PAGED = 10_000
"""Jobs that paging by number reaches; beyond them `before` goes on without a limit."""


class ListQuery(BaseModel):
    """What narrows a list of jobs, newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: str | None = None
    handler: str | None = Field(None, min_length=1, max_length=255)
    direction: Direction | None = None
    parent: str | None = Field(None, min_length=1, max_length=255)
    before: int | None = Field(None, ge=0)
    page: int = Field(1, ge=1)
    page_size: int = Field(50, ge=1, le=100)

    @field_validator("status")
    @classmethod
    def _is_status(cls, status: str | None) -> str | None:
        words = {member.name.lower(): str(int(member)) for member in JobStatus}
        if status is None or status in words.values():
            return status
        if status.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)} or its number")
        return words[status.lower()]


class JobBody(BaseModel):
    """A job to create, by the names of its columns."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    handler: Annotated[str, AfterValidator(no_message)] = Field(min_length=1, max_length=255)
    payload: Any = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    priority: int = Field(0, ge=-1_000_000, le=1_000_000)
    maxretries: int = Field(3, ge=0, le=1000)
    delay: float = Field(0.0, ge=0, le=366 * 86_400, allow_inf_nan=False)
    referenceid: str | None = Field(None, max_length=255)


class JobRoutes:
    """`/api/jobs` and what is below it."""

    def __init__(self, running: Running) -> None:
        self._running = running

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with one page of jobs, without payloads; `next_before` goes on after it."""
        query = validate(ListQuery, single_values(request))
        reach = query.page * query.page_size
        if reach > MAX_PAGED:
            raise Refusal(400, "bad_request", f"pages reach {MAX_PAGED} jobs; use 'before' to go on")
        wanted = JobFilter(
            status=None if query.status is None else JobStatus(int(query.status)),
            handler=query.handler,
            direction=query.direction,
            parent_id=query.parent,
            before=query.before,
            limit=reach,
        )
        jobs = (await self._running.store.list(wanted))[reach - query.page_size :]
        return json_response(
            {
                "jobs": [job_as_json(job, payload=False) for job in jobs],
                "page": query.page,
                "page_size": query.page_size,
                "next_before": jobs[-1].sequence if len(jobs) == query.page_size else None,
            }
        )

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer 201 with the new job, once it is durable."""
        body = validate(JobBody, await read_json(request))
        job = NewJob(
            handler=body.handler,
            payload=_encode(body.payload),
            metadata=body.metadata,
            type=JobType.MANUAL,
            direction=Direction.INTERNAL,
            priority=body.priority,
            max_retries=body.maxretries,
            delay=body.delay,
            reference_id=body.referenceid,
            created_by="api",
        )
        await self._running.store.enqueue([job])
        return json_response(job_as_json(await self._job(job.id)), status=201)

    async def show(self, _request: web.BaseRequest, id: str) -> web.StreamResponse:  # noqa: A002 - the path's name
        """Answer with the whole row."""
        return json_response(job_as_json(await self._job(id)))

    async def status(self, _request: web.BaseRequest, id: str) -> web.StreamResponse:  # noqa: A002
        """Answer with its status alone, from the cache where that has it: for clients that ask again and again.

        `source` cache: up to ten seconds old, unless it is completed. Else the database was asked.
        """
        known = await self._running.cached_status(id)
        if known is not None:
            return json_response(_status_as_json(id, known.status, known.at, "cache"))
        job = await self._job(id)
        return json_response(_status_as_json(id, job.status, job.modified_at, "database"))

    async def history(self, _request: web.BaseRequest, id: str) -> web.StreamResponse:  # noqa: A002
        """Answer with the rows of its attempts, in order."""
        await self._job(id)
        return json_response([history_as_json(row) for row in await self._running.store.history(id)])

    async def cancel(self, _request: web.BaseRequest, id: str) -> web.StreamResponse:  # noqa: A002
        """Cancel it and answer with the row; 409 if it has ended already."""
        job = await self._running.store.cancel(id, "cancelled over the API")
        return _changed(job, JobStatus.CANCELLED, "it has ended already")

    async def retry(self, _request: web.BaseRequest, id: str) -> web.StreamResponse:  # noqa: A002
        """Give it one more attempt and answer with the row; 409 unless it is Failed or Cancelled."""
        job = await self._running.store.retry(id)
        return _changed(job, JobStatus.PENDING, "only a failed or cancelled job can be retried")

    async def _job(self, job_id: str) -> QueueJob:
        return _found(await self._running.store.get(job_id))


def _status_as_json(job_id: str, status: int, at: datetime | None, source: str) -> Json:
    word = status_word(status)
    return {"id": job_id, "statusid": int(status), "status": word, "modifiedon": moment(at), "source": source}


def _found(job: QueueJob | None) -> QueueJob:
    if job is None:
        raise Refusal(404, "not_found", "there is no such job")
    return job


def _changed(job: QueueJob | None, wanted: JobStatus, obstacle: str) -> web.Response:
    if _found(job).status is not wanted:
        raise Refusal(409, "conflict", obstacle)
    return json_response(job_as_json(_found(job)))


def _encode(payload: Any) -> bytes | None:
    if payload is None:
        return None
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
