"""What is fired of the ticks that are due, when it is later than they wanted.

A tick is on time while it is no older than the grace; all of them fire, each with a job of its own, under every policy,
so that a pause of the scheduler or its move to another instance loses and joins nothing. If the oldest tick that is
due is older, the schedule has misfired:

| | |
|---|---|
| `skip` | ticks older than the grace are dropped, those on time fire |
| `once` | one job stands for all that are due; it carries the latest of them |
| `all` | the newest `limit` ticks fire, in order; older ones are dropped |
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from gateway.recurrence.recurrence import Recurrence

GRACE: Final = timedelta(seconds=60)
"""How old a tick may be and still be on time."""
MAX_LIMIT: Final = 1000
"""A limit of `all` counts as at most this, and as 1 at least."""
COUNTED: Final = 100
"""How many dropped ticks of a cron expression are counted."""
_TICK: Final = timedelta(microseconds=1)


class Misfire(StrEnum):
    """What is fired after ticks were missed."""

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What to fire now, and when to look again."""

    ticks: tuple[datetime, ...] = ()
    """Oldest first; a job for each."""
    next: datetime | None
    """The first tick later than now; None when there is none any more."""
    dropped: int = 0
    """Due ticks that get no job of their own. For cron, `COUNTED` means that many or more."""


def due(
    recurrence: Recurrence,
    after: datetime,
    now: datetime,
    misfire: Misfire = Misfire.ONCE,
    limit: int = 1,
    grace: timedelta = GRACE,
) -> Due:
    """Decide about the ticks later than `after` (the last one decided before) and not later than `now`.

    The work is bounded by the grace in seconds and the limit, whatever the time between `after` and `now`.
    """
    following = recurrence.after(now)
    oldest = recurrence.after(after)
    if oldest is None or oldest > now:
        return Due(next=following)
    if now - oldest <= grace:
        ticks = _newest(recurrence, after, now, None)
    elif misfire is Misfire.SKIP:
        ticks = _newest(recurrence, now - grace - _TICK, now, None)
    else:
        ticks = _newest(recurrence, after, now, 1 if misfire is Misfire.ONCE else max(1, min(limit, MAX_LIMIT)))
    dropped = recurrence.count(after, ticks[0] if ticks else now, at_most=COUNTED)
    return Due(ticks=ticks, next=following, dropped=dropped)


def _newest(recurrence: Recurrence, after: datetime, now: datetime, limit: int | None) -> tuple[datetime, ...]:
    found: list[datetime] = []
    tick = recurrence.before(now + _TICK)
    while tick is not None and tick > after and (limit is None or len(found) < limit):
        found.append(tick)
        tick = recurrence.before(tick)
    return tuple(reversed(found))
