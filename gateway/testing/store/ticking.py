"""Each tick of a schedule makes one job, by the database's clock, whoever looks and however often."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from gateway.job import JobType, QueueJob, Schedule
from gateway.store import JobFilter, Store
from gateway.store.insert import clock
from gateway.store.turns import Verdict
from gateway.testing.store.harness import Database, Suite, until

NOON = datetime(2030, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    """The time as some stores see it: the real one, or whatever a test says the database's is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, now: datetime) -> Store:
        """Open a store by whose database it is `now`; there are no schedules but the test's own."""
        await self._database.sql("DELETE FROM jobs WHERE typeid = 3")
        store = await self._database.open(present=False)
        self.put(store, now)
        return store

    @staticmethod
    def put(store: Store, now: datetime) -> None:
        """Put the clock of the store's database."""
        driver = store._driver  # noqa: SLF001 - a seam: the words of SQL, of which the time is one
        text = now.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        moment = {
            "postgresql": f"TIMESTAMP '{text}'", "mysql": f"TIMESTAMP'{text}'", "sqlite": f"'{text}'",
        }[driver.dialect.name]  # fmt: skip
        ages = {
            "postgresql": f"extract(epoch FROM {moment} - {{}})::float8",
            "mysql": f"(TIMESTAMPDIFF(MICROSECOND, {{}}, {moment}) / 1000000.0)",
            "sqlite": f"((julianday({moment}) - julianday({{}})) * 86400.0)",
        }[driver.dialect.name]
        laters = {
            "postgresql": f"({moment} + make_interval(secs => {{}}))",
            "mysql": f"({moment} + INTERVAL {{}} SECOND)",
            "sqlite": f"strftime('%Y-%m-%d %H:%M:%f000', {moment}, printf('%+.3f seconds', {{}}))",
        }[driver.dialect.name]
        driver.dialect = replace(driver.dialect, now=moment, age=ages.format, later=laters.format)


async def turn(store: Store, patience: float = 0.0) -> None:
    """Do what a scheduler does when it wakes, until nothing is due."""
    for _ in range(100):
        seconds = await store.next_tick()
        if seconds is None or seconds > 0:
            return
        await store.plan(patience)
        await store.fire()
    raise AssertionError("a schedule is due for ever")


async def now(store: Store) -> datetime:
    """Return the database's time."""
    driver = store._driver  # noqa: SLF001 - no verb tells it
    return await driver.read(lambda: clock(driver.dialect))


async def made(store: Store, handler: str = "h") -> list[QueueJob]:
    """Return the jobs of a handler, the first one first."""
    return list(reversed(await store.list(JobFilter(handler=handler, limit=1000))))


def ticks(jobs: Sequence[QueueJob]) -> list[datetime | None]:
    """Return the ticks that made these jobs."""
    return [job.scheduled_at for job in jobs]


