"""What becomes of a schedule at one moment: decisions apart from the database."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gateway.errors import ConfigError
from gateway.job import Schedule
from gateway.recurrence import MAX_LIMIT, Due, Misfire, Recurrence, due

LIMIT = 100
"""How many missed ticks `misfire: all` makes up for where nobody says."""
_TICK = timedelta(microseconds=1)
_EVER = datetime.min.replace(tzinfo=UTC)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A schedule that is due, and the condition to be asked first."""

    id: str
    name: str
    condition: str
    tick: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What its condition said. It counts only for a row that still asks the same at the same tick."""

    asked: Asking
    holds: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be written for one schedule. `error`: why it makes no job, now or until its row is changed."""

    schedule: Schedule
    next: datetime | None
    ticks: tuple[datetime, ...] = ()
    """A job for each."""
    dropped: int = 0
    """Ticks that make none: too late for its misfire policy, or its condition did not hold."""
    error: str | None = None
    invalid: bool = False
    """Whether there are no ticks before its row is changed."""


def ended(schedule: Schedule) -> bool:
    """Say whether a schedule is to make no jobs, as its row is now."""
    used_up = 0 < schedule.max_executions <= schedule.execution_count
    return used_up or not (schedule.enabled and schedule.active)


def plan(schedule: Schedule, now: datetime, patience: float) -> Turn:
    """Find the first tick of a schedule that is new or was changed.

    Ticks since the change count if it was at most `patience` seconds ago: so long nobody may have looked.
    """
    if ended(schedule):
        return Turn(schedule, None)
    since = max(schedule.modified_at or now, now - timedelta(seconds=patience))
    try:
        _policy(schedule)
        return Turn(schedule, recurrence_of(schedule).after(min(since, now)))
    except Exception as error:  # noqa: BLE001 - anybody may write anything into a row; it must hurt no other
        return Turn(schedule, None, error=_text(error), invalid=True)


def decide(schedule: Schedule, now: datetime, verdict: Verdict | None) -> Turn:
    """Decide about the ticks of a schedule that are due. `verdict`: what its condition says, None if it has none."""
    if ended(schedule):
        return Turn(schedule, None)
    try:
        found = _due(schedule, now)
    except Exception as error:  # noqa: BLE001 - as above
        return Turn(schedule, None, error=_text(error), invalid=True)
    if verdict is not None and not verdict.holds:
        return Turn(schedule, found.next, dropped=len(found.ticks) + found.dropped, error=verdict.error)
    ticks, following = found.ticks, found.next
    if schedule.max_executions > 0:
        left = schedule.max_executions - schedule.execution_count
        ticks, following = ticks[:left], following if len(ticks) < left else None
    return Turn(schedule, following, ticks, dropped=found.dropped)


def asked(schedule: Schedule, verdicts: Mapping[str, Verdict]) -> Verdict | None:
    """Return the verdict that counts for a row as it is now."""
    verdict = verdicts.get(schedule.id)
    same = verdict and (verdict.asked.condition, verdict.asked.tick) == (schedule.condition, schedule.next_run_at)
    return verdict if same else None


def check(schedule: Schedule) -> None:
    """Raise `ConfigError` with every mistake in when a schedule is to fire."""
    _policy(schedule)
    if recurrence_of(schedule).after(_EVER) is None:
        raise ConfigError(["end_at: it would never make a job, for no tick is as early as that; leave it out"])


def _due(schedule: Schedule, now: datetime) -> Due:
    misfire, limit = _policy(schedule)
    after = now if schedule.next_run_at is None else schedule.next_run_at - _TICK
    return due(recurrence_of(schedule), after, now, misfire, limit)


def _policy(schedule: Schedule) -> tuple[Misfire, int]:
    misfire, limit = schedule.misfire or Misfire.ONCE, schedule.misfire_limit
    if misfire not in set(Misfire):
        raise ConfigError([f"misfire: {misfire!r} is not known; write {', '.join(Misfire)}"])
    if limit is not None and not 1 <= limit <= MAX_LIMIT:
        raise ConfigError([f"misfire_limit: {limit} is not a number from 1 to {MAX_LIMIT}"])
    return Misfire(misfire), LIMIT if limit is None else limit


def recurrence_of(schedule: Schedule) -> Recurrence:
    """Return its ticks. What other programs leave empty ('' and 0) is not given."""
    given = {"time_zone": schedule.time_zone, "gap": schedule.gap, "overlap": schedule.overlap}
    return Recurrence(
        cron=schedule.cron or None,
        interval=None if schedule.interval == 0 and schedule.cron else schedule.interval,
        anchor=schedule.start_at or schedule.created_at or _LONG_AGO,
        end_at=schedule.end_at,
        **{name: value for name, value in given.items() if value},
    )


def _text(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return "; ".join(error.mistakes)
    return f"{type(error).__name__}: {error}"
