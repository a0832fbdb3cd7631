"""ActiveMQ Classic and Artemis, killed, stopped, frozen and restarted, with a real database behind the connector."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager

import pytest

from gateway.connector import Inbox
from gateway.errors import Disconnected
from gateway.inbox import InboxWriter
from gateway.message import Message
from gateway.store import JobFilter
from gateway.supervisor import ConnectorState, Supervisor
from gateway.testing.connectors import Recorder, nothing_left, running, until
from tests.brokers.activemq import ActiveMQ
from tests.brokers.artemis import Artemis
from tests.connectors.stomp_tools import Stranger, connector, counted, started
from tests.faulty import sqlite_store, until_it_is

pytestmark = [pytest.mark.slow, pytest.mark.broker]

DEADLINE = 15.0


@pytest.fixture(scope="module", params=[ActiveMQ, Artemis], ids=["classic", "artemis"])
def broker(request):
    server = started(request.param)
    yield server
    server.remove()


@pytest.fixture
def queue(request):
    return f"faults.{request.node.name.translate(str.maketrans('[]-', '...'))}"


@pytest.fixture
async def stranger(broker):
    client = await Stranger.connect(broker.port)
    yield client
    await client.close()


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        yield store


@asynccontextmanager
async def writing(store):
    writer = InboxWriter(store)
    try:
        yield writer
    finally:
        await writer.close()


async def bodies(store):
    found = [await store.get(job.id) for job in await store.list(JobFilter(limit=5000))]
    return sorted(job.payload for job in found)


async def all_stored(store, count):
    return len(set(await bodies(store))) == count


async def all_done(broker, queue, count):
    return (await counted(broker, queue))[0] == count


class KillsBeforeAcknowledging(Inbox):
    """Stores, and lets the broker die before it hears of it, once."""

    def __init__(self, inbox, broker):
        self.inbox, self.broker, self.kills, self.readies = inbox, broker, 1, 0

    def ready(self):
        self.readies += 1

    async def positions(self, *arguments):
        raise NotImplementedError

    async def receive(self, messages, entry):
        receipts = await self.inbox.receive(messages, entry)
        if self.kills:
            self.kills -= 1
            self.broker.kill()
        return receipts


async def test_what_was_stored_and_not_acknowledged_stays_one_job(broker, stranger, queue, store):
    for n in range(50):
        await stranger.send(f"/queue/{queue}", b"%d" % n)
    async with writing(store) as writer:
        inbox = KillsBeforeAcknowledging(writer.connection("broker", "activemq"), broker)
        with pytest.raises(Disconnected):
            await asyncio.wait_for(connector(broker, {"queue": queue}).run(inbox), DEADLINE)
        broker.start()
        async with running_with(connector(broker, {"queue": queue}), inbox):
            await until_it_is(lambda: all_done(broker, queue, 50), 30)
        counts = writer.conservation["broker"]
    assert (counts.stored, counts.residue) == (50, 0)
    assert counts.duplicate > 0
    assert await bodies(store) == sorted(b"%d" % n for n in range(50))


@asynccontextmanager
async def running_with(made, inbox):
    before = inbox.readies
    life = asyncio.create_task(made.run(inbox))
    try:
        await until(lambda: inbox.readies > before or life.done())
        yield
        assert not life.done()
    finally:
        life.cancel()
        await asyncio.wait({life})


async def test_killed_and_restarted_under_load_nothing_is_lost_or_doubled(broker, queue, store):
    total, kills = 600, 2
    async with writing(store) as writer:
        supervisor = Supervisor(
            "broker",
            lambda: connector(broker, {"queue": queue, "prefetch": 50}),
            lambda on_ready: writer.connection("broker", "activemq", on_ready=on_ready),
        )
        running = asyncio.create_task(supervisor.run())
        sending = asyncio.create_task(send_all(broker, queue, total))
        for n in range(kills):
            share = total * (n + 1) // (kills + 1)
            await until(lambda share=share: stored(writer) >= share, 30)
            await asyncio.to_thread(broker.kill)
            broker.start()
        sent_twice = await asyncio.wait_for(sending, 60)
        await until_it_is(lambda: all_stored(store, total), 30)
        running.cancel()
        await asyncio.wait({running})
        assert writer.conservation["broker"].residue == 0
    found = await bodies(store)
    assert set(found) == {b"%d" % n for n in range(total)}
    assert len(found) <= total + sent_twice  # a second copy only of what its sender had to send twice


def stored(writer):
    counts = writer.conservation.get("broker")
    return 0 if counts is None else counts.stored


async def send_all(broker, queue, total):
    """Send all, again and again until the broker has them; return how often one was sent twice."""
    client, again, n = None, 0, 0
    while n < total:
        try:
            client = client or await Stranger.connect(broker.port)
            await client.send(f"/queue/{queue}", b"%d" % n)
            n += 1
        except (OSError, EOFError, asyncio.IncompleteReadError):
            if client is not None:
                again += 1
                await client.close()
                client = None
            await asyncio.sleep(0.02)
    await client.close()
    return again


async def test_a_frozen_broker_is_noticed(broker, queue):
    life = asyncio.create_task(connector(broker, {"queue": queue}, heartbeat=0.4).run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    os.kill(broker.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(Disconnected, match="no sign of life"):
            await asyncio.wait_for(life, DEADLINE)
        assert time.monotonic() - began < 5
        async with nothing_left():
            with pytest.raises(Disconnected, match="did not answer"):
                await connector(broker, {"queue": queue}, connect_timeout=0.5).run(Recorder())
    finally:
        os.kill(broker.pid, signal.SIGCONT)


async def test_a_stop_while_the_broker_is_frozen_takes_seconds_at_most(broker, queue):
    life = asyncio.create_task(connector(broker, {"queue": queue}).run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        life.cancel()
        done, _ = await asyncio.wait({life}, timeout=5)
        assert done
    finally:
        os.kill(broker.pid, signal.SIGCONT)


async def test_back_after_an_outage_it_consumes_within_five_seconds(broker, stranger, queue):
    inbox, states = Recorder(), []
    supervisor = Supervisor(
        "broker", lambda: connector(broker, {"queue": queue}), lambda on_ready: Told(inbox, on_ready)
    )
    running = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.state is ConnectorState.CONNECTED)
    await asyncio.to_thread(broker.stop)
    await until(lambda: supervisor.state is ConnectorState.DEGRADED)
    states.append(supervisor.reason)
    broker.start()
    back = time.monotonic()
    again = await Stranger.connect(broker.port)
    await again.send(f"/queue/{queue}", b"after")
    await until(lambda: inbox.stored)
    assert time.monotonic() - back < 5
    assert str(broker.port) in states[0]
    await again.close()
    running.cancel()
    await asyncio.wait({running})


class Told(Recorder):
    def __new__(cls, inbox, on_ready):
        inbox._on_ready = on_ready
        return inbox


async def test_a_durable_subscription_keeps_what_came_while_it_was_away(broker, stranger, queue):
    entry = {"topic": f"{queue}.>" if isinstance(broker, ActiveMQ) else queue, "subscription": "kept"}
    topic = f"/topic/{queue}.x" if isinstance(broker, ActiveMQ) else f"/topic/{queue}"
    made = lambda: connector(broker, entry, client_id=f"plant-{queue}")  # noqa: E731 - short
    await stranger.send(topic, b"before anybody")
    async with running(made()) as inbox:
        await stranger.send(topic, b"seen")
        await until(lambda: inbox.stored)
    await stranger.send(topic, b"while away")
    inbox.gate.clear()
    async with running(made(), inbox):
        await until(lambda: len(inbox.offered) == 2)
    inbox.gate.set()
    async with running(made(), inbox):
        await until(lambda: len(inbox.stored) == 2)
    assert [(message.topic, message.body) for message in inbox.stored] == [(topic, b"seen"), (topic, b"while away")]
    assert inbox.offered[1].dedupe_id == inbox.offered[2].dedupe_id


async def test_two_subscriptions_of_a_topic_each_get_their_job(broker, stranger, queue):
    entries = [{"topic": queue, "handler": name} for name in ("a", "b")]
    async with running(connector(broker, *entries)) as inbox:
        await stranger.send(f"/topic/{queue}", b"both")
        await until(lambda: len(inbox.stored) == 2)
    assert {message.dedupe_scope for message in inbox.stored} == {f"/topic/{queue}\n\n{name}" for name in ("a", "b")}


async def test_a_selector_leaves_the_rest_to_others(broker, stranger, queue):
    async with running(connector(broker, {"queue": queue, "selector": "region = 'EU' AND size <> '2'"})) as inbox:
        for region, size in (("US", 9), ("EU", 2), ("EU", 5)):
            await stranger.send(f"/queue/{queue}", f"{region}{size}".encode(), {"region": region, "size": size})
        await until(lambda: inbox.stored)
    await stranger.subscribe(f"/queue/{queue}")
    assert [each.body for each in await stranger.drain()] == [b"US9", b"EU2"]
    assert [message.body for message in inbox.stored] == [b"EU5"]


async def test_a_selector_that_is_none_is_told(broker, queue):
    with pytest.raises(Disconnected, match=r"\(\(no"):
        await connector(broker, {"queue": queue, "selector": "((no"}).run(Recorder())


@pytest.mark.parametrize("ack", ["client", "client-individual"])
async def test_what_is_acknowledged_never_comes_back_and_the_rest_does(broker, stranger, queue, ack):
    inbox = Recorder()
    async with running(connector(broker, {"queue": queue, "ack": ack, "prefetch": 5}), inbox):
        for n in range(20):
            await stranger.send(f"/queue/{queue}", b"%d" % n)
        await until(lambda: len(inbox.stored) == 20)
        inbox.gate.clear()
        for n in range(20, 30):
            await stranger.send(f"/queue/{queue}", b"%d" % n)
        await until(lambda: len(inbox.offered) > 20)
    rest = Recorder()
    async with running(connector(broker, {"queue": queue, "ack": ack}), rest):
        await until(lambda: len(rest.stored) == 10)
    assert [message.body for message in inbox.stored + rest.stored] == [b"%d" % n for n in range(30)]
    assert rest.stored[0].header("redelivered") == "true"


async def test_bodies_and_headers_of_any_bytes_go_out_and_come_in(broker, queue):
    sending = connector(broker, {"queue": queue, "key_header": "the key"})
    headers = ((" a:b\\c ", b"x:\\y\r\nz"), ("the key", "ключ".encode()), ("priority", b"nonsense"), ("empty", b""))
    odd = [b"\x00", b"\x00" * 70_000, bytes(range(256)) * 400, b"\n\n\x00\n", b"", b"{}"]
    async with running(sending) as inbox:
        for number, body in enumerate(odd):
            kind = "application/json" if body == b"{}" else "application/octet-stream"
            await sending.publish(
                Message(topic=queue, body=body, headers=headers, content_type=kind, message_id=f"job-{number}")
            )
        await until(lambda: len(inbox.stored) == len(odd))
    assert [message.body for message in inbox.stored] == odd
    for number, message in enumerate(inbox.stored):
        assert (message.topic, message.key) == (f"/queue/{queue}", "ключ".encode())
        assert message.header(" a:b\\c ") == "x:\\y\r\nz"
        assert (message.header("empty"), message.header("x-message-id")) == ("", f"job-{number}")
        assert message.header("persistent") == "true"
        assert message.header("priority") == "4"
        assert abs(message.timestamp.timestamp() - time.time()) < 60
    assert inbox.stored[-1].content_type == "application/json"


@pytest.mark.parametrize(
    "name", ["priority", "expires", "transaction", "JMSTimestamp", "JMSXGroupSeq", "AMQ_SCHEDULED_DELAY",
             "AMQ_SCHEDULED_CRON", "transformation", "amq-msg-type", "destination-type", "_AMQ_ROUTING_TYPE", "receipt",
             "destination", "content-length", "", "\x00", "\n"]
)  # fmt: skip
async def test_no_header_of_a_message_costs_the_connection(broker, queue, name):
    sending = connector(broker)
    async with running(sending):
        await sending.publish(Message(topic=queue, body=b"1", headers=((name, b"jms-map-json"),)))
        await sending.publish(Message(topic=queue, body=b"2"))


async def test_a_published_message_outlives_a_killed_broker(broker, queue):
    sending = connector(broker)
    life = asyncio.create_task(sending.run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    await sending.publish(Message(topic=queue, body=b"kept", key=b"k", message_id="job-1"))
    await asyncio.to_thread(broker.kill)
    with pytest.raises(Disconnected):
        await life
    broker.start()
    receiver = await Stranger.connect(broker.port)
    await receiver.subscribe(f"/queue/{queue}")
    assert [(each.body, each.headers["x-message-id"]) for each in await receiver.drain()] == [(b"kept", "job-1")]
    await receiver.close()
