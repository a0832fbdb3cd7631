"""The two schedules that are there from the start do what they say, by the gateway's own scheduler."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gateway import Gateway, JobStatus
from gateway.config import parse_config
from gateway.job import JobType
from gateway.store import JobFilter
from tests.faulty import until_it_is


@pytest.fixture
def config(tmp_path):
    return parse_config(
        f"""
gateway: {{name: test, grace: 0.2, admin: null}}
database: {{url: "sqlite:///{tmp_path / "gateway.db"}"}}
jobs: {{job_history_retention_days: 0}}
handlers: {{test.fail: "tests.app_handlers:fail"}}
"""
    )


async def each_second(gateway, name, **changes):
    """Let a sample tick each second instead of when it does; nothing else of it is changed."""
    row = await gateway.store.schedule(name)
    assert row.type == JobType.SYSTEM
    await gateway.store.put_schedule(replace(row, cron="* * * * * *", **changes))


async def results(gateway, handler):
    """Return what the completed jobs of a sample have returned, the first one first."""
    jobs = await gateway.store.list(JobFilter(handler=handler, status=JobStatus.COMPLETED))
    assert {job.type for job in jobs} <= {JobType.SYSTEM}
    return [job.result for job in reversed(jobs)]


async def test_failed_jobs_are_retried_where_that_may_help(config):
    async with Gateway.from_config(config) as gateway:
        luckless = await gateway.enqueue("test.fail", max_retries=0)
        hopeless = await gateway.enqueue("test.fail", "never", max_retries=0)
        for job_id in (luckless, hopeless):
            await until_it_is(lambda j=job_id: has_status(gateway, j, JobStatus.FAILED))

        await each_second(gateway, "Retry Failed Jobs")

        await until_it_is(lambda: has_status(gateway, luckless, JobStatus.COMPLETED))
        await until_it_is(lambda: has_run(gateway, "system.retry.failed", 2))
        assert (await results(gateway, "system.retry.failed"))[:2] == ['{"retried":1}', '{"retried":0}']
        assert await has_status(gateway, hopeless, JobStatus.FAILED)
        assert len(await gateway.history(hopeless)) == 1


async def test_old_jobs_are_deleted_with_their_histories(config):
    async with Gateway.from_config(config) as gateway:
        old, young = [await gateway.enqueue("gateway.log") for _ in range(2)]
        for job_id, days in ((old, 91), (young, 89)):
            await until_it_is(lambda j=job_id: has_status(gateway, j, JobStatus.COMPLETED))
            await age(gateway, job_id, days)

        await each_second(gateway, "job-cleanup-old-histories", metadata={"days": 90})

        await until_it_is(lambda: has_run(gateway, "system.cleanup.histories", 1))
        assert (await results(gateway, "system.cleanup.histories"))[0] == '{"deleted":1}'
        assert (await gateway.status(old), await gateway.history(old)) == (None, [])
        assert len(await gateway.history(young)) == 1


async def has_status(gateway, job_id, status):
    return (await gateway.status(job_id)).status is status


async def has_run(gateway, handler, count):
    return len(await results(gateway, handler)) >= count


async def age(gateway, job_id, days):
    """Let a job have ended so many days ago."""
    ended = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=days)
    async with gateway.store.engine.begin() as connection:
        await connection.execute(
            text("UPDATE queue_jobs SET completedat = :at WHERE id = :id"),
            {"at": f"{ended:%Y-%m-%d %H:%M:%S.%f}", "id": job_id},
        )
