"""The ticks of a cron expression by brute force: every minute of real time is asked what the clock on the wall shows.

Shares nothing with the gateway but the words of its documentation: no croniter, no wall time turned into real time.
"""

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTHS = dict(jan=1, feb=2, mar=3, apr=4, may=5, jun=6, jul=7, aug=8, sep=9, oct=10, nov=11, dec=12)  # noqa: C408 - shorter
WEEKDAYS = dict(sun=0, mon=1, tue=2, wed=3, thu=4, fri=5, sat=6)  # noqa: C408 - shorter
WARM_UP = timedelta(hours=3)


def numbers(text, low, high, names=None):
    found = set()
    for item in text.lower().split(","):
        span, _, step = item.partition("/")
        if span in ("*", "?"):
            first, last = low, high
        else:
            ends = [(names or {}).get(end) if end in (names or {}) else int(end) for end in span.split("-")]
            first, last = ends[0], high if step and len(ends) == 1 else ends[-1]
        assert low <= first <= last, item
        found.update(range(first, last + 1)[:: int(step or 1)])
    return found


class Oracle:
    """What an expression means. `every_hour`: it follows real time instead of naming times."""

    def __init__(self, expression):
        fields = ALIASES.get(expression, expression).lower().split()
        self.step = timedelta(minutes=1) if len(fields) == 5 else timedelta(seconds=1)
        second, minute, hour, self.day, month, self.weekday = ["0"][: 6 - len(fields)] + fields
        self.seconds, self.minutes, self.hours = numbers(second, 0, 59), numbers(minute, 0, 59), numbers(hour, 0, 23)
        self.months = numbers(month, 1, 12, MONTHS)
        self.every_hour = hour.startswith("*") or len(self.hours) == 24
        self.dates = {}

    def matches(self, wall):
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.second not in self.seconds:
            return False
        date = wall.date()
        if date not in self.dates:
            self.dates[date] = self.has(date)
        return self.dates[date]

    def has(self, date):
        if date.month not in self.months:
            return False
        by_day, by_weekday = self.named_by_day(date), self.named_by_weekday(date)
        if by_day is None or by_weekday is None:
            return by_day is not False and by_weekday is not False
        return by_day or by_weekday

    def named_by_day(self, date):
        if self.day in ("*", "?", "*/1"):
            return None
        items = self.day.split(",")
        last = monthrange(date.year, date.month)[1]
        if "l" in items and date.day == last:
            return True
        plain = [item for item in items if item != "l"]
        return bool(plain) and date.day in numbers(",".join(plain), 1, 31)

    def named_by_weekday(self, date):
        if self.weekday in ("*", "?", "*/1"):
            return None
        today = (date.weekday() + 1) % 7
        if "#" in self.weekday:
            pairs = [item.split("#") for item in self.weekday.split(",")]
            return any(today in numbers(day, 0, 7, WEEKDAYS) and (date.day - 1) // 7 + 1 == int(n) for day, n in pairs)
        if "l" in self.weekday:
            days = {int(item.strip("l")) % 7 for item in self.weekday.split(",")}
            return today in days and date.day + 7 > monthrange(date.year, date.month)[1]
        named = self.weekday.replace("-sun", "-7")
        high = 6 if "/" in named and "-" not in named else 7
        return today in {value % 7 for value in numbers(named, 0, high, WEEKDAYS)}

    def ticks(self, zone, first, last, *, gap, overlap):
        """Every tick of [first, last]. `first` must not lie within 3 hours after the start of an overlap."""
        return self.ticks_of(clock(zone, first - WARM_UP, last, self.step), first, gap=gap, overlap=overlap)

    def ticks_of(self, shown, first, *, gap, overlap):
        """The same of what the clock shows, for many expressions on one clock."""
        found, seen, previous = [], set(), shown[0][1] - self.step
        for moment, wall in shown:
            fires = self.matches(wall) and (self.every_hour or overlap == "both" or wall not in seen)
            if wall > previous + self.step and gap == "run_at_end" and not self.every_hour:
                fires = fires or self.missed(previous + self.step, wall)
            if fires and moment >= first:
                found.append(moment)
            if fires or self.matches(wall):
                seen.add(wall)
            previous = wall
        return found

    def missed(self, start, stop):
        """Whether the expression names a time of [start, stop), on a date that was not left out altogether."""
        while start < stop:
            midnight = datetime(start.year, start.month, start.day)  # noqa: DTZ001
            whole = start == midnight and midnight + timedelta(days=1) <= stop
            if not whole and self.matches(start):
                return True
            start += timedelta(days=1) if whole else self.step
        return False


def clock(zone, first, last, step):
    """Pairs of each moment of [first, last] and what the clock of a zone shows then."""
    zone, shown, moment = ZoneInfo(zone), [], first
    while moment <= last:
        shown.append((moment, moment.astimezone(zone).replace(tzinfo=None, fold=0)))
        moment += step
    return shown


def changes(zone, first_year, last_year):
    """The moments at which a zone's clock is moved, to the hour before."""
    zone, found = ZoneInfo(zone), []
    moment = datetime(first_year, 1, 1, tzinfo=UTC)
    while moment.year <= last_year:
        tomorrow = moment + timedelta(days=1)
        if moment.astimezone(zone).utcoffset() != tomorrow.astimezone(zone).utcoffset():
            hours = [moment + timedelta(hours=hour) for hour in range(25)]
            offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
            found += [hours[n] for n in range(24) if offsets[n] != offsets[n + 1]]
        moment = tomorrow
    return found
