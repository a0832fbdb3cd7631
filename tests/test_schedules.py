"""What people may say of a schedule, and what row it makes."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from gateway.errors import ConfigError
from gateway.job import Schedule
from gateway.schedules import ScheduleBody, ScheduleConfig, next_ticks
from tests.faulty import sqlite_store

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def said(**keys):
    return ScheduleConfig.model_validate_json(json.dumps({"handler": "h", **keys}))


def test_every_key_goes_into_the_row():
    keys = {
        "description": "d", "cron": "0 8 * * *", "time_zone": "Europe/Berlin", "max_executions": 3, "enabled": False,
        "condition": "1 = 1", "priority": 5, "max_retries": 1, "timeout": 60, "misfire": "all", "misfire_limit": 7,
        "gap": "skip", "overlap": "both", "metadata": {"a": [1]},
    }  # fmt: skip
    times = {"start_at": "2026-01-01T08:00:00", "end_at": "2027-01-01T00:00:00+02:00"}

    row = said(**keys, **times).row("daily", created_by="me")

    assert {name: getattr(row, name) for name in keys} == keys
    assert (row.name, row.handler, row.created_by, row.interval) == ("daily", "h", "me", None)
    assert row.start_at == datetime(2026, 1, 1, 7, tzinfo=UTC), "a time without an offset is by the schedule's clock"
    assert row.end_at == datetime(2026, 12, 31, 22, tzinfo=UTC)
    assert [type(each) for each in (row.misfire, row.gap, row.overlap)] == [str] * 3


def test_what_is_not_said_is_as_in_a_row_inserted_by_hand():
    row, bare = said(interval=30).row("n", id="i"), Schedule(name="n", handler="h", interval=30, id="i")
    same = ("type", "max_executions", "enabled", "priority", "max_retries", "timeout", "metadata", "time_zone")

    assert {key: getattr(row, key) for key in same} == {key: getattr(bare, key) for key in same}
    assert (row.misfire, row.gap, row.overlap, row.misfire_limit) == (None, None, None, None)
    assert said(interval=30).row("n", max_retries=7, timeout=1.5).timeout == 2
    assert said(interval=30, timeout=9, max_retries=0).row("n", max_retries=7, timeout=1.5).timeout == 9


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"interval": 0}, "greater than or equal to 1"),
        ({"interval": 5, "misfire": "twice"}, "'skip', 'once' or 'all'"),
        ({"interval": 5, "handler": "gateway.publish"}, "messages are published by handlers"),
        ({"interval": 5, "handler": "two words"}, "pattern"),
        ({"interval": 5, "priority": "high"}, "valid integer"),
        ({"interval": 5, "max_retires": 1}, "not permitted"),
    ],
)
def test_a_mistake_is_told(keys, says):
    with pytest.raises(ValidationError, match=says):
        said(**keys)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "give one of them, and not both"),
        ({"cron": "@daily", "interval": 5}, "give one of them, and not both"),
        ({"cron": "R"}, "has 1 fields"),
        ({"cron": "0 0 31 2 *"}, "does not exist in month 2"),
        ({"cron": "@daily", "condition": "DELETE FROM jobs"}, "condition: "),
        ({"cron": "@daily", "time_zone": "Europe/Berlni", "start_at": "2026-01-02T00:00:00"}, "'Europe/Berlni'"),
        ({"interval": 5, "start_at": "2026-01-02T00:00:00Z", "end_at": "2026-01-01T00:00:00Z"}, "never make a job"),
    ],
)
async def test_what_no_single_key_tells_is_refused_by_the_store(tmp_path, keys, says):
    async with sqlite_store(tmp_path) as store:
        with pytest.raises(ConfigError, match=says):
            await store.put_schedule(said(**keys).row("n"))
        assert await store.schedule("n") is None


def test_over_rest_the_keys_are_the_columns():
    body = {"handler": "h", "intervalseconds": 30, "startat": "2026-01-01T00:00:00Z", "maxexecutions": 2,
            "maxretries": 0, "timezone": "UTC", "misfirelimit": 3}  # fmt: skip
    keys = {"interval": 30, "start_at": "2026-01-01T00:00:00Z", "max_executions": 2,
            "max_retries": 0, "time_zone": "UTC", "misfire_limit": 3}  # fmt: skip

    assert ScheduleBody.model_validate_json(json.dumps(body)).row("n", id="i") == said(**keys).row("n", id="i")
    with pytest.raises(ValidationError, match="not permitted"):
        ScheduleBody.model_validate_json(json.dumps({"handler": "h", "interval": 30}))


def test_the_next_ticks_are_told_in_utc_and_by_the_schedules_own_clock():
    schedule = said(cron="30 2 * * *", time_zone="Europe/Berlin").row("n", created_at=NOON)

    ticks = next_ticks(schedule, datetime(2026, 3, 28, 12, tzinfo=UTC), 2)

    assert [utc.isoformat() for utc, _ in ticks] == ["2026-03-29T01:00:00+00:00", "2026-03-30T00:30:00+00:00"]
    assert [local.isoformat() for _, local in ticks] == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]


def test_no_more_ticks_are_told_than_will_make_a_job():
    schedule = said(interval=60, max_executions=5, end_at="2026-03-01T12:10:00Z").row(
        "n", created_at=NOON, execution_count=3
    )

    assert [utc for utc, _ in next_ticks(schedule, NOON, 9)] == [NOON + timedelta(minutes=n) for n in (1, 2)]
    assert next_ticks(schedule, NOON + timedelta(minutes=10), 9) == []
