"""Schedules over HTTP: list, show, create, replace, change, delete, enable, disable, run, and their next ticks."""

from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.requests import read_json, single_values, validate, validate_json
from gateway.admin.rows import job_as_json, moment, schedule_as_json
from gateway.admin.running import Running
from gateway.errors import ConfigError
from gateway.job import Schedule
from gateway.message import Json
from gateway.schedules import ScheduleBody, ScheduleConfig, ScheduleName, column_of, next_ticks
from gateway.store import ScheduleFilter
from gateway.web.routes import Refusal, json_response

BY = "api"
"""Who made or changed a row."""
_COLUMNS = {column_of(key) for key in ScheduleConfig.model_fields}


class ListQuery(BaseModel):
    """What narrows a list of schedules, in order of name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool | None = None
    handler: str | None = Field(None, min_length=1, max_length=255)
    after: str | None = Field(None, min_length=1, max_length=255)
    limit: int = Field(100, ge=1, le=1000)


class NextQuery(BaseModel):
    """How many ticks to tell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(5, ge=1, le=100)


class NewSchedule(ScheduleBody):
    """A schedule to create."""

    name: ScheduleName


class ScheduleRoutes:
    """`/api/schedules` and what is below it, by name or by id. A change is seen by all instances at once."""

    def __init__(self, running: Running) -> None:
        self._running = running

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with one page of schedules; `next_after` goes on after it."""
        query = validate(ListQuery, single_values(request))
        rows = await self._running.store.schedules(ScheduleFilter(**query.model_dump()))
        following = rows[-1].name if len(rows) == query.limit else None
        return json_response({"schedules": [schedule_as_json(row) for row in rows], "next_after": following})

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer 201 with the new schedule, once it is durable; 409 if the name is taken."""
        body = validate_json(NewSchedule, await read_json(request))
        made = await self._write(body.row(body.name, created_by=BY), replace=False)
        if made is None:
            raise Refusal(409, "conflict", "there is a schedule of that name already")
        return json_response(schedule_as_json(made), status=201)

    async def show(self, _request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Answer with the row."""
        return json_response(schedule_as_json(await self._schedule(key)))

    async def replace(self, request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Give a schedule the definition of the body, whole; create it, answering 201, if there is none of the name."""
        data = await read_json(request)
        row = await self._running.store.schedule(key)
        if row is not None:
            return await self._put(row, data)
        body = validate_json(NewSchedule, {"name": key, **data})
        if body.name != key:
            raise Refusal(422, "invalid", "name: a schedule cannot be renamed; leave it out")
        made = await self._write(body.row(key, created_by=BY))
        return json_response(schedule_as_json(_found(made)), status=201)

    async def change(self, request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Change the columns that the body names, leave the others, and answer with the row; null is the default."""
        data = await read_json(request)
        row = await self._schedule(key)
        now = {name: value for name, value in schedule_as_json(row).items() if name in _COLUMNS}
        merged = {name: value for name, value in {**now, **data}.items() if value is not None}
        return await self._put(row, merged)

    async def delete(self, _request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Delete it and answer with the row that is gone; the jobs it has made stay."""
        row = await self._schedule(key)
        if not await self._running.store.delete_schedule(row.id):
            _found(None)
        return json_response(schedule_as_json(row))

    async def run(self, _request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Make one job now, which counts as no tick, whether it is enabled or not; answer 201 with the job."""
        store = self._running.store
        job_id = await store.run_schedule(key, by=BY)
        job = None if job_id is None else await store.get(job_id)
        if job is None:
            _found(None)
        assert job is not None
        return json_response(job_as_json(job), status=201)

    async def enable(self, _request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Let it tick and answer with the row; ticks while it was disabled are not made up for."""
        return json_response(schedule_as_json(_found(await self._running.store.enable_schedule(key, True, by=BY))))

    async def disable(self, _request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Let it make no more jobs and answer with the row."""
        return json_response(schedule_as_json(_found(await self._running.store.enable_schedule(key, False, by=BY))))

    async def next(self, request: web.BaseRequest, key: str) -> web.StreamResponse:
        """Answer with its next ticks, in UTC and by its own clock, whether it is enabled or not."""
        query = validate(NextQuery, single_values(request))
        row = await self._schedule(key)
        try:
            ticks = next_ticks(row, datetime.now(UTC), query.count)
        except ConfigError as error:
            raise _invalid(error) from None
        told = [{"utc": moment(utc), "local": local.isoformat()} for utc, local in ticks]
        return json_response({"name": row.name, "enabled": row.enabled, "timezone": row.time_zone, "ticks": told})

    async def _put(self, row: Schedule, data: Json) -> web.Response:
        """Write a new definition of a row, which keeps its name, its type and its counters."""
        if data.pop("name", row.name) != row.name:
            raise Refusal(422, "invalid", "name: a schedule cannot be renamed; leave it out")
        body = validate_json(ScheduleBody, data)
        values: dict[str, Any] = {"type": row.type, "created_by": row.created_by, "modified_by": BY}
        made = await self._write(body.row(row.name, **values))
        return json_response(schedule_as_json(_found(made)))

    async def _write(self, row: Schedule, *, replace: bool = True) -> Schedule | None:
        try:
            return await self._running.store.put_schedule(row, replace=replace)
        except ConfigError as error:
            raise _invalid(error) from None

    async def _schedule(self, key: str) -> Schedule:
        return _found(await self._running.store.schedule(key))


def _found(row: Schedule | None) -> Schedule:
    if row is None:
        raise Refusal(404, "not_found", "there is no such schedule")
    return row


def _invalid(error: ConfigError) -> Refusal:
    """Return the refusal; the mistakes call columns by their keys, as everywhere."""
    return Refusal(422, "invalid", "; ".join(error.mistakes))
