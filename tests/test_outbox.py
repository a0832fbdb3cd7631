import asyncio
from functools import partial

import pytest

from gateway import suspects
from gateway.coordination import Wakeup
from gateway.errors import DeliveryError, Disconnected, NotConnected, StoreUnavailable
from gateway.job import PUBLISH, Direction, JobStatus, NewJob
from gateway.outbox import LANE, Outbox
from gateway.outcome import RetryPolicy
from gateway.store import JobFilter, Lane
from tests.faulty import Faulty, sqlite_store, until, until_it_is


class Broker:
    """What is published, and what goes wrong."""

    def __init__(self):
        self.taken = []
        self.errors = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def publish(self, message):
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        error = self.errors.get(message.body)
        if error is not None:
            raise error
        self.taken.append(message)
        return f"thanks for {message.body.decode()}"


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        yield Faulty(store)


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def connected(broker):
    return {"out": broker.publish}


@pytest.fixture
def wake():
    return Wakeup()


@pytest.fixture
async def outbox(store, connected, wake):
    store.store.on_ready = lambda lanes: [wake.set(lane) for lane in lanes]
    outbox = Outbox(store, lambda: connected, wake=wake, policy=RetryPolicy(delay=0.01), timeout=0.5)
    yield outbox
    await outbox.drain(0)


@pytest.fixture
async def running(outbox):
    task = asyncio.create_task(outbox.run())
    yield outbox
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def outgoing(body, connector="out", **fields):
    return NewJob(
        handler=PUBLISH,
        payload=body,
        metadata={"connector": connector, "topic": "billing"},
        direction=Direction.OUTBOUND,
        **fields,
    )


async def send(store, *jobs):
    await store.enqueue(jobs)
    return [job.id for job in jobs]


async def status(store, job_id):
    return (await store.get(job_id)).status


async def completed(store, count):
    await until_it_is(lambda: _count(store, JobStatus.COMPLETED, count))


async def _count(store, wanted, count):
    return len(await store.list(JobFilter(status=wanted, limit=1000))) == count


async def test_a_message_is_published_with_its_stable_id_and_the_answer_is_kept(store, outbox, broker):
    [job_id] = await send(store, outgoing(b"1"))

    assert await outbox.once("out") == 1

    [message] = broker.taken
    assert (message.message_id, message.topic, message.body) == (job_id, "billing", b"1")
    assert await status(store, job_id) is JobStatus.COMPLETED
    [attempt] = await store.history(job_id)
    assert (attempt.status, attempt.output_data) == (JobStatus.COMPLETED, "thanks for 1")


async def test_a_batch_is_published_at_once_and_finished_together(store, running, broker):
    broker.gate.clear()
    await send(store, *(outgoing(b"%d" % n) for n in range(100)))
    await until(lambda: broker.waiting == 100)
    broker.gate.set()

    await completed(store, 100)

    finishes = [len(args[0]) for verb, args in store.calls if verb == "finish"]
    assert sum(finishes) == 100
    assert len(finishes) < 10


async def test_one_failing_message_does_not_fail_the_others(store, outbox, broker):
    broker.errors = {
        b"1": DeliveryError("busy", retry_after=60),
        b"2": DeliveryError("no", permanent=True, response="why"),
    }
    ids = await send(store, *(outgoing(b"%d" % n) for n in range(4)))

    await outbox.once("out")

    assert [await status(store, job_id) for job_id in ids] == [
        JobStatus.COMPLETED,
        JobStatus.RETRYING,
        JobStatus.FAILED,
        JobStatus.COMPLETED,
    ]
    retrying = await store.get(ids[1])
    assert (retrying.retry_count, retrying.last_error) == (1, "busy")
    [attempt] = await store.history(ids[2])
    assert (attempt.error, attempt.output_data) == ("no", "why")


