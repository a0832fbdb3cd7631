"""Schedules as rows that people read and change. When they fire is `gateway.store.ticks`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gateway.crashpoint import reach
from gateway.job import MAX_PRIORITY, JobType, NewJob, Schedule
from gateway.store.dialect import Dialect
from gateway.store.insert import insert_jobs
from gateway.store.rows import SCHEDULE_COLUMNS, encode_document, schedule_from_row
from gateway.store.script import Script, Sql
from gateway.store.statement import compose
from gateway.store.values import ScheduleFilter

PAGE = 1000
"""The most schedules of one page."""

_SELECT = f"SELECT {SCHEDULE_COLUMNS} FROM jobs"
_BY_ID = f"{_SELECT} WHERE id = $1"
_BY_NAME = f"{_SELECT} WHERE name = $1"
_DEFINED = (
    "description", "typeid", "handler", "cronexpression", "intervalseconds", "startat", "endat", "maxexecutions",
    "enabled", "{condition}", "priority", "maxretries", "timeout", "metadata", "timezone", "gap", "overlap", "misfire",
    "misfirelimit",
)  # fmt: skip
"""What the definition of a schedule consists of, but its name; `_values` gives it in this order."""
_TOUCH = "modifiedby = $1, modifiedon = {now}, rowversionstamp = rowversionstamp + 1"
_ENABLE = f"UPDATE jobs SET {_TOUCH}, enabled = $2 WHERE id = $3"
_DELETE = "DELETE FROM jobs WHERE id = $1"
_KNOWN = "SELECT name, configured FROM jobs WHERE name {any $1}"


def _insert() -> str:
    names = ("id", "name", "createdby", "modifiedby", "configured", *_DEFINED)
    marks = ", ".join(f"${n}" for n in range(1, len(names) + 1))
    return f"INSERT INTO jobs ({', '.join(names)}, createdon, modifiedon) VALUES ({marks}, {{now}}, {{now}})"


def _update() -> str:
    changes = ", ".join(f"{name} = ${n}" for n, name in enumerate(_DEFINED, 4))
    return (
        f"UPDATE jobs SET {_TOUCH}, active = TRUE, configured = coalesce({{text $2}}, configured), {changes}"
        " WHERE name = $3"
    )


_INSERT, _UPDATE = _insert(), _update()


def find(dialect: Dialect, wanted: ScheduleFilter) -> Script[list[Schedule]]:
    """Return one page of schedules in order of name."""
    clauses, arguments = ["active"], list[Any]()
    for clause, value in (("enabled = ${n}", wanted.enabled), ("handler = ${n}", wanted.handler)):
        if value is not None:
            arguments.append(value)
            clauses.append(clause.format(n=len(arguments)))
    if wanted.after is not None:
        arguments.append(wanted.after)
        clauses.append(f"name > ${len(arguments)}")
    limit = max(1, min(wanted.limit, PAGE))
    text = f"{_SELECT} WHERE {' AND '.join(clauses)} ORDER BY name LIMIT ${len(arguments) + 1}"
    rows = (yield compose(dialect, text).rows(*arguments, limit)).rows
    return [schedule_from_row(dialect, row) for row in rows]


def get(dialect: Dialect, key: str, *, lock: bool = False) -> Script[Schedule | None]:
    """Return the schedule of that name, else of that id; `lock`: nobody else changes it until the transaction ends."""
    suffix = " FOR UPDATE" if lock and dialect.name != "sqlite" else ""
    for select in (_BY_NAME, _BY_ID):
        rows = (yield compose(dialect, select + suffix).rows(key)).rows
        if rows:
            return schedule_from_row(dialect, rows[0])
    return None


def put(dialect: Dialect, schedule: Schedule, *, replace: bool) -> Script[Schedule | None]:
    """Insert a schedule, or give the one of its name its definition; None if that is there and not to be replaced.

    A replaced one keeps its id, its counters and who created it; one that SQL had made inactive is active again.
    """
    rows = (yield compose(dialect, _KNOWN).rows([schedule.name])).rows
    if rows and not replace:
        return None
    yield from _write(dialect, schedule, None, new=not rows)
    reach("schedule.written")
    made = yield from get(dialect, schedule.name)
    if rows or made is None or made.id == schedule.id:
        return made
    if not replace:  # somebody else was a little earlier
        return None
    yield from _write(dialect, schedule, None, new=False)
    return (yield from get(dialect, schedule.name))


def configure(dialect: Dialect, wanted: Mapping[str, Schedule]) -> Script[list[str]]:
    """Write those whose key (a digest of their text) is not the one last written; returns their names.

    What people have changed since stays until the text changes; what is no longer in the text stays as it is.
    """
    names = [schedule.name for schedule in wanted.values()]
    rows = (yield compose(dialect, _KNOWN).rows(names)).rows
    known = {row[0]: row[1] for row in rows}
    written = []
    for digest, schedule in wanted.items():
        if known.get(schedule.name) != digest:
            yield from _write(dialect, schedule, digest, new=schedule.name not in known)
            written.append(schedule.name)
    reach("schedule.written")
    return written


def _write(dialect: Dialect, schedule: Schedule, digest: str | None, *, new: bool) -> Script[None]:
    values = _values(dialect, schedule)
    if new:
        sql = compose(dialect, _INSERT)(
            schedule.id, schedule.name, schedule.created_by, schedule.modified_by, digest, *values
        )
        yield Sql(f"{sql.text}{dialect.ignore('id')}", sql.args)
    else:
        yield compose(dialect, _UPDATE)(schedule.modified_by or schedule.created_by, digest, schedule.name, *values)


def remove(dialect: Dialect, key: str) -> Script[bool]:
    """Delete a schedule; the jobs it has made stay. False: there is none."""
    schedule = yield from get(dialect, key, lock=True)
    if schedule is None:
        return False
    yield compose(dialect, _DELETE)(schedule.id)
    reach("schedule.written")
    return True


def enable(dialect: Dialect, key: str, enabled: bool, by: str | None) -> Script[Schedule | None]:
    """Enable or disable; returns the row as it now is, None if there is none."""
    schedule = yield from get(dialect, key, lock=True)
    if schedule is None:
        return None
    if schedule.enabled != enabled:
        yield compose(dialect, _ENABLE)(by, enabled, schedule.id)
    reach("schedule.written")
    return (yield from get(dialect, schedule.name))


def run(dialect: Dialect, key: str, job_id: str, by: str | None) -> Script[NewJob | None]:
    """Insert one job of that schedule, of type Manual, that counts as none of its ticks; None: there is no such."""
    schedule = yield from get(dialect, key)
    if schedule is None:
        return None
    job = job_of(schedule, None, job_id=job_id, by=by)
    yield from insert_jobs(dialect, [job])
    reach("schedule.written")
    return job


def job_of(schedule: Schedule, tick: datetime | None, *, job_id: str, by: str | None = None) -> NewJob:
    """Return the job of a tick; None: one by hand, of type Manual. Its metadata are the schedule's and which it is."""
    kind = JobType.SYSTEM if schedule.type == JobType.SYSTEM else JobType.SCHEDULED
    which = {"id": schedule.id, "name": schedule.name}
    if tick is not None:
        which["tick"] = tick.isoformat()
    return NewJob(
        id=job_id,
        handler=schedule.handler,
        metadata={**schedule.metadata, "schedule": which},
        type=JobType.MANUAL if tick is None else kind,
        priority=max(-MAX_PRIORITY, min(schedule.priority, MAX_PRIORITY)),
        max_retries=max(0, schedule.max_retries),
        scheduled_at=tick,
        reference_id=schedule.reference_id,
        created_by=by or schedule.created_by,
        timeout=schedule.timeout if schedule.timeout > 0 else None,
    )


def _values(dialect: Dialect, schedule: Schedule) -> Sequence[Any]:
    s = schedule
    return (
        s.description, s.type, s.handler, s.cron, s.interval, _moment(dialect, s.start_at), _moment(dialect, s.end_at),
        s.max_executions, s.enabled, s.condition, s.priority, s.max_retries, s.timeout, encode_document(s.metadata),
        s.time_zone, s.gap, s.overlap, s.misfire, s.misfire_limit,
    )  # fmt: skip


def _moment(dialect: Dialect, moment: datetime | None) -> Any:
    return None if moment is None else dialect.moment(moment)