class Ticking(Suite):
    """Plan, fire, never twice."""

    async def test_a_tick_makes_one_job_and_moves_its_schedule(self, database: Database) -> None:
        store = await Clock(database).open(NOON - timedelta(seconds=1))
        schedule = Schedule(
            name="s", handler="h", cron="0 * * * *", priority=4, max_retries=1, timeout=9, metadata={"a": 1},
            created_by="ann",
        )  # fmt: skip
        await store.put_schedule(schedule)

        await turn(store)
        planned = await store.schedule("s")
        Clock.put(store, NOON + timedelta(seconds=2))
        await turn(store)
        await turn(store)

        (job,) = await made(store)
        row = await store.schedule("s")
        assert planned is not None
        assert row is not None
        assert (planned.next_run_at, planned.last_run_at) == (NOON, None)
        assert (job.scheduled_at, job.type, job.priority, job.max_retries) == (NOON, JobType.SCHEDULED, 4, 1)
        assert (job.timeout, job.created_by) == (9, "ann")
        assert job.metadata["schedule"] == {"id": schedule.id, "name": "s", "tick": "2030-03-01T12:00:00+00:00"}
        assert job.metadata["a"] == 1
        hour = timedelta(hours=1)
        assert (row.execution_count, row.last_run_at, row.next_run_at) == (1, NOON, NOON + hour)
        assert await database.sql("SELECT scheduleid, jobid FROM schedule_ticks") == [(schedule.id, job.id)]
        assert await store.next_tick() is not None

    async def test_the_gateways_own_schedules_make_system_jobs(self, database: Database) -> None:
        store = await database.open()
        Clock.put(store, NOON)
        await turn(store)
        Clock.put(store, NOON + timedelta(minutes=15))
        await turn(store)

        (job,) = await made(store, "system.retry.failed")
        assert (job.type, job.created_by, job.timeout) == (JobType.SYSTEM, "system", 300)
        assert await made(store, "system.cleanup.histories") == []

    async def test_a_tick_is_fired_once_by_any_number_of_schedulers(self, database: Database) -> None:
        count = 5 if self.shared else 1
        stores = [await Clock(database).open(NOON) for _ in range(count)]
        for n in range(20):
            await stores[0].put_schedule(Schedule(name=f"s{n}", handler="h", cron="* * * * * *"))
        await turn(stores[0])
        for second in range(1, 6):
            for store in stores:
                Clock.put(store, NOON + timedelta(seconds=second))
            await asyncio.gather(*(turn(store) for store in stores for _ in range(2)))

        jobs = await made(stores[0])
        found = {(str(job.metadata["schedule"]["name"]), job.scheduled_at) for job in jobs}
        expected = {(f"s{n}", NOON + timedelta(seconds=second)) for n in range(20) for second in range(1, 6)}
        assert (len(jobs), found) == (100, expected)
        assert await database.value("SELECT min(executioncount) FROM jobs WHERE handler = 'h'") == 5

    async def test_three_days_of_downtime_under_each_policy(self, database: Database) -> None:
        store = await Clock(database).open(NOON)
        for misfire in ("skip", "once", "all"):
            await store.put_schedule(
                Schedule(name=misfire, handler=misfire, cron="0 * * * *", misfire=misfire, misfire_limit=5)
            )
        counted = Schedule(name="counted", handler="counted", cron="0 * * * *", misfire="all", max_executions=2)
        await store.put_schedule(counted)
        await turn(store)

        back = NOON + timedelta(days=3, minutes=30)
        Clock.put(store, back)
        await turn(store)
        last = NOON + timedelta(days=3)

        assert ticks(await made(store, "skip")) == []
        assert ticks(await made(store, "once")) == [last]
        assert ticks(await made(store, "all")) == [last - timedelta(hours=hours) for hours in (4, 3, 2, 1, 0)]
        assert len(await made(store, "counted")) == 2
        rows = [await store.schedule(name) for name in ("skip", "once", "all")]
        assert {row.next_run_at for row in rows if row} == {last + timedelta(hours=1)}
        assert [row.execution_count for row in rows if row] == [0, 1, 5]

    async def test_a_clock_that_was_put_back_fires_nothing_again(self, database: Database) -> None:
        store = await Clock(database).open(NOON)
        await store.put_schedule(Schedule(name="s", handler="h", cron="0 * * * *"))
        await turn(store)
        Clock.put(store, NOON + timedelta(hours=1))
        await turn(store)

        Clock.put(store, NOON)
        await turn(store)
        await store.put_schedule(Schedule(name="s", handler="h", cron="0 */1 * * *"))
        await database.sql("UPDATE jobs SET nextrunat = NULL")
        await turn(store)
        Clock.put(store, NOON + timedelta(hours=1, seconds=1))
        await turn(store)
        again = await store.schedule("s")

        assert ticks(await made(store)) == [NOON + timedelta(hours=1)]
        assert again is not None
        assert (again.execution_count, again.next_run_at) == (1, NOON + timedelta(hours=2))

    async def test_a_schedule_ends_with_its_window_or_its_last_execution(self, database: Database) -> None:
        store = await Clock(database).open(NOON)
        second = timedelta(seconds=1)
        counted = Schedule(name="counted", handler="counted", interval=1, max_executions=2, start_at=NOON + second)
        window = Schedule(
            name="window", handler="window", cron="* * * * * *", start_at=NOON + 2 * second, end_at=NOON + 3 * second
        )
        for each in (counted, window):
            await store.put_schedule(each)
        for n in range(7):
            Clock.put(store, NOON + n * second)
            await turn(store)

        assert ticks(await made(store, "counted")) == [NOON + second, NOON + 2 * second]
        assert ticks(await made(store, "window")) == [NOON + 2 * second, NOON + 3 * second]
        ended = await store.schedule("counted")
        assert ended is not None
        assert (ended.enabled, ended.next_run_at, ended.last_error) == (True, None, None)
        await database.sql("UPDATE jobs SET maxexecutions = 3 WHERE name = 'counted'")
        for n in (8, 9):
            Clock.put(store, NOON + n * second)
            await turn(store, patience=1)
        assert len(await made(store, "counted")) == 3

    async def test_changes_by_sql_are_seen_whatever_was_planned(self, database: Database) -> None:
        store = await Clock(database).open(NOON)
        await store.put_schedule(Schedule(name="s", handler="h", cron="0 0 1 1 *"))
        await turn(store)
        hour, late = timedelta(hours=1), NOON + timedelta(minutes=59, seconds=59)
        changes: list[tuple[str, datetime | None]] = [
            ("cronexpression = '@hourly'", NOON + hour),
            ("timezone = 'Asia/Kolkata'", NOON + hour / 2),
            ("cronexpression = NULL, intervalseconds = 7200, startat = '2030-03-01 11:00:00'", NOON + hour),
            ("startat = '2030-03-01 12:59:59'", late),
            ("nextrunat = NULL", late),
            ("enabled = FALSE", None),
            ("enabled = TRUE", late),
            ("active = FALSE", None),
        ]
        for change, expected in changes:
            await database.sql(f"UPDATE jobs SET {change} WHERE name = 's'".replace(":", "\\:"))  # noqa: S608 - the test's own
            assert (await store.next_tick() or 0) < -1e9, change
            await turn(store)
            row = await store.schedule("s")
            assert row is not None
            assert row.next_run_at == expected, change
        await database.sql("DELETE FROM jobs")
        assert await store.next_tick() is None

    async def test_a_bad_row_hurts_only_itself_until_it_is_put_right(self, database: Database) -> None:
        store = await Clock(database).open(NOON)
        for n, wrong in enumerate(("'R * * * *', NULL", "'0 0 31 2 *', NULL", "'x', 5", "NULL, NULL", "NULL, -1")):
            values = f"'b{n}', 'b{n}', 'bad', {wrong}"
            await database.sql(
                f"INSERT INTO jobs (id, name, handler, cronexpression, intervalseconds) VALUES ({values})"  # noqa: S608 - the test's own
            )
        for column, value in (("timezone", "Mars"), ("gap", "x"), ("overlap", "x"), ("misfire", "x")):
            values = f"'{column}', '{column}', 'bad', 1, '{value}'"
            await database.sql(f"INSERT INTO jobs (id, name, handler, intervalseconds, {column}) VALUES ({values})")  # noqa: S608 - the test's own
        await store.put_schedule(Schedule(name="good", handler="h", cron="* * * * * *"))
        await turn(store)
        Clock.put(store, NOON + timedelta(seconds=1))
        await turn(store)

        assert len(await made(store)) == 1
        assert await made(store, "bad") == []
        errors = {row.name: row.last_error or "" for row in await store.schedules() if row.handler == "bad"}
        assert len(errors) == 9
        assert all(
            name in errors[name].replace("time_zone", "timezone") for name in ("timezone", "gap", "overlap", "misfire")
        )
        assert all("cron" in errors[f"b{n}"] or "interval" in errors[f"b{n}"] for n in range(5))
        await database.sql("UPDATE jobs SET cronexpression = '* * * * * *', intervalseconds = NULL WHERE name = 'b0'")
        await turn(store)
        Clock.put(store, NOON + timedelta(seconds=2))
        await turn(store)
        cured = await store.schedule("b0")
        assert cured is not None
        assert (cured.execution_count, cured.last_error) == (1, None)

    async def test_a_change_counts_from_when_it_was_made_and_not_from_when_it_is_seen(self, database: Database) -> None:
        store = await database.open()
        await database.sql(
            "INSERT INTO jobs (id, name, handler, cronexpression, enabled, createdon, modifiedon)"
            " VALUES ('s', 's', 'h', '* * * * * *', FALSE, :at, :at)",
            at=await self.moment(database, "2020-01-01 00:00:00"),
        )
        await turn(store, patience=60)
        await database.sql("UPDATE jobs SET enabled = TRUE WHERE id = 's'")
        row = await store.schedule("s")
        assert row is not None
        enabled_at = row.modified_at
        assert enabled_at is not None

        async def a_second_later() -> bool:
            return (await now(store)) > enabled_at + timedelta(seconds=1)

        await until(a_second_later)
        await turn(store, patience=60)

        (first, *_) = await made(store)
        assert first.scheduled_at is not None
        assert timedelta(0) < first.scheduled_at - enabled_at <= timedelta(seconds=1)

    async def test_a_condition_decides_for_the_tick_that_it_was_asked_for(self, database: Database) -> None:
        store = await Clock(database).open(NOON)
        await store.put_schedule(Schedule(name="s", handler="h", cron="0 * * * *", condition="SELECT 1"))
        await turn(store)
        assert await store.asking() == []

        async def ask(hours: int, *, holds: bool, error: str | None = None) -> None:
            Clock.put(store, NOON + timedelta(hours=hours))
            await store.fire()
            (asking,) = await store.asking()
            await store.fire({asking.id: Verdict(asked=asking, holds=holds, error=error)})
            assert await store.fire({asking.id: Verdict(asked=asking, holds=True)}) == []

        await ask(1, holds=False)
        await ask(2, holds=False, error="it broke")
        broken = await store.schedule("s")
        await ask(3, holds=True)
        fired = await store.schedule("s")

        assert ticks(await made(store)) == [NOON + timedelta(hours=3)]
        assert broken is not None
        assert fired is not None
        assert (broken.last_error, broken.execution_count) == ("it broke", 0)
        assert (fired.last_error, fired.execution_count) == (None, 1)
        Clock.put(store, NOON + timedelta(hours=4))
        (asking,) = await store.asking()
        await store.put_schedule(Schedule(name="s", handler="h", cron="0 * * * *", condition="SELECT 0"))
        assert await store.fire({asking.id: Verdict(asked=asking, holds=True)}) == []
        assert len(await store.asking()) == 1

    async def test_ticks_of_long_ago_are_forgotten(self, database: Database) -> None:
        store = await Clock(database).open(NOON)
        await store.put_schedule(Schedule(name="s", handler="h", interval=86400, start_at=NOON, misfire="all"))
        await turn(store, patience=86400)
        for days in range(1, 10):
            Clock.put(store, NOON + timedelta(days=days))
            await turn(store)
        assert len(await made(store)) == 9

        await store.prune(timedelta(days=365), 500)

        assert await database.value("SELECT count(*) FROM schedule_ticks") == 8
