import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gateway import telemetry
from gateway.coordination import Wakeup
from gateway.errors import StoreUnavailable
from gateway.janitor import Intervals, Janitor, Upkeep
from gateway.job import JobStatus, NewJob
from gateway.outcome import Completed
from gateway.store import Finish, Lane
from tests.faulty import Faulty, sqlite_store, until, until_it_is


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        yield Faulty(store)


@pytest.fixture
def wake(store):
    wake = Wakeup()
    store.store.on_ready = lambda lanes: [wake.set(lane) for lane in lanes]
    return wake


@pytest.fixture
def held():
    return set()


@pytest.fixture
def janitor(store, wake, held):
    quick = Intervals(promote=1.0, rescue=0.02, reclaim=0.02, prune=0.02)
    return Janitor(store, held=lambda: held, wake=wake, retention_days=1, intervals=quick)


@pytest.fixture
async def running(janitor):
    task = asyncio.create_task(janitor.run())
    yield janitor
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def ended(store, outcome, count=1):
    jobs = [NewJob(handler="h") for _ in range(count)]
    await store.enqueue(jobs)
    claimed = await store.claim(Lane.RUN, count, ["h"])
    assert await store.finish([Finish(job=job, outcome=outcome) for job in claimed]) == [None] * count
    return [job.id for job in claimed]


async def write(store, statement, **values):
    async with store.engine.begin() as connection:
        await connection.execute(text(statement), values)


async def test_a_job_that_is_due_soon_runs_when_it_is_due(store, running):
    job = NewJob(handler="h", delay=0.1)
    await store.enqueue([job])

    async with asyncio.timeout(0.9):
        await until_it_is(lambda: _is(store, job.id, JobStatus.QUEUED))

    assert (await store.get(job.id)).scheduled_at <= datetime.now(UTC)


async def _is(store, job_id, status):
    return (await store.get(job_id)).status is status


async def test_a_forgotten_claim_is_given_back_and_a_held_one_is_not(store, running, held):
    jobs = [NewJob(handler="h") for _ in range(2)]
    await store.enqueue(jobs)
    kept, forgotten = await store.claim(Lane.RUN, 2, ["h"])
    held.add(kept.claim_token)
    await write(store, "UPDATE queue_jobs SET startedat = '2020-01-01 00:00:00.000000'")

    await until_it_is(lambda: _is(store, forgotten.id, JobStatus.QUEUED))

    assert await _is(store, kept.id, JobStatus.PROCESSING)
    assert (await store.get(forgotten.id)).retry_count == 0


async def test_what_ended_before_the_retention_goes_in_batches(store, running):
    old = await ended(store, Completed(), 20)
    [new] = await ended(store, Completed())
    await write(store, "UPDATE queue_jobs SET completedat = '2020-01-01 00:00:00.000000' WHERE id <> :id", id=new)

    async def are_gone():
        return [await store.get(job_id) for job_id in old] == [None] * 20

    await until_it_is(are_gone)

    assert await store.get(new) is not None
    assert await store.history(old[0]) == []


async def test_a_failing_loop_holds_up_no_other(store, janitor, running):
    async def refuse(*_, **__):
        raise RuntimeError("broken")

    store.before["rescue"] = store.before["prune"] = refuse
    told = []
    with telemetry.subscribed(lambda event, fields: told.append((event, fields.get("service")))):
        job = NewJob(handler="h", delay=0.05)
        await store.enqueue([job])
        await until_it_is(lambda: _is(store, job.id, JobStatus.QUEUED))
        await until(lambda: ("service.error", "janitor.rescue") in told)


async def test_a_database_that_is_away_is_told_and_survived(store, running):
    store.fail("rescue", StoreUnavailable("away"))
    told = []
    with telemetry.subscribed(lambda event, _: told.append(event)):
        await until(lambda: "store.unavailable" in told)
    calls = len(store.calls)

    await until(lambda: len([verb for verb, _ in store.calls[calls:] if verb == "rescue"]) >= 2)


async def test_every_loop_shows_its_beat(janitor, running):
    now = asyncio.get_running_loop().time()

    await until(lambda: all(loop.beat >= now for loop in janitor.loops))


async def test_pruning_on_demand_deletes_what_is_older_than_asked_for(store):
    [job_id] = await ended(store, Completed())
    await write(store, "UPDATE queue_jobs SET completedat = :at", at=str(datetime.now(UTC) - timedelta(days=3))[:26])

    assert await Upkeep(store, 90).prune() == 0
    assert await Upkeep(store, 0).prune() == 0, "what is kept for ever was deleted"
    assert await Upkeep(store, 90).prune(2) == 1
    assert await store.get(job_id) is None


@pytest.mark.parametrize(("eager", "pruned"), [([True] * 20, 20), ([False] * 20, 2), ([False, True] * 10, 10)])
async def test_an_instance_that_does_not_lead_prunes_one_time_in_ten(store, wake, eager, pruned):
    answers = iter(eager)

    async def leads():
        return next(answers)

    janitor = Janitor(store, held=set, wake=wake, retention_days=1, eager=leads)
    calls = []
    store.prune = lambda *arguments: calls.append(arguments) or nothing()
    for _ in eager:
        assert await janitor.prune() == Intervals().prune
    assert len(calls) == pruned


async def nothing():
    return 0
