import asyncio

import pytest

from gateway.handler import Handler
from gateway.job import JobStatus
from gateway.store import Lane
from tests.executor.bench import bench, enqueue, make_suspect, note, running, statuses, until


@pytest.fixture
async def b(sqlite_url):
    async with bench(sqlite_url) as made:
        yield made


async def test_each_of_many_jobs_runs_once_and_its_effect_history_and_status_agree(b):
    b.handlers["h"] = Handler.of("h", note)
    jobs = await enqueue(b, 3000)
    async with running(b.executor(poll_interval=60)):
        await until(lambda: len(b.told("job.finished")) == 3000)
    assert sorted(job for job, _ in await b.effects()) == sorted(jobs)
    assert set(await statuses(b, jobs[::100])) == {JobStatus.COMPLETED}
    assert [len(await b.store.history(job)) for job in jobs[:20]] == [1] * 20


async def test_no_more_handlers_run_at_once_than_there_are_workers(b):
    most = now = 0

    async def count(_):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    b.handlers["h"] = Handler.of("h", count)
    await enqueue(b, 60)
    async with running(b.executor(workers=4)):
        await until(lambda: len(b.told("job.finished")) == 60)
    assert most == 4


async def test_a_job_that_arrives_while_idle_starts_at_once_and_not_at_the_next_poll(b):
    b.handlers["h"] = Handler.of("h", note)
    async with running(b.executor(poll_interval=60)):
        await until(lambda: b.wake._lanes.get(Lane.RUN))
        for count in range(1, 4):
            await enqueue(b, 1)
            await until(lambda count=count: len(b.told("job.finished")) == count, 2)


async def test_a_job_for_a_handler_that_is_not_known_is_left_alone(b):
    b.handlers["h"] = Handler.of("h", note)
    stranger, own = await enqueue(b, 1, "stranger"), await enqueue(b, 1)
    async with running(b.executor()):
        await until(lambda: b.told("job.finished"))
    assert await statuses(b, stranger + own) == [JobStatus.PENDING, JobStatus.COMPLETED]


async def test_a_handler_that_cannot_be_loaded_leaves_its_jobs_to_others_and_says_so_once(b):
    def resolve(name):
        raise ImportError(name)

    b.handlers["h"] = Handler.of("h", note)
    jobs = await enqueue(b, 3)
    executor = b.executor()
    executor._resolve = resolve
    async with running(executor):
        await until(lambda: sum(told["count"] for told in b.told("job.released")) == 3)
    assert await statuses(b, jobs) == [JobStatus.QUEUED] * 3
    assert len(b.told("service.error")) == 1


async def test_jobs_of_one_ordering_key_run_one_after_the_other(b):
    seen = []

    async def record(context):
        seen.append((context.job.sequence, "begins"))
        await asyncio.sleep(0.001)
        seen.append((context.job.sequence, "ends"))

    b.handlers["h"] = Handler.of("h", record)
    await enqueue(b, 8, ordering_key="k")
    async with running(b.executor(workers=5, poll_interval=60)):
        await until(lambda: len(b.told("job.finished")) == 8)
    assert seen == sorted(seen)


async def test_long_handlers_do_not_hoard_jobs_that_others_could_run(b):
    gate = asyncio.Event()

    async def wait(_):
        await gate.wait()

    b.handlers["h"] = Handler.of("h", wait)
    await enqueue(b, 40)
    executor = b.executor(workers=3)
    async with running(executor):
        await until(lambda: executor.running == 3)
        assert len(executor.held) == 3
        gate.set()
        await until(lambda: len(b.told("job.finished")) == 40)


async def test_a_crash_suspect_runs_alone_and_the_others_go_on_after_it(b):
    alone, now = [], 0

    async def watch(context):
        nonlocal now
        now += 1
        await asyncio.sleep(0.005)
        alone.append((context.job.crash_count, now))
        now -= 1

    b.handlers["h"] = Handler.of("h", watch)
    jobs = await enqueue(b, 60)
    await make_suspect(b, jobs[7])
    async with running(b.executor(workers=4)):
        await until(lambda: len(b.told("job.finished")) == 60)
    assert [at_once for crashes, at_once in alone if crashes] == [1]
    assert max(at_once for _, at_once in alone) == 4


async def test_a_suspect_that_turns_up_among_running_handlers_waits_until_they_have_ended(b):
    seen, now = {}, 0

    async def watch(context):
        nonlocal now
        now += 1
        seen[context.job.id] = now
        await asyncio.sleep(0.005)
        seen[context.job.id] = max(now, seen[context.job.id])
        now -= 1

    b.handlers["h"] = Handler.of("h", watch)
    (suspect,) = await enqueue(b, 1, delay=3600)
    await enqueue(b, 300)
    async with running(b.executor(workers=4)):
        await until(lambda: len(seen) > 10)
        await make_suspect(b, suspect)
        await until(lambda: len(b.told("job.finished")) == 301, 20)
    assert seen[suspect] == 1
    assert list(seen).index(suspect) < 300


async def test_once_runs_a_suspect_if_there_is_nothing_else(b):
    b.handlers["h"] = Handler.of("h", note)
    jobs = await enqueue(b, 2)
    for job in jobs:
        await make_suspect(b, job)
    assert await b.executor().once() == 2
    assert await statuses(b, jobs) == [JobStatus.COMPLETED] * 2
