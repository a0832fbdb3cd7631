"""Which ticks a schedule has, which mistakes it is told of, and what becomes of ticks that were missed."""

import sys
import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from gateway.errors import ConfigError
from gateway.recurrence import COUNTED, GRACE, MAX_LIMIT, Due, Gap, Misfire, Overlap, Recurrence, due

ANCHOR = datetime(2000, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
THREE_DAYS = timedelta(days=3)


def moment(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cron(expression, **more):
    return Recurrence(**{"cron": expression, "anchor": ANCHOR, **more})


def ticks(recurrence, first, last):
    found, tick = [], recurrence.after(moment(first) - timedelta(microseconds=1))
    while tick is not None and tick <= moment(last):
        found.append(f"{tick:%m-%d %H:%M}")
        tick = recurrence.after(tick)
    return found


def calls_of(function, *arguments):
    """How many Python functions a call needs: its time, but the same on every machine."""
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    ("expression", "gap", "expected"),
    [
        ("30 2 * * *", Gap.RUN_AT_END, ["03-29 01:00"]),
        ("30 2 * * *", Gap.SKIP, []),
        ("*/15 2,3 * * *", Gap.RUN_AT_END, ["03-29 01:00", "03-29 01:15", "03-29 01:30", "03-29 01:45"]),
        ("30 * * * *", Gap.RUN_AT_END, ["03-29 00:30", "03-29 01:30"]),
    ],
)
def test_a_time_left_out_by_the_clock_fires_once_at_the_end_of_the_gap_or_not_at_all(expression, gap, expected):
    berlin = cron(expression, time_zone="Europe/Berlin", gap=gap)
    assert ticks(berlin, "2026-03-29T00:00", "2026-03-29T01:59") == expected


@pytest.mark.parametrize(
    ("expression", "overlap", "expected"),
    [
        ("30 2 * * *", Overlap.FIRST, ["10-25 00:30"]),
        ("30 2 * * *", Overlap.BOTH, ["10-25 00:30", "10-25 01:30"]),
        ("30 * * * *", Overlap.FIRST, ["10-25 00:30", "10-25 01:30"]),
        ("*/30 2 * * *", Overlap.BOTH, ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30"]),
    ],
)
def test_a_time_that_the_clock_shows_twice_fires_once_or_twice_and_every_hour_in_each(expression, overlap, expected):
    berlin = cron(expression, time_zone="Europe/Berlin", overlap=overlap)
    assert ticks(berlin, "2026-10-25T00:00", "2026-10-25T01:59") == expected


@pytest.mark.parametrize("expression", ["0 0 * * *", "0 12 * * *", "30 * * * *"])
@pytest.mark.parametrize("gap", Gap)
def test_a_date_that_a_zone_left_out_has_no_ticks(expression, gap):
    apia = cron(expression, time_zone="Pacific/Apia", gap=gap)
    utc = cron(expression)
    days = ticks(apia, "2011-12-29T10:00", "2012-01-01T09:59")
    assert len(days) == len(ticks(utc, "2011-12-29T10:00", "2012-01-01T09:59"))
    assert len(set(days)) == len(days)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("R * * * *", "minute 'r' would be drawn anew"),
        ("0 H(0-7) * * *", "hour 'h(0-7)' would be drawn anew"),
        ("0 0 31 2 *", "day of the month 31 does not exist in month 2; write at most 29"),
        ("0 0 31 4,6 *", "day of the month 31 does not exist in month 4,6; write at most 30"),
        ("0 0 */100 * *", "day of the month '*/100' has a step of '100'; write one of 1 to 30"),
        ("*/0 * * * *", "minute '*/0' has a step of '0'; write one of 1 to 59"),
        ("61 * * * *", "minute '61' is not known; write 0 to 59"),
        ("0 0 * foo *", "month 'foo' is not known; write 1 to 12 or jan to dec"),
        ("0 22-2 * * *", "hour '22-2' runs backwards; write it as two ranges"),
        ("0 0 * * 8", "day of the week '8' is not known; write 0 to 7 or sun to sat"),
        ("0 0 * * 1#6", "day of the week '1#6' counts to 6; write #1 to #5"),
        ("0 0 1 * 1#2", "day of the week '1#2' needs `*` as day of the month"),
        ("0 0 * * 1,5#2", "day of the week '1,5#2' mixes"),
        ("? * * * *", "minute '?' is not understood"),
        ("0,,5 * * * *", "minute '' is not understood"),
        ("* * * *", "the expression has 4 fields; write 5"),
        ("0 0 0 1 1 1 2030", "the expression has 7 fields; write 5"),
        ("@reboot", "there is no '@reboot'; use one of @yearly"),
        ("٣ * * * *", "minute '٣' is not understood"),
        (",".join(["1"] * 129) + " * * * *", "the expression has 265 characters; write one of at most 256"),
    ],
)
def test_an_expression_that_means_nothing_is_refused_by_its_field(expression, told):
    with pytest.raises(ConfigError) as refused:
        cron(expression)
    (mistake,) = refused.value.mistakes
    assert mistake.startswith(f"cron: {told}")


def test_all_mistakes_of_a_recurrence_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        Recurrence(cron="x", interval=0, anchor=datetime(2026, 1, 1), time_zone="Mars/Base", gap="leap", overlap="last")  # noqa: DTZ001
    fields = [mistake.partition(":")[0] for mistake in refused.value.mistakes]
    assert fields == ["cron, interval", "interval", "anchor", "gap", "overlap", "time_zone", "cron"]


@pytest.mark.parametrize("name", ["", "Europe", "../etc", "localtime", "right/UTC", "x" * 5000, "a\0b", "\ud800"])
def test_a_time_zone_that_is_no_zone_for_every_instance_is_refused(name):
    with pytest.raises(ConfigError, match=r"^time_zone: .* is not known; write a name such as Europe/Berlin or UTC$"):
        cron("@daily", time_zone=name)


