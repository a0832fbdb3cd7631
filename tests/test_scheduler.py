"""The scheduler's two loops on a real store, whose database's clock the tests put."""

import asyncio
import sqlite3
from contextlib import closing, contextmanager
from datetime import timedelta

import pytest

from gateway.coordination import Wakeup
from gateway.errors import DataRefused, StoreUnavailable
from gateway.job import Schedule
from gateway.scheduler import BREATH, HELD, Scheduler
from gateway.store import JobFilter, Verdict
from gateway.telemetry import subscribed
from gateway.testing.store.ticking import NOON, Clock
from tests.faulty import Faulty, sqlite_store

SECOND = timedelta(seconds=1)


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        for sample in await store.schedules():
            await store.delete_schedule(sample.id)
        Clock.put(store, NOON)
        yield store


@pytest.fixture
def told():
    events = []
    with subscribed(lambda event, fields: events.append((event, fields))):
        yield lambda kind: [fields for event, fields in events if event == f"schedule.{kind}"]


@contextmanager
def running(scheduler):
    task = asyncio.ensure_future(scheduler.run())
    yield task
    task.cancel()


def scheduler(store, *, ask=None, wake=None, **options):
    async def holds(asking):
        return Verdict(asked=asking, holds=True)

    return Scheduler(store, wake=wake or Wakeup(), ask=ask or holds, **options)


async def count(store):
    return len(await store.list(JobFilter(limit=1000)))


async def until(condition, *, within=10):
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in the database
            await asyncio.sleep(0.01)


# --- when it looks


async def test_it_sleeps_until_the_next_tick_by_the_databases_clock(store):
    each = scheduler(store, interval=60)
    assert await each.fire() == 60
    await store.put_schedule(Schedule(name="s", handler="h", cron="30 * * * * *"))
    assert await each.fire() == 0
    assert await each.fire() == pytest.approx(30, abs=0.01)
    await store.put_schedule(Schedule(name="s", handler="h", cron="0 0 * * *"))
    await each.fire()
    assert await each.fire() == 60


async def test_a_tick_is_fired_and_told_once(store, told):
    await store.put_schedule(Schedule(name="s", handler="h", cron="* * * * * *"))
    each = scheduler(store, interval=1)
    await each.fire()
    Clock.put(store, NOON + SECOND)
    assert await each.fire() == 0
    assert await each.fire() == pytest.approx(1, abs=0.01)

    assert await count(store) == 1
    assert told("fired") == [{"schedule": "s", "count": 1, "tick": "2030-03-01T12:00:01+00:00"}]


async def test_a_change_made_here_is_seen_at_once(store, told):
    wake = Wakeup()
    store.on_ready = lambda lanes: [wake.set(lane) for lane in lanes]
    with running(scheduler(store, wake=wake, interval=3600)):
        await asyncio.sleep(2 * BREATH)
        await store.put_schedule(Schedule(name="s", handler="h", cron="* * * * * *"))

        async def planned():
            row = await store.schedule("s")
            return row.next_run_at == NOON + SECOND

        await until(planned)
    assert told("invalid") == []


async def test_more_schedules_than_one_transaction_takes_are_all_fired(store):
    for n in range(250):
        await store.put_schedule(Schedule(name=f"s{n}", handler="h", cron="* * * * * *"))
    each = scheduler(store, interval=1)
    while await each.fire() == 0:
        pass
    Clock.put(store, NOON + SECOND)
    while await each.fire() == 0:
        pass
    assert await count(store) == 250


# --- what it tells


async def test_missed_ticks_and_bad_rows_are_told(store, told, tmp_path):
    await store.put_schedule(Schedule(name="s", handler="h", cron="0 * * * *"))
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as database, database:
        database.execute("INSERT INTO jobs (id, name, handler, cronexpression) VALUES ('r', 'r', 'h', 'R * * * *')")
    each = scheduler(store)
    await each.once()
    Clock.put(store, NOON + timedelta(hours=3, minutes=30))
    await each.once()

    assert told("skipped") == [{"schedule": "s", "count": 2, "reason": "missed", "error": None}]
    assert [fields["count"] for fields in told("fired")] == [1]
    ((name, error),) = (fields.values() for fields in told("invalid"))
    assert (name, error) == ("r", (await store.schedule("r")).last_error)
    assert error.startswith("cron: minute 'r'")


# --- conditions


