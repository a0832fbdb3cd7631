"""The ticks of cron expressions against an oracle that asks every minute; what holds for every recurrence there is."""

import os
import random
import time
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.recurrence import COUNTED, GRACE, Gap, Misfire, Overlap, Recurrence, due
from tests.cron_oracle import Oracle, changes, clock

SOAK = float(os.environ.get("SOAK_SECONDS", "0"))
ANCHOR = datetime(1970, 1, 1, tzinfo=UTC)
SMALLEST = timedelta(microseconds=1)
POLICIES = tuple(product(Gap, Overlap))
ZONES = (
    "UTC",
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/New_York",
    "America/Nuuk",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Antarctica/Troll",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/London",
    "Pacific/Apia",
)
SHOWPIECES = (  # the moments for which the policies were made
    ("Pacific/Apia", "2011-12-30T00:00"),
    ("Pacific/Apia", "2010-09-26T00:00"),
    ("Australia/Lord_Howe", "2024-10-05T15:30"),
    ("Australia/Lord_Howe", "2024-04-06T15:00"),
    ("America/Sao_Paulo", "2018-11-04T03:00"),
    ("America/Sao_Paulo", "2018-02-18T02:00"),
    ("America/Nuuk", "2024-03-31T01:00"),
    ("America/Nuuk", "2024-10-27T01:00"),
    ("America/St_Johns", "2010-03-14T03:31"),
    ("America/St_Johns", "2010-11-07T02:31"),
    ("Africa/Casablanca", "2024-03-10T02:00"),
    ("Africa/Casablanca", "2024-04-14T02:00"),
    ("Antarctica/Troll", "2024-03-31T01:00"),
    ("Antarctica/Troll", "2024-10-27T01:00"),
    ("Europe/Berlin", "2038-03-28T01:00"),
    ("Europe/Berlin", "2099-10-25T01:00"),
)
ORDINARY = ("2000-02-28T12:00", "2023-02-28T12:00", "2024-02-29T12:00", "2023-12-31T12:00", "2100-02-28T12:00")
DENSE = ("* * * * *", "*/7 * * * *", "10-50/20 * * * *", "*/15 23,0-4 * * *", "* 2 * * *", "15,45 0-23 * * *")
EXPRESSIONS = (
    *("0 * * * *", "30 * * * *", "59 */2 * * *", "15 0-23 * * *", "@hourly", "45 1/2 * * *", "0 */6 * * mon,tue"),
    *("30 2 * * *", "0 2 * * *", "0 3 * * *", "59 2 * * *", "*/20 2,3 * * *", "0-10/5 1-3 * * *", "31 1 * * *"),
    *("0 0 * * *", "30 0 * * *", "1 0 * * *", "59 23 * * *", "*/15 23 * * *", "0 1 * * *", "@daily", "0 12 * * *"),
    *("0 0 1 * *", "0 0 L * *", "30 2 31 * *", "0 3 28,29 2 *", "5 0 29 feb ?", "0 2 L,15 * *", "@monthly", "@yearly"),
    *(
        "30 1 * * sun",
        "0 2 * * 7",
        "30 0 * * mon-fri",
        "0 0 * * 5-sun",
        "15 2 * * 0#1",
        "15 2 * * sun#5",
        "30 0 * * L0",
    ),
    *("0 0 13 * fri", "0 0 */2 * 1", "30 2 1-7 3,10,11 0", "0 4 ? * 3", "0 0 1-31 * 1", "0 6 15 6 0-6", "@weekly"),
    *("15,45 6-18/6 * jan-jun,SEP *", "7/20 22-23 L * *", "0 12 1-7,25-31/2 1-12/3 *", "0 0 10-20 * 1/2"),
)
WITH_SECONDS = ("*/20 */10 * * * *", "30 30 2 * * *", "59 59 * * * *", "*/30 * 2 * * *", "0 0 0 * * *", "7 1 0,1 * * *")
SPARSE = (
    "0 0 29 2 *",
    "0 0 31 * *",
    "0 0 L 2 *",
    "0 0 * 2 mon#5",
    "0 0 29 2 1",
    "0 0 30,31 4,6 *",
    "0 0 * * 5L",
    "0 0 13 * 5",
)


