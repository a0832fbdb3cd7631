"""What people say of a schedule, in YAML, by command and over REST: the keys, their bounds, and the row they make.

The same keys everywhere; REST takes and gives them by the names of their columns.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Final, Self, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from gateway.connector import Priority, StrictModel
from gateway.errors import ConfigError
from gateway.job import PUBLISH, Schedule
from gateway.message import Json
from gateway.recurrence import MAX_LIMIT, Gap, Misfire, Overlap, Recurrence

MAX_NUMBER: Final = 2**31 - 1
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_INSTANT: Final = timedelta(microseconds=1)


def _is_no_message(handler: str) -> str:
    if handler == PUBLISH:
        raise ValueError("messages are published by handlers, or through a connector")
    return handler


ScheduleName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[^\s\x00-\x1f]([^\x00-\x1f]{0,253}[^\s\x00-\x1f])?$")
]
HandlerName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[^\s\x00-\x1f]{1,255}$"), AfterValidator(_is_no_message)
]


class ScheduleConfig(StrictModel):
    """What makes a job again and again: at the ticks of `cron`, or every `interval` seconds."""

    handler: HandlerName = Field(description="name of the handler that runs at each tick")
    description: str | None = Field(None, max_length=10_000, description="what it is for")
    cron: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="minute hour day month weekday, with a field for the second before them if there are six",
    )
    interval: int | None = Field(
        None, ge=1, le=MAX_NUMBER, description="seconds between two ticks, counted from start_at or from the creation"
    )
    time_zone: str | None = Field(
        None, max_length=64, description="zone whose clock cron means, such as Europe/Berlin; default: UTC"
    )
    start_at: datetime | None = Field(
        None, description="no tick is earlier; without an offset, by the clock of time_zone"
    )
    end_at: datetime | None = Field(None, description="no tick is later; without an offset, by the clock of time_zone")
    max_executions: int = Field(0, ge=0, le=MAX_NUMBER, description="how many ticks make a job; 0 is no limit")
    enabled: bool = Field(default=True, description="false: it makes no jobs until it is enabled")
    condition: str | None = Field(
        None, max_length=10_000, description="SQL, a SELECT or an expression: where it is not true, a tick makes no job"
    )
    priority: Priority = Field(0, description="of its jobs: higher runs first")
    max_retries: int = Field(3, ge=0, le=1000, description="attempts of each job after the first")
    timeout: int = Field(300, ge=1, le=86_400, description="seconds that each job may take")
    misfire: Misfire = Field(
        Misfire.ONCE, description="what becomes of ticks that nobody was there for: none, one or all of them make a job"
    )
    misfire_limit: int | None = Field(
        None,
        ge=1,
        le=MAX_LIMIT,
        description="how many ticks misfire: all makes up for at most, the newest; default: 100",
    )
    gap: Gap = Field(
        Gap.RUN_AT_END, description="a tick at a local time that the clock leaps over runs after it, or not at all"
    )
    overlap: Overlap = Field(Overlap.FIRST, description="a tick at a local time that comes twice runs once or twice")
    metadata: Json = Field(default_factory=dict, description="goes into the metadata of each job")

    @model_validator(mode="after")
    def _has_ticks(self) -> Self:
        try:
            recurrence = ticks_of(self.schedule("", created_at=_EPOCH))
        except ConfigError as error:
            raise ValueError("; ".join(error.mistakes)) from None
        if recurrence.after(recurrence.anchor - _INSTANT) is None:
            raise ValueError("it would never make a job: there is no tick from start_at to end_at")
        return self

    def schedule(self, name: str, **row: Any) -> Schedule:
        """Return the row of that name. `row` are fields of it that no key says."""
        values = {key: getattr(self, key) for key in ScheduleConfig.model_fields}
        for key in ("misfire", "gap", "overlap"):
            values[key] = str(values[key])
        for key in ("start_at", "end_at"):
            values[key] = self._moment(values[key])
        return Schedule(**values | {"name": name, **row})

    def _moment(self, moment: datetime | None) -> datetime | None:
        if moment is None:
            return None
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=_zone(self.time_zone))
        return aware.astimezone(UTC)


def ticks_of(schedule: Schedule) -> Recurrence:
    """Return when a schedule ticks, whether it is enabled or not. Raises `ConfigError` with every mistake in that."""
    from gateway.store.turns import recurrence_of

    return recurrence_of(schedule)


def next_ticks(schedule: Schedule, now: datetime, count: int) -> list[tuple[datetime, datetime]]:
    """Return its next ticks, at most `count` and as many as its `max_executions` leaves: in UTC, and by its own clock.

    Raises `ConfigError` as `ticks_of` does.
    """
    left = schedule.max_executions - schedule.execution_count if schedule.max_executions > 0 else count
    zone = _zone(schedule.time_zone)
    return [(tick, tick.astimezone(zone)) for tick in islice(_ticks(ticks_of(schedule), now), max(0, min(count, left)))]


def _ticks(recurrence: Recurrence, tick: datetime | None) -> Iterator[datetime]:
    while tick is not None and (tick := recurrence.after(tick)) is not None:
        yield tick


def _zone(name: str | None) -> ZoneInfo:
    """Return a zone; UTC for one that is not known, which the recurrence refuses in its own words."""
    try:
        return ZoneInfo(name or "UTC")
    except (OSError, ValueError):
        return ZoneInfo("UTC")


_COLUMNS: Final = {"cron": "cronexpression", "interval": "intervalseconds"}


def column_of(key: str) -> str:
    """Return the column of `jobs` that a key stands in."""
    return _COLUMNS.get(key, key.replace("_", ""))


class ScheduleBody(ScheduleConfig):
    """A schedule over REST: the same keys by the names of their columns."""

    model_config = ConfigDict(alias_generator=column_of)
