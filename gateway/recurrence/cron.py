"""Cron expressions: read strictly, every mistake named by its field, then searched by croniter in plain wall time.

| position (of 5) | (of 6) | field | values |
|---|---|---|---|
| | 1 | second | 0–59 |
| 1 | 2 | minute | 0–59 |
| 2 | 3 | hour | 0–23 |
| 3 | 4 | day of the month | 1–31, `L` the last |
| 4 | 5 | month | 1–12, `jan`–`dec` |
| 5 | 6 | day of the week | 0–7 (0 and 7 are Sunday), `sun`–`sat`, `fri#2` the second Friday, `L5` the last Friday |

A field is `*` (`?` for days), a value, a range `a-b`, each with a step `/n`, or a list of those; `a/n` is `a-max/n`.
`@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight` and `@hourly` stand for their usual expressions.

**Days.** When neither the day of the month nor the day of the week is `*` (or `?`, `*/1`), a day matches if either
does: `0 0 13 * 5` is every 13th and every Friday, `0 0 */2 * 1` every odd day and every Monday.
"""

import re
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # elsewhere it is imported where it is needed: most commands would wait for it in vain
    from croniter import croniter

MAX_LENGTH: Final = 256
HORIZON: Final = 50
"""Years after which an expression without a match has none. The sparsest (29 February, a Monday) needs 40."""

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DAYS: Final = dict.fromkeys(range(1, 13), 31) | dict.fromkeys((4, 6, 9, 11), 30) | {2: 29}
_ITEM: Final = re.compile(r"(?:(?P<all>[*?])|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>\w+))?", re.ASCII)
_NTH: Final = re.compile(r"(?P<day>\w+)#(?P<nth>\w+)|l(?P<last>\w+)|(?P<final>\w+)l", re.ASCII)
_DRAWN: Final = re.compile(r"[rh](?![a-z])", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return 7 if self.names == _WEEKDAYS else self.high - self.low + 1


_SECOND: Final = _Field("second", 0, 59)
_MINUTE: Final = _Field("minute", 0, 59)
_HOUR: Final = _Field("hour", 0, 23)
_DAY: Final = _Field("day of the month", 1, 31)
_MONTH: Final = _Field("month", 1, 12, _MONTHS)
_WEEKDAY: Final = _Field("day of the week", 0, 7, _WEEKDAYS)


@dataclass(frozen=True)
class Cron:
    """An expression that was read: `text` for croniter, `every_hour` if its hour field begins with `*`."""

    text: str
    every_hour: bool

    @cached_property
    def _search(self) -> "croniter":
        from croniter import croniter

        # Copied before each use: it keeps its position in itself, and expressions are shared between threads.
        return croniter(self.text, datetime(1970, 1, 1), datetime, max_years_between_matches=HORIZON)  # noqa: DTZ001 - wall time

    def next(self, wall: datetime) -> datetime | None:
        """Return the first match strictly later than a naive wall time; None if `HORIZON` years have none."""
        from croniter import CroniterBadDateError

        try:
            found: datetime = copy(self._search).get_next(start_time=wall)
        except CroniterBadDateError:
            return None
        return found

    def previous(self, wall: datetime) -> datetime | None:
        """Return the last match strictly earlier than a naive wall time; None if `HORIZON` years have none."""
        from croniter import CroniterBadDateError

        try:
            found: datetime = copy(self._search).get_prev(start_time=wall)
        except CroniterBadDateError:
            return None
        return found


@lru_cache(maxsize=4096)
def parse(text: str) -> Cron:
    """Read an expression. Raises ValueError, its text naming the field and what to write instead."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(text)} characters; write one of at most {MAX_LENGTH}")
    words = _words(text.strip().lower())
    second, minute, hour = (_field(f, w) for f, w in zip((_SECOND, _MINUTE, _HOUR), words, strict=False))
    month = _field(_MONTH, words[4])
    day, weekday = _days(words[3], words[5])
    _possible(day, month, weekday)
    fields = [minute, hour, day, month, weekday] + ([] if second == "0" else [second])
    return Cron(" ".join(fields), every_hour=words[2].startswith("*") or hour == "*")


def _words(text: str) -> list[str]:
    if text.startswith("@") and text not in ALIASES:
        raise ValueError(f"there is no {text!r}; use one of {', '.join(ALIASES)}, or 5 or 6 fields")
    words = ALIASES.get(text, text).split()
    if len(words) not in (5, 6):
        raise ValueError(
            f"the expression has {len(words)} fields; write 5 (minute, hour, day of the month, month, day of the week)"
            " or 6 (a second before them)",
        )
    return words if len(words) == 6 else ["0", *words]


def _field(field: _Field, text: str) -> str:
    values: set[int] = set()
    last = False
    for item in text.split(","):
        if field is _DAY and item == "l":
            last = True
        else:
            values |= _item(field, item)
    if len(values) == field.size:
        return "*"
    return ",".join([*map(str, sorted(values)), *(["l"] if last else [])])


def _item(field: _Field, text: str) -> set[int]:
    if _DRAWN.match(text):
        raise ValueError(f"{field.name} {text!r} would be drawn anew by each instance; write the value")
    found = _ITEM.fullmatch(text)
    if found is None or (found["all"] == "?" and field not in (_DAY, _WEEKDAY)):
        raise ValueError(f"{field.name} {text!r} is not understood; write {_allowed(field)}, a range, a step or a list")
    step = _step(field, text, found["step"])
    if found["all"]:
        return {value % 7 if field is _WEEKDAY else value for value in range(field.low, field.low + field.size, step)}
    low = _value(field, found["low"])
    high = _value(field, found["high"]) if found["high"] else _implied_high(field, low, stepping=bool(found["step"]))
    if field is _WEEKDAY and found["high"] == "sun":
        high = 7
    if low > high:
        raise ValueError(f"{field.name} {text!r} runs backwards; write it as two ranges, the lower one first")
    values = range(low, high + 1, step)
    return {value % 7 for value in values} if field is _WEEKDAY else set(values)


def _implied_high(field: _Field, low: int, *, stepping: bool) -> int:
    return max(low, field.low + field.size - 1) if stepping else low


def _step(field: _Field, item: str, text: str | None) -> int:
    if text is None:
        return 1
    highest = field.size - 1
    if not text.isdigit() or not 1 <= int(text) <= highest:
        raise ValueError(f"{field.name} {item!r} has a step of {text!r}; write one of 1 to {highest}")
    return int(text)


def _value(field: _Field, text: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.low
    if not text.isdigit() or not field.low <= int(text) <= field.high:
        raise ValueError(f"{field.name} {text!r} is not known; write {_allowed(field)}")
    return int(text)


def _allowed(field: _Field) -> str:
    named = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
    return f"{field.low} to {field.high}{' or L' if field is _DAY else named}"


def _days(day_text: str, weekday_text: str) -> tuple[str, str]:
    day = _field(_DAY, day_text)
    weekday = _weekdays(weekday_text, day)
    named = [found == "*" and not _starred(text) for found, text in ((day, day_text), (weekday, weekday_text))]
    return ("*", "*") if any(named) else (day, weekday)


def _starred(text: str) -> bool:
    return any(item[0] in "*?" for item in text.split(",") if item)


def _weekdays(text: str, day: str) -> str:
    items = text.split(",")
    counted = [found for item in items if item not in _WEEKDAYS and (found := _NTH.fullmatch(item))]
    if not counted:
        return _field(_WEEKDAY, text)
    if len(counted) < len(items):
        raise ValueError(f"{_WEEKDAY.name} {text!r} mixes weekly days with counted ones; write two schedules")
    if day != "*":
        raise ValueError(f"{_WEEKDAY.name} {text!r} needs `*` as {_DAY.name}; write two schedules")
    return ",".join(sorted({_counted(found) for found in counted}))


def _counted(found: "re.Match[str]") -> str:
    weekday = _value(_WEEKDAY, found["day"] or found["last"] or found["final"]) % 7
    if found["nth"] is None:
        return f"l{weekday}"
    if found["nth"] not in ("1", "2", "3", "4", "5"):
        raise ValueError(f"{_WEEKDAY.name} {found[0]!r} counts to {found['nth']}; write #1 to #5")
    return f"{weekday}#{found['nth']}"


def _possible(day: str, month: str, weekday: str) -> None:
    if day == "*" or weekday != "*" or "l" in day:
        return
    longest = 31 if month == "*" else max(_DAYS[int(number)] for number in month.split(","))
    if int(day.split(",", maxsplit=1)[0]) > longest:
        raise ValueError(f"{_DAY.name} {day} does not exist in month {month}; write at most {longest}")