async def test_an_unexpected_error_of_an_adapter_is_an_outcome_too(store, outbox, broker):
    broker.errors = {b"1": ZeroDivisionError("oops")}
    [job_id] = await send(store, outgoing(b"1", max_retries=0))

    await outbox.once("out")

    job = await store.get(job_id)
    assert (job.status, job.last_error) == (JobStatus.FAILED, "ZeroDivisionError: oops")


async def test_a_send_without_confirmation_ends_by_time(store, outbox, broker):
    broker.gate.clear()
    [job_id] = await send(store, outgoing(b"1"))

    await outbox.once("out")

    job = await store.get(job_id)
    assert (job.status, job.last_error) == (JobStatus.RETRYING, "not confirmed within 0.5 s")


@pytest.mark.parametrize("error", [Disconnected("gone"), NotConnected("gone"), DeliveryError("not connected")])
async def test_a_lost_connection_costs_no_attempt(store, outbox, broker, connected, error):
    broker.errors = {b"1": error}
    [job_id] = await send(store, outgoing(b"1"))
    original = broker.publish

    async def publish(message):
        connected.clear()
        return await original(message)

    connected["out"] = publish

    await outbox.once("out")

    job = await store.get(job_id)
    assert (job.status, job.retry_count, job.claim_token) == (JobStatus.QUEUED, 0, None)
    assert await store.history(job_id) == []


class Cutting(Broker):
    """A broker that cuts the connection at once for a body in `poison`, and whenever `cut` is called."""

    def __init__(self, connected, wake):
        super().__init__()
        self.poison = set()
        self.tried = []
        self._connected, self._wake = connected, wake
        self.lost = asyncio.get_running_loop().create_future()
        self.open()

    def open(self):
        self._connected["out"] = partial(self._publish_by, self.lost)
        self._wake.set(LANE)

    def cut(self):
        self.lost.set_result(None)
        self.lost = asyncio.get_running_loop().create_future()
        self.open()

    async def _publish_by(self, lost, message):
        if lost.done():
            raise NotConnected("not connected")
        self.tried.append(message.body)
        if message.body in self.poison:
            asyncio.get_running_loop().call_soon(self.cut)
        answer = asyncio.ensure_future(self.publish(message) if message.body not in self.poison else asyncio.sleep(9))
        await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            raise Disconnected("cut")
        return answer.result()


@pytest.fixture
async def cutting(connected, wake):
    return Cutting(connected, wake)


async def test_a_message_for_which_the_broker_cuts_the_connection_fails_and_lets_the_others_through(
    store, cutting, running, monkeypatch
):
    monkeypatch.setattr(suspects, "REST", 0.01)
    cutting.poison = {b"poison"}
    first = await send(store, *(outgoing(b"a%d" % n) for n in range(5)))
    [poison] = await send(store, outgoing(b"poison", max_retries=1))
    behind = await send(store, *(outgoing(b"b%d" % n) for n in range(250)))

    await completed(store, 255)
    await until_it_is(lambda: _promoted_until(store, poison, JobStatus.FAILED))

    assert {(await store.get(job_id)).retry_count for job_id in (*first, *behind)} == {0}
    job = await store.get(poison)
    assert (job.retry_count, "even alone: cut" in job.last_error) == (2, True)
    assert [attempt.status for attempt in await store.history(poison)] == [JobStatus.FAILED] * 2
    assert cutting.tried.count(b"poison") <= 7


async def test_a_poison_message_without_others_is_found_out_too(store, cutting, running, monkeypatch):
    monkeypatch.setattr(suspects, "REST", 0.001)
    monkeypatch.setattr(suspects, "LONGEST_REST", 0.01)
    cutting.poison = {b"poison"}
    [poison] = await send(store, outgoing(b"poison", max_retries=0))

    await until_it_is(lambda: _promoted_until(store, poison, JobStatus.FAILED))


