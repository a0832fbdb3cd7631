"""From wall time to real time: which moments a cron expression means where a zone's clock is moved.

Where the clock goes forward, some wall times do not exist; where it goes back, some exist twice. As in Vixie's cron
an expression whose hour field begins with `*` (or names all 24 hours) follows real time: it fires whenever the clock
shows a match, so in both passes of an overlap, and has nothing to catch up after a gap. Every other expression names
its times, and they are kept by the policy:

| | |
|---|---|
| `gap: run_at_end` | a time that does not exist fires at the first moment after the gap, once in all |
| `gap: skip` | it does not fire that day |
| `overlap: first` | a time that exists twice fires at the first only |
| `overlap: both` | it fires at both |

A date that a zone left out altogether (30 December 2011 in Pacific/Apia) has no ticks under either policy.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from gateway.recurrence.cron import HORIZON, Cron

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)


class Gap(StrEnum):
    """What becomes of a named time that does not exist."""

    RUN_AT_END = "run_at_end"
    SKIP = "skip"


class Overlap(StrEnum):
    """At which of its two moments a named time fires that exists twice."""

    FIRST = "first"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class _Change:
    """A moment at which a zone's offset changes. Wall times of [`start`, `stop`) are left out, or exist twice."""

    moment: datetime
    before: timedelta
    after: timedelta

    @property
    def forward(self) -> bool:
        return self.after > self.before

    @property
    def start(self) -> datetime:
        return self.moment.replace(tzinfo=None) + min(self.before, self.after)

    @property
    def stop(self) -> datetime:
        return self.moment.replace(tzinfo=None) + max(self.before, self.after)

    def leaves_out(self, wall: datetime) -> bool:
        """Whether the gap takes the whole date of a wall time."""
        midnight = wall.replace(hour=0, minute=0, second=0)
        return self.start <= midnight and midnight + _DAY <= self.stop


@dataclass(frozen=True, slots=True)
class WallTicks:
    """The ticks of a cron expression in a zone, under a policy. Moments are UTC."""

    cron: Cron
    zone: ZoneInfo
    gap: Gap
    overlap: Overlap

    def after(self, moment: datetime) -> datetime | None:
        """Return the first tick strictly later than a moment; None if the next `HORIZON` years have none."""
        local = moment.astimezone(self.zone)
        wall = local.replace(tzinfo=None, microsecond=0, fold=0)
        found = self._search_forward(wall, moment)
        change = self._change(wall)
        if change is None or change.forward or local.fold or not self._repeats:
            return found
        again = self.cron.next(change.start - _SECOND)
        if again is None or again >= change.stop:
            return found
        second = _utc(again, change.after)
        return second if found is None else min(found, second)

    def before(self, moment: datetime) -> datetime | None:
        """Return the last tick strictly earlier than a moment; None if the `HORIZON` years before it have none."""
        local = moment.astimezone(self.zone)
        wall = local.replace(tzinfo=None, microsecond=0, fold=0) + (_SECOND if local.microsecond else timedelta())
        found = self._search_back(wall, moment)
        change = self._change(local.replace(tzinfo=None, microsecond=0, fold=0))
        if change is None or change.forward or not local.fold:
            return found
        latest = self.cron.previous(change.stop)
        if latest is None or latest < change.start:
            return found
        first = _utc(latest, change.before)
        return first if found is None else max(found, first)

    @property
    def _repeats(self) -> bool:
        return self.cron.every_hour or self.overlap is Overlap.BOTH

    @property
    def _catches_up(self) -> bool:
        return not self.cron.every_hour and self.gap is Gap.RUN_AT_END

    def _search_forward(self, start: datetime, moment: datetime) -> datetime | None:
        wall = self.cron.next(start)
        while wall is not None and wall.year - start.year <= HORIZON:
            change = self._change(wall)
            later = [tick for tick in self._moments(wall, change) if tick > moment]
            if later:
                return later[0]
            assert change is not None, "an ordinary wall time later than now is a moment later than now"
            wall = self.cron.next(change.stop - _SECOND)
        return None

    def _search_back(self, start: datetime, moment: datetime) -> datetime | None:
        wall = self.cron.previous(start)
        while wall is not None and start.year - wall.year <= HORIZON:
            change = self._change(wall)
            earlier = [tick for tick in self._moments(wall, change) if tick < moment]
            if earlier:
                return earlier[-1]
            assert change is not None, "an ordinary wall time earlier than now is a moment earlier than now"
            wall = self.cron.previous(change.start)
        return None

    def _moments(self, wall: datetime, change: _Change | None) -> list[datetime]:
        if change is None:
            return [wall.replace(tzinfo=self.zone).astimezone(UTC)]
        if change.forward:
            return [change.moment] if self._catches_up and not change.leaves_out(wall) else []
        passes = [_utc(wall, change.before), _utc(wall, change.after)]
        return passes if self._repeats else passes[:1]

    def _change(self, wall: datetime) -> _Change | None:
        """Find the change of offset that leaves out or repeats a wall time; None for an ordinary one."""
        before = self._offset(wall.replace(tzinfo=self.zone, fold=0))
        after = self._offset(wall.replace(tzinfo=self.zone, fold=1))
        if before == after:
            return None
        start = _utc(wall, max(before, after))
        low, high = 0, abs(after - before) // _SECOND
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset((start + middle * _SECOND).astimezone(self.zone)) == before:
                low = middle
            else:
                high = middle
        return _Change(start + high * _SECOND, before, after)

    @staticmethod
    def _offset(local: datetime) -> timedelta:
        offset = local.utcoffset()
        assert offset is not None, "a zone has an offset for every moment"
        return offset


def _utc(wall: datetime, offset: timedelta) -> datetime:
    return (wall - offset).replace(tzinfo=UTC)
