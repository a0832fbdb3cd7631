import asyncio
import threading
import time

import pytest

from gateway.crashpoint import armed
from gateway.errors import StoreUnavailable
from gateway.executor import workers
from gateway.handler import Handler, handler
from gateway.janitor import Intervals, Janitor
from gateway.job import JobStatus, NewJob
from tests.executor.bench import bench, effect, enqueue, make_suspect, note, running, statuses, until


@pytest.fixture
async def b(sqlite_url):
    async with bench(sqlite_url) as made:
        yield made


async def test_a_failed_attempt_is_retried_one_priority_lower_until_none_is_left(b):
    async def fail(_):
        raise ValueError("no")

    b.handlers["h"] = Handler.of("h", fail)
    (job,) = await enqueue(b, 1, max_retries=2, priority=5)
    executor = b.executor()
    for attempt in range(1, 4):
        await executor.once()
        row = await b.store.get(job)
        assert (row.retry_count, row.last_error) == (attempt, "ValueError: no")
        await b.store.promote()
    assert (row.status, row.priority) == (JobStatus.FAILED, 3)
    assert [h.retry_attempt for h in await b.store.history(job)] == [0, 1, 2]


async def test_a_database_that_goes_away_while_finishing_costs_no_attempt(b, monkeypatch):
    b.handlers["h"] = Handler.of("h", note)
    jobs = await enqueue(b, 20)
    finish, refused = b.store.finish, 0

    async def away(finishes):
        nonlocal refused
        refused += 1
        if refused <= 4:
            raise StoreUnavailable("away")
        return await finish(finishes)

    monkeypatch.setattr(b.store, "finish", away)
    async with running(b.executor()):
        await until(lambda: len(b.told("job.finished")) == 20)
    assert sorted(job for job, _ in await b.effects()) == sorted(jobs)
    assert {(await b.store.get(job)).retry_count for job in jobs} == {0}


async def test_a_database_that_goes_away_under_a_handlers_transaction_costs_no_attempt(b):
    async def own(context):
        await context.session.execute(effect, {"job": context.job.id, "note": context.job.id})

    refused = 0

    def away(point):
        nonlocal refused
        if point == "own.start" and refused < 3:
            refused += 1
            raise StoreUnavailable("away")

    b.handlers["h"] = Handler.of("h", own)
    (job,) = await enqueue(b, 1)
    with armed(away):
        async with running(b.executor()):
            await until(lambda: b.told("job.finished"))
    row = await b.store.get(job)
    assert (row.status, row.retry_count, refused) == (JobStatus.COMPLETED, 0, 3)
    assert await b.effects() == [(job, job)]


async def test_a_handler_under_which_the_database_always_goes_away_fails_at_last(b):
    async def own(context):
        await context.session.execute(effect, {"job": context.job.id, "note": context.job.id})
        raise StoreUnavailable("away, says the handler")

    b.handlers["h"] = Handler.of("h", own)
    (job,) = await enqueue(b, 1)
    async with running(b.executor()):
        await until(lambda: b.told("job.finished"))
    row = await b.store.get(job)
    assert (row.status, row.last_error) == (JobStatus.FAILED, "away, says the handler")
    assert sum(told["count"] for told in b.told("job.released")) == 4


async def test_a_database_that_goes_away_while_claiming_is_asked_again(b, monkeypatch):
    b.handlers["h"] = Handler.of("h", note)
    claim, refused = b.store.claim, 0

    async def away(*arguments):
        nonlocal refused
        refused += 1
        if refused <= 3:
            raise StoreUnavailable("away")
        return await claim(*arguments)

    monkeypatch.setattr(b.store, "claim", away)
    await enqueue(b, 1)
    async with running(b.executor(poll_interval=60)):
        await until(lambda: b.told("job.finished"), 3)


@pytest.mark.parametrize("own", [True, False])
async def test_a_job_taken_meanwhile_is_forgotten_and_nothing_of_it_is_written(b, own):
    async def lose(context):
        await b.store.cancel(context.job.id, "not wanted")
        if own:
            await context.session.execute(effect, {"job": context.job.id, "note": "lost"})
        else:
            await note(context)

    b.handlers["h"] = Handler.of("h", lose)
    (job,) = await enqueue(b, 1)
    await b.executor().once()
    assert await b.effects() == []
    assert (await b.store.get(job)).status is JobStatus.CANCELLED
    assert [told["job"] for told in b.told("job.lost")] == [job]
    assert b.told("job.finished") == []


async def test_one_refused_deferred_write_fails_its_job_and_no_other_of_the_group(b):
    async def same(context):
        context.defer(
            effect, {"job": context.job.id, "note": "same" if context.job.payload == b"bad" else context.job.id}
        )

    b.handlers["h"] = Handler.of("h", same)
    good = await enqueue(b, 10)
    bad = [NewJob(handler="h", payload=b"bad", max_retries=0) for _ in range(2)]
    await b.store.enqueue(bad)
    async with running(b.executor()):
        await until(lambda: len(b.told("job.finished")) == 12)
    assert await statuses(b, good) == [JobStatus.COMPLETED] * 10
    assert sorted(await statuses(b, [job.id for job in bad])) == [JobStatus.COMPLETED, JobStatus.FAILED]
    assert len(await b.effects()) == 11


