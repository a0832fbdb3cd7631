"""A message that makes its broker cut the connection, among others: sent by the outbox through a connector."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from connectors.activemq import ActiveMQConnector
from connectors.activemq.config import ActiveMQConfig
from connectors.kafka import KafkaConnector
from connectors.mqtt import MqttConnector
from connectors.signalr import SignalrConnector
from connectors.signalr.config import SignalrConfig
from gateway.coordination import Wakeup
from gateway.inbox import InboxWriter
from gateway.job import PUBLISH, Direction, JobStatus, NewJob
from gateway.outbox import LANE, Outbox
from gateway.outcome import RetryPolicy
from gateway.supervisor import Supervisor
from tests.brokers.activemq import ActiveMQ
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.brokers.signalr import SignalRHub
from tests.conftest import missing
from tests.connectors import kafka_tools, mqtt_tools
from tests.faulty import sqlite_store, until_it_is
from tests.services import ServiceMissing

pytestmark = pytest.mark.broker

LIMIT = 50_000
OTHERS = 40


def activemq(broker: ActiveMQ) -> ActiveMQConnector:
    return ActiveMQConnector(ActiveMQConfig.model_validate({"type": "activemq", "url": broker.url}), name="out")


def signalr(hub: SignalRHub) -> SignalrConnector:
    keys = {"type": "signalr", "url": hub.url, "max_invocation": 1_000_000}
    return SignalrConnector(SignalrConfig.model_validate(keys), name="out")


def kafka(broker: Kafka) -> KafkaConnector:
    return kafka_tools.connector(broker.url, "out", delivery_timeout=5)


def mqtt(broker: Mosquitto) -> MqttConnector:
    """By 3.1.1, in which no broker says how much it takes."""
    return mqtt_tools.connector(broker.port, None, name="out", version="3.1.1")


BROKERS = {
    "activemq": (lambda: ActiveMQ(limit=LIMIT), activemq, "poison"),
    "kafka": (lambda: Kafka(settings={"socket.request.max.bytes": LIMIT}), kafka, "poison"),
    "mqtt": (lambda: Mosquitto(limit=LIMIT), mqtt, "poison"),
    "signalr": (lambda: SignalRHub(max_message=LIMIT), signalr, "send"),
}


@pytest.mark.parametrize("kind", BROKERS)
async def test_it_fails_for_itself_alone_and_all_others_get_through(kind, tmp_path):
    make_broker, connector, topic = BROKERS[kind]
    try:
        broker = make_broker()
    except ServiceMissing as reason:
        missing(str(reason))
    try:
        broker.start()
        if kind == "kafka":
            async with kafka_tools.Stranger.at(broker.url) as stranger:
                await stranger.create(topic=topic)
        await sends(lambda: connector(broker), topic, tmp_path)
    finally:
        broker.remove()


async def sends(make, topic, folder):
    async with sqlite_store(folder) as store:
        poison = outgoing(topic, b"x" * 2 * LIMIT, max_retries=1)
        others = [outgoing(topic, b"%d" % n) for n in range(OTHERS)]
        await store.enqueue([*others[:20], poison, *others[20:]])
        async with sending(make, store):
            await until_it_is(lambda: has_ended(store, poison.id), 60)
            await until_it_is(lambda: all_are_completed(store, others), 60)
        job = await store.get(poison.id)
        retries = [(await store.get(other.id)).retry_count for other in others]
    assert (job.status, job.retry_count) == (JobStatus.FAILED, 2)
    assert "even alone" in job.last_error
    assert retries == [0] * OTHERS


@asynccontextmanager
async def sending(make, store):
    wake, writer = Wakeup(), InboxWriter(store)

    def inbox(ready):
        return writer.connection("out", "out", method=None, on_ready=lambda: (ready(), wake.set(LANE)))

    supervisor = Supervisor("out", make, inbox)

    def publishers():
        return {} if supervisor.publish is None else {"out": supervisor.publish}

    store.on_ready = lambda lanes: [wake.set(lane) for lane in lanes]
    outbox = Outbox(store, publishers, wake=wake, policy=RetryPolicy(delay=0.01), poll_interval=0.5)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in (supervisor, outbox)]
        yield
        for task in tasks:
            task.cancel()
    await writer.close()


def outgoing(topic, body, **fields):
    metadata = {"connector": "out", "topic": topic}
    return NewJob(handler=PUBLISH, payload=body, metadata=metadata, direction=Direction.OUTBOUND, **fields)


async def has_ended(store, job_id):
    await store.promote()
    return (await store.get(job_id)).status in (JobStatus.FAILED, JobStatus.COMPLETED)


async def all_are_completed(store, jobs):
    return {(await store.get(job.id)).status for job in jobs} == {JobStatus.COMPLETED}
