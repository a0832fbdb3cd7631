"""Schedules are kept as they were written."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from gateway.job import JobStatus, JobType, Schedule
from gateway.store import Lane, ScheduleFilter, Store
from gateway.testing.store.harness import Database, Suite

WHOLE = Schedule(
    name="whole",
    handler="h",
    description="everything \u00e4",
    cron="0 8 * * *",
    start_at=datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    end_at=datetime(2031, 1, 1, tzinfo=UTC),
    max_executions=7,
    condition="SELECT 1",
    priority=5,
    max_retries=1,
    timeout=60,
    metadata={"a": {"b": [1, "\u20ac"]}},
    time_zone="Europe/Berlin",
    gap="skip",
    overlap="both",
    misfire="all",
    misfire_limit=9,
    created_by="test",
)


class Scheduling(Suite):
    """Write, change, run, delete."""

    async def test_a_schedule_comes_back_as_it_was_written(self, store: Store) -> None:
        written = await store.put_schedule(WHOLE)

        assert written is not None
        assert written == await store.schedule(WHOLE.id) == await store.schedule("whole")
        assert replace(written, created_at=None, modified_at=None) == WHOLE
        assert await store.schedule("nobody") is None

    async def test_schedules_are_listed_by_name_page_by_page(self, store: Store, database: Database) -> None:
        await database.sql("DELETE FROM jobs")
        for name in ("b", "c", "a", "d"):
            await store.put_schedule(Schedule(name=name, handler=f"h.{name}", interval=60, enabled=name != "c"))
        await database.sql("UPDATE jobs SET active = FALSE WHERE name = 'd'")

        assert [each.name for each in await store.schedules()] == ["a", "b", "c"]
        assert [each.name for each in await store.schedules(ScheduleFilter(after="a", limit=1))] == ["b"]
        assert [each.name for each in await store.schedules(ScheduleFilter(enabled=False))] == ["c"]
        assert [each.name for each in await store.schedules(ScheduleFilter(handler="h.b"))] == ["b"]

    async def test_a_changed_schedule_keeps_its_id_and_a_taken_name_is_not_taken_over(self, store: Store) -> None:
        first = await store.put_schedule(WHOLE)
        other = Schedule(name="whole", handler="other", interval=5)

        assert await store.put_schedule(other, replace=False) is None
        second = await store.put_schedule(other)

        raced = [Schedule(name="raced", handler="h", interval=1) for _ in range(5)]
        made = await asyncio.gather(*(store.put_schedule(each, replace=False) for each in raced))
        assert [each is not None for each in made].count(True) == 1
        raced = [Schedule(name="also", handler=f"h{n}", interval=1) for n in range(5)]
        made = await asyncio.gather(*(store.put_schedule(each) for each in raced))
        assert [each.handler if each else None for each in made] == [f"h{n}" for n in range(5)]
        assert first is not None
        assert second is not None
        assert (second.id, second.handler, second.interval, second.cron) == (first.id, "other", 5, None)
        assert (second.created_by, second.row_version) == ("test", 2)

    async def test_a_schedule_is_enabled_disabled_and_deleted(self, store: Store) -> None:
        await store.put_schedule(WHOLE)

        disabled = await store.enable_schedule("whole", False, by="ann")
        again = await store.enable_schedule(WHOLE.id, True)

        assert disabled is not None
        assert again is not None
        assert (disabled.enabled, disabled.modified_by, again.enabled) == (False, "ann", True)
        assert await store.delete_schedule("whole")
        assert not await store.delete_schedule("whole")
        assert await store.enable_schedule("whole", True) is None
        assert await store.run_schedule("whole") is None

    async def test_a_schedule_run_by_hand_makes_a_manual_job_at_once(self, store: Store) -> None:
        told: list[set[str]] = []
        store.on_ready = told.append
        await store.put_schedule(WHOLE)

        job_id = await store.run_schedule("whole", by="ann")

        (job,) = await self.claim(store)
        assert (job.id, job.type, job.status, job.scheduled_at) == (job_id, JobType.MANUAL, JobStatus.PROCESSING, None)
        assert (job.handler, job.priority, job.max_retries, job.timeout, job.created_by) == ("h", 5, 1, 60, "ann")
        assert job.metadata == {**WHOLE.metadata, "schedule": {"id": WHOLE.id, "name": "whole"}}
        assert told == [{Lane.PLAN}, {Lane.RUN}]
        row = await store.schedule("whole")
        assert row is not None
        assert (row.execution_count, row.last_run_at) == (0, None)

    async def test_configured_schedules_are_written_when_their_text_changes(self, store: Store) -> None:
        plain = Schedule(name="plain", handler="h", interval=60)

        assert await store.configure_schedules({"digest 1": WHOLE, "digest 2": plain}) == ["whole", "plain"]
        await store.enable_schedule("plain", False)
        assert await store.configure_schedules({"digest 1": WHOLE, "digest 2": plain}) == []
        kept = await store.schedule("plain")
        assert await store.configure_schedules({"digest 3": replace(plain, interval=5)}) == ["plain"]
        changed = await store.schedule("plain")

        assert kept is not None
        assert changed is not None
        assert not kept.enabled
        assert (changed.id, changed.interval, changed.enabled) == (kept.id, 5, True)