async def test_a_handler_that_ignores_its_cancellation_gives_its_worker_back(b):
    over = threading.Event()

    @handler(timeout=0.05)
    def stuck(_):
        over.wait(20)

    b.handlers["stuck"] = Handler.of("stuck", stuck)
    b.handlers["h"] = Handler.of("h", note)
    (job,) = await enqueue(b, 1, "stuck")
    executor = b.executor(workers=1)
    async with running(executor):
        await until(lambda: b.told("job.abandoned"))
        await enqueue(b, 5)
        await until(lambda: len(b.told("job.finished")) == 6)
        over.set()
    assert (await b.store.get(job)).last_error == "stuck did not finish within 0.05 s"


async def test_abandoned_handlers_are_replaced_only_as_often_as_there_are_workers(b):
    over = threading.Event()

    @handler(timeout=0.02)
    def stuck(_):
        over.wait(20)

    b.handlers["stuck"] = Handler.of("stuck", stuck)
    await enqueue(b, 10, "stuck")
    executor = b.executor(workers=2)
    async with running(executor):
        await until(lambda: len(b.told("job.abandoned")) == 4)
        assert executor.running == 0
        over.set()
        await until(lambda: len(b.told("job.finished")) == 10)


async def test_a_jobs_own_timeout_counts_and_not_its_handlers(b):
    @handler(timeout=0.05)
    async def slow(context):
        await asyncio.sleep(0.2 if context.job.timeout == 60 else 20)

    b.handlers["slow"] = Handler.of("slow", slow)
    (patient,) = await enqueue(b, 1, "slow", timeout=60)
    (hurried,) = await enqueue(b, 1, "slow", timeout=1)
    async with running(b.executor()):
        await until(lambda: len(b.told("job.finished")) == 2)
    assert await statuses(b, [patient, hurried]) == [JobStatus.COMPLETED, JobStatus.FAILED]
    assert (await b.store.get(hurried)).last_error == "slow did not finish within 1 s"


@pytest.mark.parametrize("patience", [0.0, 5.0])
async def test_a_plain_handler_whose_time_is_up_cannot_use_the_database_any_more(b, patience):
    resume, refused = threading.Event(), []

    @handler(timeout=0.05)
    def late(context):
        context.session.execute(effect, {"job": context.job.id, "note": "early"})
        resume.wait(20)
        for call in (
            lambda: context.session.execute(effect, {"job": context.job.id, "note": "late"}),
            lambda: context.enqueue("child"),
            context.connection,
        ):
            try:
                call()
            except Exception as error:
                refused.append(type(error).__name__)

    b.handlers["late"] = Handler.of("late", late)
    await enqueue(b, 1, "late")
    executor = b.executor(workers=1, patience=patience)
    async with running(executor):
        await until(lambda: any(attempt.stop for attempt in executor._workers._running) or b.told("job.finished"))
        resume.set()
        await until(lambda: len(refused) == 3 and b.told("job.finished"))
    assert refused == ["TransactionRefused"] * 3
    assert await b.effects() == []


async def test_a_handler_that_blocks_the_event_loop_is_named(b):
    async def block(_):
        time.sleep(0.6)  # noqa: ASYNC251 - the abuse itself

    await b.run(block)
    (told, *_) = b.told("loop.blocked")
    assert told["handler"] == "h"
    assert told["seconds"] >= 0.25


async def test_progress_is_written_while_the_handler_runs(b):
    gate = asyncio.Event()

    async def report(context):
        for step in range(1000):
            context.progress(step / 1000, "going on")
        context.progress(0.5, "half")
        await gate.wait()

    b.handlers["h"] = Handler.of("h", report)
    (job,) = await enqueue(b, 1)
    async with running(b.executor()):
        async with asyncio.timeout(5):
            while (await b.store.get(job)).progress != {"fraction": 0.5, "note": "half"}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        gate.set()
        await until(lambda: b.told("job.finished"))


@pytest.mark.parametrize("lane", ["run", "alone"])
@pytest.mark.parametrize("place", ["claim.committed", "appetite", "accept", "start"])
async def test_a_claimed_job_that_an_error_keeps_from_its_worker_is_given_back(b, monkeypatch, place, lane):
    """Whatever the error is: nobody holds the job, so that it runs after all, and its lane goes on."""
    monkeypatch.setattr("gateway.store.store.FORGOTTEN_SECONDS", 0.3)
    b.handlers["h"] = Handler.of("h", note)
    jobs = await enqueue(b, 30)
    if lane == "alone":
        await make_suspect(b, jobs[7])
    left = 1

    def fail(*_, **__):
        nonlocal left
        if left:
            left -= 1
            raise RuntimeError(f"injected: {place}")

    executor = b.executor(workers=4)
    fail_in(monkeypatch, executor, place, fail)
    janitor = Janitor(b.store, held=lambda: executor.held, wake=b.wake, intervals=Intervals(reclaim=0.1))
    with armed(lambda point: fail() if point == place else None):
        async with running(executor):
            reclaiming = asyncio.create_task(janitor.loops[2].run())
            await until(lambda: len(b.told("job.finished")) == 30)
            reclaiming.cancel()
    assert left == 0
    assert sorted(job for job, _ in await b.effects()) == sorted(jobs)
    assert {(await b.store.get(job)).retry_count for job in jobs} == {0}
    assert not b.told("job.lost")


def fail_in(monkeypatch, executor, place, fail):
    """Have `fail` called at a place between a claim's answer and the start of its handlers."""
    owner, name = {
        "appetite": (executor._workers.appetite, "claimed"),
        "accept": (executor, "_handler"),
        "start": (workers, "Effects"),
    }.get(place, (None, ""))
    if owner is not None:
        real = getattr(owner, name)

        def failing(*arguments, **options):
            fail()
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, failing)
