"""A schedule's ticks, as its row or its YAML describes them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.errors import ConfigError
from gateway.recurrence.cron import parse
from gateway.recurrence.wall import Gap, Overlap, WallTicks

MAX_INTERVAL: Final = 2**31 - 1
_FIRST: Final = datetime(1900, 1, 2, tzinfo=UTC)
_LAST: Final = datetime(9900, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """The ticks of a cron expression in a time zone, or of an interval in seconds of real time.

    `cron`: 5 fields, 6 with the second first, or an alias such as `@daily`; see `gateway.recurrence.cron`.
    `interval`: ticks are `anchor + k × interval` for k = 0, 1, …; the time zone has no part in it.
    `anchor`: no tick is earlier. `end_at`: no tick is later; one at that very moment counts.
    `gap`, `overlap`: what a clock that is moved does to a cron expression; see `gateway.recurrence.wall`.

    Raises ConfigError with every mistake, each naming its field and what to write instead.
    """

    cron: str | None = None
    interval: int | None = None
    anchor: datetime
    time_zone: str = "UTC"
    gap: str = Gap.RUN_AT_END
    overlap: str = Overlap.FIRST
    end_at: datetime | None = None
    _ticks: WallTicks | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        mistakes: list[str] = []
        if (self.cron is None) == (self.interval is None):
            mistakes.append("cron, interval: give one of them, and not both")
        if self.interval is not None and not 1 <= self.interval <= MAX_INTERVAL:
            mistakes.append(f"interval: {self.interval} is not a number of seconds from 1 to {MAX_INTERVAL}")
        for name in ("anchor", "end_at"):
            moment = getattr(self, name)
            if moment is None:
                continue
            if moment.tzinfo is None:
                mistakes.append(f"{name}: {moment} has no time zone; give an aware moment")
            else:
                object.__setattr__(self, name, moment.astimezone(UTC))
        ticks = self._read(mistakes)
        if mistakes:
            raise ConfigError(mistakes)
        object.__setattr__(self, "_ticks", ticks)

    def after(self, moment: datetime) -> datetime | None:
        """Return the first tick strictly later than a moment, never before `anchor`. None: there is none any more.

        "None any more" is known from `end_at`, or when 50 years have no tick; ticks end with the year 9900 at last.
        """
        tick = self._after(max(moment, self._floor))
        return tick if tick is not None and tick <= self._ceiling else None

    def before(self, moment: datetime) -> datetime | None:
        """Return the last tick strictly earlier than a moment, never after `end_at`. None: there is none before it."""
        tick = self._before(min(moment, self._ceiling + _TICK))
        return tick if tick is not None and tick > self._floor else None

    def count(self, after: datetime, before: datetime, *, at_most: int) -> int:
        """How many ticks lie strictly between two moments; `at_most` stands for that many or more.

        Exact and in constant time for an interval; for cron it takes a step for each tick that is counted.
        """
        first, last = self.after(after), self.before(before)
        if first is None or last is None or first > last:
            return 0
        if self.interval is not None:
            return (last - first) // timedelta(seconds=self.interval) + 1
        found, tick = 1, first
        while found < at_most and (following := self.after(tick)) is not None and following < before:
            found, tick = found + 1, following
        return found

    @property
    def _floor(self) -> datetime:
        return max(self.anchor, _FIRST) - _TICK

    @property
    def _ceiling(self) -> datetime:
        return _LAST if self.end_at is None else min(self.end_at, _LAST)

    def _after(self, moment: datetime) -> datetime | None:
        if moment >= self._ceiling:
            return None
        if self._ticks is not None:
            return self._ticks.after(moment)
        interval = timedelta(seconds=self.interval or 1)
        return self.anchor + interval * ((moment - self.anchor) // interval + 1)

    def _before(self, moment: datetime) -> datetime | None:
        if moment <= self._floor:
            return None
        if self._ticks is not None:
            return self._ticks.before(moment)
        interval = timedelta(seconds=self.interval or 1)
        return self.anchor + interval * (-((self.anchor - moment) // interval) - 1)

    def _read(self, mistakes: list[str]) -> WallTicks | None:
        gap = _choice(Gap, "gap", self.gap, mistakes)
        overlap = _choice(Overlap, "overlap", self.overlap, mistakes)
        zone = _zone(self.time_zone, mistakes)
        if self.cron is None:
            return None
        try:
            cron = parse(self.cron)
        except ValueError as error:
            mistakes.append(f"cron: {error}")
            return None
        return WallTicks(cron, zone, gap, overlap) if zone and gap and overlap else None


def _choice(kind: type[_Choice], name: str, value: str, mistakes: list[str]) -> _Choice | None:
    if value in set(kind):
        return kind(value)
    mistakes.append(f"{name}: {value!r} is not known; write {' or '.join(kind)}")
    return None


def _zone(name: str, mistakes: list[str]) -> ZoneInfo | None:
    try:
        if name != "localtime" and not name.startswith("right/"):  # of the machine, and with leap seconds
            return ZoneInfo(name)
    except (OSError, ValueError, ZoneInfoNotFoundError):
        pass
    mistakes.append(f"time_zone: {name!r} is not known; write a name such as Europe/Berlin or UTC")
    return None
