"""What people say of a schedule, in YAML, by command and over REST: the keys, their bounds, and the row they make.

The same keys everywhere; REST takes and gives them by the names of their columns. What no single key tells, such as
an expression without ticks, the store refuses when the row is written.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from math import ceil
from typing import Annotated, Any, Final, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from gateway.connector import Priority, StrictModel
from gateway.job import PUBLISH, Schedule
from gateway.message import Json
from gateway.recurrence import MAX_LIMIT, Gap, Misfire, Overlap, Recurrence

MAX_NUMBER: Final = 2**31 - 1
NAME: Final = r"^[^\x00-\x20]([^\x00-\x1f]{0,253}[^\x00-\x20])?$"


def no_message(handler: str) -> str:
    """Return the name of a handler whose jobs may be made by hand. Raises ValueError for that of outgoing messages."""
    if handler == PUBLISH:
        raise ValueError("messages are published by handlers, or through a connector")
    return handler


ScheduleName: TypeAlias = Annotated[str, StringConstraints(pattern=NAME)]
HandlerName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[^\s\x00-\x1f]{1,255}$"), AfterValidator(no_message)
]


class ScheduleConfig(StrictModel):
    """Jobs at the times of a cron expression, or at an interval."""

    handler: HandlerName = Field(description="name of the handler that runs the jobs")
    description: str | None = Field(None, max_length=10_000, description="for people")
    cron: str | None = Field(
        None, max_length=100, description="five fields, six with seconds, or @hourly and its likes; or interval"
    )
    interval: int | None = Field(
        None, ge=1, le=MAX_NUMBER, description="seconds from one tick to the next, the first at start_at; or cron"
    )
    time_zone: str | None = Field(
        None, max_length=64, description="IANA name of the zone that cron means, such as Europe/Berlin; default: UTC"
    )
    start_at: datetime | None = Field(
        None, description="no tick is earlier; in the schedule's time zone unless it says its own"
    )
    end_at: datetime | None = Field(None, description="no tick is later; in the schedule's time zone as well")
    max_executions: int = Field(0, ge=0, le=MAX_NUMBER, description="so many ticks make a job and no more; 0: no limit")
    enabled: bool = Field(default=True, description="false: no ticks")
    condition: str | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="SQL, a SELECT or an expression: a tick at which it does not hold makes no job",
    )
    priority: Priority = Field(0, description="of the jobs; higher runs first")
    max_retries: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="attempts after the first; default: in YAML the handler's, else jobs.max_retries; elsewhere 3",
    )
    timeout: int | None = Field(
        None,
        ge=1,
        le=86_400,
        description="seconds a job may take; default: in YAML the handler's, else jobs.timeout; elsewhere 300",
    )
    misfire: Misfire | None = Field(
        None, description="what becomes of ticks missed by more than a minute: skip them, once for all (default), all"
    )
    misfire_limit: int | None = Field(
        None, ge=1, le=MAX_LIMIT, description="how many of them misfire: all makes up for, the newest; default: 100"
    )
    gap: Gap | None = Field(
        None, description="a local time that the clock leaps over: run_at_end of the leap (default), or skip"
    )
    overlap: Overlap | None = Field(None, description="a local time that comes twice: first (default), or both")
    metadata: Json = Field(default_factory=dict, description="goes into the metadata of each job")

    def row(self, name: str, *, max_retries: int = 3, timeout: float = 300.0, **fields: Any) -> Schedule:
        """Return the row of that name. The two numbers stand where none is said; `fields` are what no key says."""
        values = {key: getattr(self, key) for key in ScheduleConfig.model_fields}
        values |= {"max_retries": max_retries if self.max_retries is None else self.max_retries}
        values |= {"timeout": ceil(timeout) if self.timeout is None else self.timeout}
        values |= {key: self._moment(values[key]) for key in ("start_at", "end_at")}
        values |= {key: str(values[key]) for key in ("misfire", "gap", "overlap") if values[key] is not None}
        return Schedule(**values | fields | {"name": name})

    def _moment(self, moment: datetime | None) -> datetime | None:
        if moment is None:
            return None
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=_zone(self.time_zone))
        return aware.astimezone(UTC)


_COLUMNS: Final = {"cron": "cronexpression", "interval": "intervalseconds"}


def column_of(key: str) -> str:
    """Return the column of `jobs` that a key stands in."""
    return _COLUMNS.get(key, key.replace("_", ""))


class ScheduleBody(ScheduleConfig):
    """A schedule over REST: the same keys by the names of their columns."""

    model_config = ConfigDict(alias_generator=column_of)


def next_ticks(schedule: Schedule, now: datetime, count: int) -> list[tuple[datetime, datetime]]:
    """Return its next ticks, at most `count` and as many as its `max_executions` leaves: in UTC, and by its own clock.

    Whether it is enabled has no part in it. Raises `ConfigError` with every mistake in when it ticks.
    """
    from gateway.store.turns import recurrence_of

    left = schedule.max_executions - schedule.execution_count if schedule.max_executions > 0 else count
    ticks, zone = _ticks(recurrence_of(schedule), now), _zone(schedule.time_zone)
    return [(tick, tick.astimezone(zone)) for tick in islice(ticks, max(0, min(count, left)))]


def _ticks(recurrence: Recurrence, tick: datetime | None) -> Iterator[datetime]:
    while tick is not None and (tick := recurrence.after(tick)) is not None:
        yield tick


def _zone(name: str | None) -> ZoneInfo:
    """Return a zone; UTC for one that is not known, which is refused where the ticks are computed."""
    try:
        return ZoneInfo(name or "UTC")
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return ZoneInfo("UTC")
