"""Locks of handlers, on every database: the number only grows, and who lost a lock cannot commit."""

import asyncio

import pytest
from sqlalchemy import insert, select, text

from gateway.job import JobStatus
from tests.executor.bench import bench, effect, effects, enqueue, other, running, statuses, until


@pytest.fixture
async def b(database_url):
    async with bench(database_url) as made:
        yield made


async def ended(b, function):
    """Run one job beside whatever else runs, and return it as it is then."""
    job = await b.add(function, name=function.__name__, max_retries=0)
    async with running(b.executor()):
        await until(lambda: any(fields["job"] == job for fields in b.told("job.finished")))
    return await b.store.get(job)


async def fences(b):
    return sorted(int(note) for _, note in await b.effects())


async def test_one_holds_it_at_a_time_and_each_sees_what_the_one_before_wrote(b):
    inside, most = 0, 0

    async def own(context):
        nonlocal inside, most
        async with context.lock("ledger", wait=60) as lock:
            inside, most = inside + 1, max(most, inside + 1)
            assert (await fences(b))[-1:] in ([], [lock.fence - 1])
            await context.session.execute(insert(effects).values(job=context.job.id, note=str(lock.fence)))
            inside -= 1

    async def deferred(context):
        async with context.lock("ledger", wait=60) as lock, context.lock("ledger") as again:
            assert again == lock
            context.defer(effect, {"job": context.job.id, "note": str(lock.fence)})

    def plain(context):
        with context.lock("ledger", wait=60) as lock:
            context.session.execute(insert(effects).values(job=context.job.id, note=str(lock.fence)))

    jobs = [await b.add(function, name=function.__name__) for function in (own, deferred, plain) * 4]
    async with other(b) as second, running(b.executor(workers=3)), running(second.executor(workers=3)):
        await until(lambda: len(b.told("job.finished")) == len(jobs), 30)
        assert set(await statuses(b, jobs)) == {JobStatus.COMPLETED}
    assert most == 1
    assert await fences(b) == list(range(1, len(jobs) + 1))


async def test_the_lock_of_a_claim_that_is_over_is_free_at_once_and_its_number_goes_on(b):
    async def fail(context):
        async with context.lock("a"):
            raise ValueError("no")

    await b.run(fail)
    taken = []

    async def die(context):
        async with context.lock("a") as lock:
            taken.append(lock.fence)
            await asyncio.sleep(60)

    async def follow(context):
        async with context.lock("a", wait=60) as lock:
            taken.append(lock.fence)

    job = await b.add(die, name="die")
    async with running(b.executor()):
        await until(lambda: taken)
        b.handlers.clear()
        following = asyncio.create_task(ended(b, follow))
        await until(lambda: len(b.told("job.started")) == 3)
        await b.store.cancel(job, "as when its process has died")
        assert (await following).status is JobStatus.COMPLETED
    assert taken == [2, 3]


async def test_an_attempt_that_lost_its_lock_after_the_ttl_commits_nothing(b):
    holding, lost = asyncio.Event(), asyncio.Event()

    async def slow(context, write):
        async with context.lock("a", ttl=0.05):
            holding.set()
            await lost.wait()
            await write(context)

    async def own(context):
        await slow(context, lambda context: context.session.execute(insert(effects).values(job="own", note="x")))

    async def deferred(context):
        async def defer(context):
            context.defer(effect, {"job": "deferred", "note": "y"})

        await slow(context, defer)

    async def take(context):
        async with context.lock("a"):
            pass

    for function in (own, deferred):
        holding.clear()
        lost.clear()
        b.handlers.clear()  # so that the executor that runs the slow one does not know the other
        job = await b.add(function, name="slow", max_retries=0)
        async with running(b.executor()):
            await holding.wait()
            assert (await ended(b, take)).status is JobStatus.COMPLETED
            lost.set()
            await until(lambda job=job: any(fields["job"] == job for fields in b.told("job.finished")))
        assert "another job took the lock" in (await b.store.get(job)).last_error
    assert await b.effects() == []


async def test_a_lock_past_its_ttl_that_nobody_took_is_still_held(b):
    async def slow(context):
        async with context.lock("a", ttl=0.001):
            await b.store.ping()
            context.defer(effect, {"job": context.job.id, "note": "x"})

    assert (await b.run(slow)).status is JobStatus.COMPLETED
    assert len(await b.effects()) == 1


async def test_a_lock_is_taken_before_anything_is_read(b):
    async def late(context):
        await context.session.execute(select(1))
        async with context.lock("a"):
            pass

    async def unnamed(context):
        async with context.lock(""):
            pass

    assert "before the session is first used" in (await b.run(late)).last_error
    assert "characters" in (await b.run(unnamed)).last_error


async def test_a_lock_that_is_not_free_in_time_costs_no_attempt(b):
    release, order = asyncio.Event(), []

    async def hold(context):
        async with context.lock("a"):
            order.append("held")
            await release.wait()

    async def hasty(context):
        order.append("asked")
        async with context.lock("a", wait=0):
            order.append("got it")

    await b.add(hold, name="hold")
    async with running(b.executor()):
        await until(lambda: order)
        b.handlers.clear()
        job = await b.add(hasty, name="hasty", max_retries=0)
        async with running(b.executor()):
            await until(lambda: order.count("asked") == 2)
            release.set()
            await until(lambda: "got it" in order)
            await until(lambda: any(fields["job"] == job for fields in b.told("job.finished")))
    found = await b.store.get(job)
    assert (found.status, found.retry_count, len(await b.store.history(job))) == (JobStatus.COMPLETED, 0, 1)


async def test_rows_that_another_transaction_has_locked_are_held_and_nobody_waits_for_them(b):
    if b.url.startswith("sqlite"):
        pytest.skip("SQLite has no row locks")

    async def take(context):
        async with context.lock("a", wait=0):
            pass

    assert (await b.run(take)).status is JobStatus.COMPLETED
    async with b.store.engine.connect() as connection:
        await connection.exec_driver_sql("BEGIN")
        await connection.execute(text("UPDATE gateway_locks SET expiresat = NULL"))
        await b.run(take)
        assert b.told("job.released")
        await connection.exec_driver_sql("ROLLBACK")


async def test_all_instances_have_one_secret(b):
    async with other(b) as second:
        first, *others = await asyncio.gather(*(each.store.shared_secret("cache") for each in (b, second, b)))
    assert len(first) == 64
    assert set(others) == {first}
    assert await b.store.shared_secret("another") != first


async def test_many_locks_in_one_commit_go_in_one_order(b):
    async def several(context):
        async with context.lock(f"b{context.job.sequence % 5}", wait=60), context.lock("a", wait=60):
            context.defer(effect, {"job": context.job.id, "note": context.job.id})

    b.handlers["h"] = None
    await b.add(several)
    jobs = await enqueue(b, 20)
    async with running(b.executor(workers=8)):
        await until(lambda: len(b.told("job.finished")) == 21, 30)
    assert set(await statuses(b, jobs)) == {JobStatus.COMPLETED}
