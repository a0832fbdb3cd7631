"""More mistakes of the system that this one replaces: those that take a whole gateway to make."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from gateway import Gateway, JobStatus
from gateway.config import JobsConfig, parse_config
from gateway.store.migrate import migrate
from tests.faulty import until, until_it_is
from tests.services import free_port
from tests.system.database import Database

PATIENCE = 30.0
"""Seconds after which something that must happen has not."""


class Gate:
    """Handlers wait before it."""

    def close(self):
        self.waiting = self.most = 0
        self.open = asyncio.Event()


gate = Gate()


@pytest.fixture(autouse=True)
def closed():
    gate.close()


async def wait(_context):
    gate.waiting += 1
    gate.most = max(gate.most, gate.waiting)
    try:
        await gate.open.wait()
    finally:
        gate.waiting -= 1


async def answer(_context):
    return "done"


async def fail(_context):
    raise ValueError("as told")


def document(url, jobs="", more="", grace=60):
    """Return a configuration in which nothing but the database is needed."""
    return f"""
gateway: {{name: test, grace: {grace}, admin: {{listen: "127.0.0.1:{free_port()}"}}}}
database: {{url: "{url}"}}
jobs: {{{jobs}}}
handlers: {{wait: "{__name__}:wait", answer: "{__name__}:answer", fail: "{__name__}:fail"}}
{more}"""


class Started(Gateway):
    """A gateway, and its database as an outsider sees it."""

    def __init__(self, config, outside):
        super().__init__(config)
        self.config = config
        self.outside = outside

    async def becomes(self, job_id, *wanted):
        await until_it_is(lambda: self.is_(job_id, *wanted), PATIENCE)
        return await self.status(job_id)

    async def is_(self, job_id, *wanted):
        job = await self.status(job_id)
        return job is not None and job.status in wanted

    async def ended(self, handler, **options):
        job = await self.becomes(await self.enqueue(handler, **options), JobStatus.COMPLETED, JobStatus.FAILED)
        return job, await self.history(job.id)

    async def fetch(self, route):
        url = f"http://{self.config.gateway.admin.listen}{route}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()


@pytest.mark.parametrize("cache", ["use_redis: true", "cache: {url: 'redis://127.0.0.1:1'}"])
async def test_no_cache_is_needed_at_all(database_url, cache):
    await migrate(database_url)
    config = parse_config(document(database_url, more=cache))
    async with Database(database_url) as outside, Started(config, outside) as gateway:
        jobs = await gateway.enqueue_many("answer", range(20))
        for job in jobs:
            await gateway.becomes(job, JobStatus.COMPLETED)
        assert (await gateway.fetch("/ready"))[0] == 200


async def test_stop_waits_for_running_handlers_and_no_longer(sqlite_url):
    async with Database(sqlite_url) as outside:
        gateway = Started(parse_config(document(sqlite_url, grace=3600)), outside)
        await gateway.__aenter__()
        job = await gateway.enqueue("wait")
        await until(lambda: gate.waiting == 1)
        stopping = asyncio.create_task(gateway.__aexit__(None, None, None))
        await until(lambda: gateway.unready == {"gateway": "stopping"})
        assert (await gateway.fetch("/ready"))[0] == 503
        assert (stopping.done(), gate.waiting) == (False, 1)
        gate.open.set()
        async with asyncio.timeout(PATIENCE):
            await stopping
        assert await outside.rows("SELECT id, statusid FROM queue_jobs") == [
            {"id": job, "statusid": int(JobStatus.COMPLETED)}
        ]


# -- every setting of `jobs` is used: a value for each, and what must show then ---------------------------------------


async def nothing_runs(gateway):
    """Two jobs become ready, one after the other, and the first is still there."""
    jobs = [await gateway.enqueue("answer", delay=0.02) for _ in range(2)]
    for job in jobs:
        await gateway.becomes(job, JobStatus.QUEUED)
    assert [(await gateway.status(job)).status for job in jobs] == [JobStatus.QUEUED] * 2
    assert "executor" not in gateway.late.keys() | gateway._services.clocks.keys()


async def three_run_at_once(gateway):
    jobs = await gateway.enqueue_many("wait", range(9))
    await until(lambda: gate.waiting == 3)
    gate.open.set()
    for job in jobs:
        await gateway.becomes(job, JobStatus.COMPLETED)
    assert gate.most == 3


async def unannounced_jobs_are_found(gateway):
    """So many, one after the other, that the default would take minutes."""
    async with asyncio.timeout(PATIENCE):
        for number in range(60):
            await gateway.outside.execute(f"INSERT INTO queue_jobs (id, handler) VALUES ('{number}', 'answer')")
            await gateway.becomes(str(number), JobStatus.COMPLETED)


async def one_retry_is_made(gateway):
    job, attempts = await gateway.ended("fail")
    assert (job.status, job.max_retries, len(attempts)) == (JobStatus.FAILED, 1, 2)


def retry_waits(least, most):
    async def a_retry_waits(gateway):
        job = await gateway.becomes(await gateway.enqueue("fail"), JobStatus.RETRYING)
        assert least < (job.scheduled_at - job.modified_at).total_seconds() < most

    return a_retry_waits


async def a_handler_is_timed_out(gateway):
    job, _ = await gateway.ended("wait", max_retries=0)
    assert (job.status, gate.waiting) == (JobStatus.FAILED, 0)
    assert "0.05" in job.last_error


async def the_heart_beats_faster(gateway):
    """So often that the default would take minutes."""
    beats = set()

    async def beaten():
        [instance] = await gateway.store.instances()
        beats.add(instance.heartbeat_at)
        return len(beats) > 12

    await until_it_is(beaten, PATIENCE)


async def old_jobs_go(gateway):
    job, _ = await gateway.ended("answer")
    await until_it_is(lambda: gone(gateway, "two days old"), PATIENCE)
    assert await gateway.status(job.id) is not None


async def gone(gateway, job_id):
    return await gateway.status(job_id) is None


async def metrics_are_off(gateway):
    assert (await gateway.fetch("/metrics"))[0] == 404
    assert (await gateway.fetch("/live"))[0] == 200


async def a_schedule_written_by_sql_is_seen(gateway):
    await gateway.outside.execute(
        "INSERT INTO jobs (id, name, handler, cronexpression) VALUES ('s', 's', 'a', '@daily')"
    )
    await until_it_is(lambda: planned(gateway), PATIENCE)


async def planned(gateway):
    return (await gateway.store.schedule("s")).next_run_at is not None


BY_HAND = """INSERT INTO jobs (id, name, description, typeid, handler, cronexpression, intervalseconds, startat, endat,
 maxexecutions, enabled, priority, metadata, createdby) VALUES
 ('five', 'five', NULL, 1, 'answer', '* * * * *', NULL, NULL, NULL, 0, TRUE, 0, NULL, NULL),
 ('six', 'six', NULL, 1, 'answer', '* * * * * *', NULL, NULL, NULL, 0, TRUE, 0, NULL, NULL),
 ('off', 'off', NULL, 1, 'answer', '* * * * * *', NULL, NULL, NULL, 0, FALSE, 0, NULL, NULL),
 ('long', 'long', NULL, 1, 'answer', NULL, 90, :begun, NULL, 1, TRUE, 0, NULL, NULL)"""


async def test_schedules_written_by_hand_fire_as_they_say_and_once_in_all_instances(database_url):
    await migrate(database_url)
    configs = [parse_config(document(database_url, "scheduler_check_interval: 0.2")) for _ in range(2)]
    async with Database(database_url) as outside, AsyncExitStack() as stack:
        await outside.execute("DELETE FROM jobs")
        for config in configs[: 1 if outside.kind == "sqlite" else 2]:
            gateway = await stack.enter_async_context(Started(config, outside))
        begun = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=89)
        shown = begun.isoformat(" ", "microseconds") if outside.kind == "sqlite" else begun
        await outside.execute(BY_HAND, [{"begun": shown}])

        async def fired():
            found = {row["id"]: row["executioncount"] for row in await outside.rows("SELECT * FROM jobs")}
            return found["long"] == 1 and found["six"] >= 2

        await until_it_is(fired, PATIENCE)
        await outside.execute("UPDATE jobs SET enabled = FALSE WHERE id = 'six'")

        async def stopped():
            return (await gateway.store.schedule("six")).next_run_at is None

        await until_it_is(stopped, PATIENCE)
        rows = {row["id"]: row for row in await outside.rows("SELECT * FROM jobs")}
        ticks = await outside.rows("SELECT scheduleid, tick, jobid FROM schedule_ticks ORDER BY tick")
        jobs = {row["id"]: row for row in await outside.rows("SELECT * FROM queue_jobs")}
    assert [rows["off"]["executioncount"], rows["long"]["executioncount"], rows["long"]["nextrunat"]] == [0, 1, None]
    assert rows["five"]["nextrunat"] is not None
    assert sum(row["executioncount"] for row in rows.values()) == len(ticks) == len(jobs)
    assert all(jobs[tick["jobid"]]["scheduledat"] == tick["tick"] for tick in ticks)


USED = {
    "enabled": ("false", nothing_runs),
    "workers": ("3", three_run_at_once),
    "poll_interval": ("0.02", unannounced_jobs_are_found),
    "max_retries": ("1, retry_delay: 0.01", one_retry_is_made),
    "retry_delay": ("200", retry_waits(159, 241)),
    "retry_max_delay": ("50, retry_delay: 1000", retry_waits(39, 61)),
    "timeout": ("0.05", a_handler_is_timed_out),
    "lease": ("1", the_heart_beats_faster),
    "scheduler_check_interval": ("0.3", a_schedule_written_by_sql_is_seen),
    "job_history_retention_days": ("1", old_jobs_go),
    "enable_metrics": ("false", metrics_are_off),
}

SHARED = {"lease"}
"""Only where several processes can share the database is there anything to use it for."""

AN_OLD_JOB = "INSERT INTO queue_jobs (id, handler, statusid, completedat) VALUES ('two days old', 'answer', 3, :then)"


@pytest.mark.parametrize("key", [pytest.param(key, marks=[pytest.mark.database] * (key in SHARED)) for key in USED])
async def test_every_jobs_setting_is_used(request, key):
    value, shows = USED[key]
    url = request.getfixturevalue("postgresql_url" if key in SHARED else "sqlite_url")
    await migrate(url)
    config = parse_config(document(url, f"{key}: {value}", grace=0))
    then = (datetime.now(UTC) - timedelta(days=2)).replace(tzinfo=None)
    async with Database(url) as outside:
        await outside.execute(
            AN_OLD_JOB, [{"then": then.isoformat(" ", "microseconds") if outside.kind == "sqlite" else then}]
        )
        async with Started(config, outside) as gateway:
            await shows(gateway)
            assert key == "job_history_retention_days" or not await gone(gateway, "two days old")
            assert key == "enable_metrics" or (await gateway.fetch("/metrics"))[0] == 200


def test_no_jobs_setting_is_without_a_test_of_its_use():
    assert USED.keys() == JobsConfig.model_fields.keys()