async def test_a_broker_that_cuts_every_connection_costs_no_message_an_attempt(store, cutting, running):
    cutting.gate.clear()
    ids = await send(store, *(outgoing(b"%d" % n) for n in range(20)))
    before = 0
    for _ in range(5):
        await until(lambda before=before: len(cutting.tried) > before)
        before = len(cutting.tried)
        cutting.cut()
    cutting.gate.set()
    await completed(store, 20)

    assert {(await store.get(job_id)).retry_count for job_id in ids} == {0}
    assert [len(await store.history(job_id)) for job_id in ids] == [1] * 20


async def _promoted_until(store, job_id, wanted):
    await store.promote()
    return await status(store, job_id) is wanted


async def test_messages_of_one_key_are_sent_in_order_though_one_is_retried(store, running, broker):
    failing = {b"a0": DeliveryError("busy", retry_after=0.05)}
    broker.errors = failing
    jobs = [outgoing(b"a%d" % n, ordering_key="out\x1fa") for n in range(4)] + [outgoing(b"other")]
    await send(store, *jobs)
    await until(lambda: [message.body for message in broker.taken] == [b"other"])
    broker.errors = {}
    await until_it_is(lambda: _promoted(store))

    await completed(store, 5)

    assert [message.body for message in broker.taken] == [b"other", b"a0", b"a1", b"a2", b"a3"]


async def _promoted(store):
    return (await store.promote()).count


async def test_rows_for_a_connector_that_is_away_wait_for_it(store, running, broker, connected):
    [known, unknown] = await send(store, outgoing(b"1", "late"), outgoing(b"2", "nobody"))
    await send(store, outgoing(b"3"))
    await completed(store, 1)
    assert await status(store, known) is JobStatus.PENDING

    connected["late"] = broker.publish
    await completed(store, 2)

    assert await status(store, unknown) is JobStatus.PENDING
    assert (await store.statistics()).ready == {Lane.send("nobody"): 1}


async def test_a_connector_that_went_away_gets_its_messages_back_without_an_attempt(store, running, broker, connected):
    broker.gate.clear()
    ids = await send(store, *(outgoing(b"%d" % n) for n in range(5)))
    await until(lambda: broker.waiting == 5)
    connected.clear()
    await until_it_is(lambda: _count(store, JobStatus.QUEUED, 5))
    assert not running.held

    broker.gate.set()
    connected["out"] = broker.publish
    await completed(store, 5)

    assert [(await store.get(job_id)).retry_count for job_id in ids] == [0] * 5


async def test_results_are_written_once_the_database_is_back(store, outbox, broker):
    store.fail("finish", *[StoreUnavailable("away")] * 3)
    [job_id] = await send(store, outgoing(b"1"))

    await outbox.once("out")

    assert await status(store, job_id) is JobStatus.COMPLETED
    assert len(broker.taken) == 1


async def test_a_drain_finishes_what_is_on_its_way_and_gives_back_the_rest(store, running, broker, connected):
    slow = asyncio.Event()

    async def publish_slowly(message):
        if message.body == b"slow":
            await slow.wait()
        return await broker.publish(message)

    broker.gate.clear()
    connected["out"] = publish_slowly
    quick, late = await send(store, outgoing(b"quick"), outgoing(b"slow"))
    await until(lambda: broker.waiting == 1 and len(running.held) == 2)
    drain = asyncio.create_task(running.drain(0.3))
    await asyncio.sleep(0)
    broker.gate.set()
    await drain

    assert await status(store, quick) is JobStatus.COMPLETED
    job = await store.get(late)
    assert (job.status, job.retry_count, job.claim_token) == (JobStatus.QUEUED, 0, None)


async def test_a_stop_in_the_middle_of_a_claim_forgets_no_row(store, outbox, broker):
    task = asyncio.create_task(outbox.run())
    gate = store.hold("claim")
    [job_id] = await send(store, outgoing(b"1"))
    await until(lambda: any(verb == "claim" for verb, _ in store.calls))
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(task, return_exceptions=True)

    assert await status(store, job_id) in (JobStatus.PENDING, JobStatus.QUEUED)
    assert (await store.get(job_id)).claim_token is None