def moment(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def recurrence(expression, zone, gap=Gap.RUN_AT_END, overlap=Overlap.FIRST):
    return Recurrence(cron=expression, anchor=ANCHOR, time_zone=zone, gap=gap, overlap=overlap)


def forward(schedule, first, last):
    found, tick = [], schedule.after(first - SMALLEST)
    while tick is not None and tick <= last:
        found.append(tick)
        tick = schedule.after(tick)
    return found


def backward(schedule, first, last):
    found, tick = [], schedule.before(last + SMALLEST)
    while tick is not None and tick >= first:
        found.append(tick)
        tick = schedule.before(tick)
    return found[::-1]


@cache
def changes_of(zone):
    return changes(zone, 1999, 2045)


def windows(seed):
    """Where to look: around every kind of change, month ends and leap days, some at random."""
    draw = random.Random(seed)
    yield from ((zone, moment(text)) for zone, text in SHOWPIECES)
    for zone in ZONES:
        yield from ((zone, change) for change in draw.sample(changes_of(zone), min(2, len(changes_of(zone)))))
        yield zone, moment(draw.choice(ORDINARY)) + timedelta(hours=draw.randrange(24))


def compare(expression, zone, shown, first, last, policy):
    gap, overlap = policy
    expected = Oracle(expression).ticks_of(shown, first, gap=gap, overlap=overlap)
    schedule = recurrence(expression, zone, gap, overlap)
    assert forward(schedule, first, last) == expected, (expression, zone, policy)
    assert backward(schedule, first, last) == expected, (expression, zone, policy)


def look(zone, middle, expressions, around, draw, step=timedelta(minutes=1)):
    first, last = middle - around, middle + around
    shown = clock(zone, first - timedelta(hours=3), last, step)
    for expression in expressions:
        for policy in POLICIES if SOAK else [draw.choice(POLICIES)]:
            compare(expression, zone, shown, first, last, policy)


def any_field(draw, low, high, *, dense):
    """A field as people write them, at random."""
    first, last = sorted(draw.sample(range(low, high + 1), 2))
    kinds = ["*", f"*/{draw.randint(2, high - low)}", f"{first}-{last}", f"{first}-{last}/{draw.randint(1, 5)}"]
    kinds += [f"{last}/{draw.randint(2, high - low)}"] if dense else []
    return draw.choice([*kinds, str(first), str(last), f"{first},{last}", f"{first}-{last},{low}"])


def any_expression(draw):
    minute, hour = str(draw.randrange(60)), any_field(draw, 0, 5, dense=False)
    if draw.random() < 0.3:
        minute, hour = any_field(draw, 0, 59, dense=True), any_field(draw, 0, 23, dense=True)
    day = draw.choice(["*", "*", "L", any_field(draw, 1, 31, dense=True)])
    month = draw.choice(["*", "*", any_field(draw, 1, 12, dense=True)])
    weekday = draw.choice(["*", "*", any_field(draw, 0, 6, dense=True)])
    return f"{minute} {hour} {day} {month} {weekday}"


def possible(expression):
    oracle = Oracle(expression)
    return any(oracle.has(date(2024, 1, 1) + timedelta(days=day)) for day in range(366 + 3 * 365))


def mistakes_of(expression):
    try:
        recurrence(expression, "Europe/Berlin")
    except ConfigError as error:
        return error.mistakes
    return ()


def any_window(draw):
    zone = draw.choice(ZONES)
    if changes_of(zone) and draw.random() < 0.8:
        return zone, draw.choice(changes_of(zone)) + timedelta(hours=draw.randint(-20, 20))
    return zone, moment(draw.choice(ORDINARY)) + timedelta(hours=draw.randint(-20, 20))


def test_the_ticks_of_every_expression_are_those_that_the_clock_on_the_wall_shows():
    draw = random.Random(42)
    for zone, middle in windows(seed=42):
        look(zone, middle, DENSE if SOAK else [draw.choice(DENSE)], timedelta(hours=3), draw)
        look(zone, middle, EXPRESSIONS if SOAK else draw.sample(EXPRESSIONS, 20), timedelta(hours=26), draw)


def test_the_ticks_of_expressions_with_seconds_are_those_that_the_clock_on_the_wall_shows():
    draw = random.Random(42)
    for zone, text in SHOWPIECES if SOAK else draw.sample(SHOWPIECES, 4):
        look(zone, moment(text), WITH_SECONDS, timedelta(minutes=70), draw, step=timedelta(seconds=1))


@pytest.mark.slow
def test_the_ticks_of_random_expressions_are_those_that_the_clock_on_the_wall_shows():
    draw, until, rounds = random.Random(42), time.monotonic() + SOAK / 10, 0
    while rounds < 25 or time.monotonic() < until:
        zone, middle = any_window(draw)
        expressions = [any_expression(draw) for _ in range(12)]
        assert all(mistakes_of(expression) for expression in expressions if not possible(expression))
        expressions = [expression for expression in expressions if possible(expression)]
        look(zone, middle, expressions, timedelta(hours=12), draw)
        rounds += 1


@pytest.mark.parametrize("expression", SPARSE)
def test_days_that_are_rare_are_found_over_a_century_and_more(expression):
    days = (date(1999, 1, 1) + timedelta(days=day) for day in range(366 * 110))
    oracle = Oracle(expression)
    expected = [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days if oracle.has(day)]
    schedule = recurrence(expression, "UTC")
    assert forward(schedule, expected[0], expected[-1]) == expected
    assert backward(schedule, expected[0], expected[-1]) == expected


expressions = st.randoms(use_true_random=False).map(any_expression)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2110, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@st.composite
def recurrences(draw):
    anchor = draw(moments)
    window = draw(st.none() | st.timedeltas(timedelta(0), timedelta(days=3000)))
    interval = st.fixed_dictionaries({"interval": st.integers(1, 10**7)})
    timing = draw(interval | st.fixed_dictionaries({"cron": expressions.filter(possible)}))
    return Recurrence(
        **timing,
        anchor=anchor,
        end_at=None if window is None else anchor + window,
        time_zone=draw(st.sampled_from(ZONES)),
        gap=draw(st.sampled_from(Gap)),
        overlap=draw(st.sampled_from(Overlap)),
    )


@settings(max_examples=5000 if SOAK else 300, deadline=None)
@given(recurrences(), moments)
def test_ticks_rise_lie_in_their_window_and_are_the_same_in_both_directions(schedule, start):
    tick, previous = schedule.after(start), start
    for _ in range(6):
        if tick is None:
            assert schedule.before(datetime.max.replace(tzinfo=UTC)) in (None, schedule.before(previous + SMALLEST))
            return
        assert previous < tick
        assert schedule.anchor <= tick <= (schedule.end_at or tick)
        assert schedule.before(tick + SMALLEST) == tick
        assert schedule.after(tick - SMALLEST) == tick
        earlier = schedule.before(tick)
        assert earlier is None or earlier <= previous
        tick, previous = schedule.after(tick), tick


@settings(max_examples=3000 if SOAK else 200, deadline=None)
@given(
    recurrences(),
    moments,
    st.timedeltas(timedelta(0), timedelta(days=1500)) | st.timedeltas(timedelta(0), GRACE * 3),
    st.sampled_from(Misfire),
    st.integers(1, 20),
)
def test_what_is_due_and_what_is_dropped_are_together_all_ticks_and_the_newest_are_fired(
    schedule, start, down, policy, limit
):
    now = start + down
    result = due(schedule, start, now, policy, limit)
    assert list(result.ticks) == sorted(set(result.ticks))
    assert all(start < tick <= now for tick in result.ticks)
    assert result.next == schedule.after(now)
    if schedule.interval is not None or result.dropped < COUNTED:
        assert result.dropped + len(result.ticks) == schedule.count(start, now + SMALLEST, at_most=1000)
    expected = schedule.before(now + SMALLEST)
    if result.ticks:
        assert result.ticks[-1] == expected
    elif policy is not Misfire.SKIP:
        assert expected is None or expected <= start


@settings(max_examples=20000 if SOAK else 500, deadline=None)
@given(st.text("0123456789*/,-#?LWRHabcjnosuw @", max_size=40) | st.text(max_size=300))
def test_a_text_is_an_expression_with_ticks_or_a_mistake_that_is_told(text):
    mistakes = mistakes_of(text)
    assert all(mistake.startswith("cron: ") for mistake in mistakes)
    assert mistakes or recurrence(text, "Europe/Berlin").after(moment("2026-01-01")) > moment("2026-01-01")