def test_time_zones_are_known_where_the_system_has_none():
    zoneinfo.reset_tzpath(to=())
    ZoneInfo.clear_cache()
    try:
        kathmandu = cron("@daily", time_zone="Asia/Kathmandu")
        assert ticks(kathmandu, "2026-05-04T00:00", "2026-05-05T00:00") == ["05-04 18:15"]
    finally:
        zoneinfo.reset_tzpath()
        ZoneInfo.clear_cache()


def test_moments_of_any_zone_are_taken_and_ticks_are_in_utc_and_real_seconds():
    berlin = timezone(timedelta(hours=2))
    anchor = datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    daily = Recurrence(interval=86_400, anchor=anchor, end_at=datetime(2026, 3, 30, 13, tzinfo=berlin))
    assert daily.after(datetime(2026, 3, 29, 2, tzinfo=berlin)) == moment("2026-03-29T11:00")
    assert daily.after(anchor).tzinfo is UTC
    assert daily.before(datetime.max.replace(tzinfo=UTC)) == moment("2026-03-30T11:00")


def test_an_interval_ticks_from_its_anchor_in_real_seconds_however_long_it_was_not_asked():
    every = Recurrence(interval=7, anchor=ANCHOR, end_at=ANCHOR + timedelta(seconds=7 * 10**8))
    assert every.after(datetime.min.replace(tzinfo=UTC)) == ANCHOR
    assert every.after(ANCHOR) == ANCHOR + timedelta(seconds=7)
    assert every.before(ANCHOR + timedelta(seconds=7)) == ANCHOR
    assert every.before(ANCHOR) is None
    assert every.before(datetime.max.replace(tzinfo=UTC)) == every.end_at
    assert every.after(every.end_at) is None
    assert every.after(every.end_at - timedelta(microseconds=1)) == every.end_at


def test_a_tick_at_its_start_or_end_counts_and_none_beyond():
    window = cron("0 12 * * *", anchor=moment("2026-01-02T12:00"), end_at=moment("2026-01-04T12:00"))
    assert ticks(window, "2025-12-01T00:00", "2026-02-01T00:00") == ["01-02 12:00", "01-03 12:00", "01-04 12:00"]


@pytest.mark.parametrize("schedule", [{"cron": "* * * * * *"}, {"interval": 1}])
@pytest.mark.parametrize("down", [THREE_DAYS, timedelta(days=1100)])
def test_after_days_of_downtime_each_policy_fires_what_it_says(schedule, down):
    every_second = Recurrence(anchor=ANCHOR, **schedule)
    skip, once, every = (due(every_second, NOW - down, NOW, policy, 5) for policy in Misfire)
    seconds = [NOW - timedelta(seconds=ago) for ago in range(int(GRACE.total_seconds()), -1, -1)]
    assert skip.ticks == tuple(seconds)
    assert once.ticks == (NOW,)
    assert every.ticks == tuple(seconds[-5:])
    exact = int(down.total_seconds())
    dropped = [COUNTED] * 3 if "cron" in schedule else [exact - 61, exact - 1, exact - 5]
    assert [policy.dropped for policy in (skip, once, every)] == dropped
    assert {policy.next for policy in (skip, once, every)} == {NOW + timedelta(seconds=1)}


@pytest.mark.parametrize("policy", Misfire)
def test_a_pause_within_the_grace_loses_and_joins_nothing(policy):
    result = due(Recurrence(anchor=ANCHOR, interval=10), NOW - GRACE - timedelta(seconds=1), NOW, policy, 1)
    assert result.ticks == tuple(NOW - timedelta(seconds=ago) for ago in (60, 50, 40, 30, 20, 10, 0))
    assert result.dropped == 0


def test_one_tick_missed_a_while_ago_is_dropped_by_skip_and_fired_by_the_others():
    daily = cron("0 11 * * *")
    tick, after = moment("2026-05-04T11:00"), NOW - timedelta(hours=2)
    following = moment("2026-05-05T11:00")
    assert due(daily, after, NOW, Misfire.SKIP) == Due(next=following, dropped=1)
    assert due(daily, after, NOW, Misfire.ONCE) == Due(ticks=(tick,), next=following)
    assert due(daily, after, NOW, Misfire.ALL, 3) == Due(ticks=(tick,), next=following)


@pytest.mark.parametrize(("limit", "fired"), [(-1, 1), (0, 1), (10**9, MAX_LIMIT)])
def test_a_limit_beyond_reason_is_bounded(limit, fired):
    result = due(Recurrence(interval=1, anchor=ANCHOR), ANCHOR, NOW, Misfire.ALL, limit)
    assert len(result.ticks) == fired


@pytest.mark.parametrize("expression", ["30 2 * 3 L0", "0 0 * 2 mon#5", "0 0 29 2 *", "* * * 1 * *"])
@pytest.mark.parametrize("start", ["1900-01-01", "2026-05-04", "2096-03-01", "9899-12-01"])
def test_a_sparse_expression_is_searched_for_a_bounded_time(expression, start):
    sparse = cron(expression, time_zone="Europe/Berlin", gap=Gap.SKIP)
    assert calls_of(sparse.after, moment(start)) < 60_000
    assert calls_of(sparse.before, moment(start)) < 60_000


def test_nothing_is_due_before_its_time_and_when_the_clock_went_back():
    hourly = cron("@hourly")
    assert due(hourly, NOW, NOW + timedelta(minutes=59)) == Due(next=NOW + timedelta(hours=1))
    assert due(hourly, NOW, NOW - timedelta(hours=1)).ticks == ()