async def test_a_condition_is_asked_before_its_tick_and_only_then(store, told):
    asked = []
    answers = iter([(False, None), (False, "no such table"), (True, None)])

    async def ask(asking):
        asked.append((asking.name, asking.condition, asking.tick))
        holds, error = next(answers)
        return Verdict(asked=asking, holds=holds, error=error)

    await store.put_schedule(Schedule(name="s", handler="h", cron="* * * * * *", condition="SELECT 1"))
    each = scheduler(store, ask=ask, interval=60)
    await each.fire()
    assert await each.ask() == 60
    for n in (1, 2, 3):
        Clock.put(store, NOON + n * SECOND)
        assert await each.fire() == HELD
        assert await each.ask() == 0

    assert asked == [("s", "SELECT 1", NOON + n * SECOND) for n in (1, 2, 3)]
    assert await count(store) == 1
    assert [(f["reason"], f["error"]) for f in told("skipped")] == [("condition", None), ("error", "no such table")]
    assert [fields["schedule"] for fields in told("fired")] == ["s"]
    row = await store.schedule("s")
    assert (row.execution_count, row.last_error) == (1, None)


async def test_a_slow_condition_holds_up_no_other_schedule(store):
    answer = asyncio.Event()

    async def ask(asking):
        if asking.name == "slow":
            await answer.wait()
        return Verdict(asked=asking, holds=True)

    for name in ("slow", "quick"):
        await store.put_schedule(Schedule(name=name, handler=name, cron="* * * * * *", condition="SELECT 1"))
    await store.put_schedule(Schedule(name="plain", handler="plain", cron="* * * * * *"))
    wake = Wakeup()
    with running(scheduler(store, ask=ask, wake=wake, interval=0.05)):

        async def planned():
            return await store.next_tick() > 0

        await until(planned)
        Clock.put(store, NOON + SECOND)

        async def others():
            return {job.handler for job in await store.list(JobFilter())} == {"quick", "plain"}

        await until(others)
        answer.set()

        async def all_of_them():
            return await count(store) == 3

        await until(all_of_them)


async def test_conditions_are_asked_also_while_others_fire(store):
    await store.put_schedule(Schedule(name="asked", handler="asked", cron="* * * * * *", condition="SELECT 1"))
    await store.put_schedule(Schedule(name="plain", handler="plain", cron="* * * * * *"))
    each = scheduler(store, interval=3600)
    await each.ask()
    await store.plan(3600)
    asking = asyncio.ensure_future(each.loops[1].run())
    try:

        async def sleeps():
            return bool(each._due._lanes)

        await until(sleeps)
        Clock.put(store, NOON + SECOND)
        assert await each.fire() == 0

        async def both():
            return {job.handler for job in await store.list(JobFilter())} == {"plain", "asked"}

        await until(both)
    finally:
        asking.cancel()


# --- what goes wrong


async def test_it_goes_on_after_the_database_was_away(store):
    faulty = Faulty(store)

    async def away(*_, **__):
        raise StoreUnavailable("away")

    faulty.before["next_tick"] = away
    await store.put_schedule(Schedule(name="s", handler="h", cron="* * * * * *"))
    configured = {"d": Schedule(name="c", handler="h", interval=1)}
    with running(scheduler(faulty, interval=0.05, configured=configured)):

        async def asked():
            return [verb for verb, _ in faulty.calls].count("next_tick") > 1

        await until(asked)
        del faulty.before["next_tick"]

        async def planned():
            return (await store.schedule("s")).next_run_at is not None

        await until(planned)
    assert [verb for verb, _ in faulty.calls].count("configure_schedules") == 1


async def test_what_is_configured_and_refused_holds_up_no_other_schedule(store, told):
    faulty = Faulty(store)
    faulty.fail("configure_schedules", DataRefused("too long"))
    await store.put_schedule(Schedule(name="s", handler="h", cron="* * * * * *"))
    each = scheduler(faulty, configured={"d": Schedule(name="c", handler="h", interval=1)})
    await each.fire()
    await each.fire()
    assert (await store.schedule("s")).next_run_at is not None
    assert [verb for verb, _ in faulty.calls].count("configure_schedules") == 1
    assert told("configured") == []


async def test_what_is_configured_is_written_once_and_told(store, told):
    configured = {"digest": Schedule(name="c", handler="h", interval=1, enabled=False)}
    for _ in range(2):
        each = scheduler(store, configured=configured)
        await each.once()
        await store.enable_schedule("c", True)

    assert told("configured") == [{"schedule": "c"}]
    assert (await store.schedule("c")).enabled
