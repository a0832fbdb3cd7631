import asyncio
import logging
import os
import re
import signal
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.client import ConnectionGroup
from aiokafka.conn import create_conn
from pydantic import ValidationError

from connectors.kafka.cluster import close
from connectors.kafka.config import KafkaConfig
from gateway.errors import DeliveryError, Disconnected
from gateway.message import Message
from gateway.store import JobFilter
from gateway.testing.connectors import ConnectorConformance
from gateway.testing.harness import Harness, Recorder, running, until
from tests.brokers.kafka import Kafka
from tests.connectors.kafka_tools import Member, Stranger, config, connector, opened, until_count

ENTRY = {"handler": "gateway.log", "group": "g"}


class KafkaHarness(Harness):
    minimal: ClassVar = {"type": "kafka", "bootstrap_servers": "localhost:9092"}

    def __init__(self, broker: Kafka, stranger: Stranger) -> None:
        self.broker, self.stranger, self.topic = broker, stranger, stranger.topic

    def connector(self, instance=0):
        return self.stranger.connector(session_timeout=6)

    async def send(self, message, instance=0):
        await self.stranger.send(message.body, key=message.key, headers=list(message.headers), topic=message.topic)

    async def acknowledged(self):
        return sum((await self.stranger.committed()).values())

    async def delivered(self):
        return [
            Message(
                topic=record.topic, body=record.value, message_id=dict(record.headers).get("message-id", b"").decode()
            )
            for record in await self.stranger.everything()
        ]

    async def stop_broker(self):
        await asyncio.to_thread(self.broker.stop)

    async def start_broker(self):
        self.broker.launch()  # from this thread, which lives as long as the broker shall
        await asyncio.to_thread(self.broker.wait)

    def refusable(self):
        return Message(topic="not a topic", body=b"x")


class TestKafka(ConnectorConformance):
    has_dedupe_id = False  # its position in the log says whether a record was stored before

    @pytest.fixture
    async def harness(self, kafka):
        async with Stranger.at(kafka.url) as stranger:
            yield KafkaHarness(kafka, stranger)


@pytest.fixture
async def stranger(kafka):
    async with Stranger.at(kafka.url) as stranger:
        yield stranger


@asynccontextmanager
async def publishing(stranger, **keys):
    out = connector(stranger.address, **keys)
    async with running(out):
        yield out


async def test_a_record_arrives_with_all_that_kafka_knows_of_it(stranger, sqlite_url):
    headers = [
        ("trace", b"1"),
        ("trace", b"2"),
        ("binary", b"\x00\xff"),
        ("empty", None),
        ("Content-Type", b"text/plain"),
    ]
    await stranger.send(b"\x00\xff", key=b"\xffkey", headers=headers, timestamp_ms=1_600_000_000_123)
    await stranger.send(None, key=b"gone")
    inbox = Recorder()
    async with running(stranger.connector(), inbox):
        await until(lambda: len(inbox.stored) == 2)
    first, second = inbox.stored
    assert (first.body, first.key, first.content_type, first.tombstone) == (
        b"\x00\xff",
        b"\xffkey",
        "text/plain",
        False,
    )
    assert first.headers[:4] == (("trace", b"1"), ("trace", b"2"), ("binary", b"\x00\xff"), ("empty", b""))
    assert first.timestamp == datetime(2020, 9, 13, 12, 26, 40, 123000, UTC)
    assert (second.body, second.key, second.tombstone) == (b"", b"gone", True)
    stranger.group = f"{stranger.group}-2"
    async with opened(sqlite_url) as store, Member(stranger.connector, store).running():
        await until_count(sqlite_url, 2)
        jobs = sorted(await store.list(JobFilter(limit=10)), key=lambda job: job.sequence)
    assert [(job.payload, job.protocol, job.method) for job in jobs] == [
        (b"\x00\xff", "kafka", "publish"),
        (None, "kafka", "publish"),
    ]
    again = Message.from_row(jobs[0].payload, jobs[0].metadata)
    assert (again.headers, again.key, again.position) == (first.headers, first.key, first.position)


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_what_is_published_arrives_whole_whatever_the_compression(stranger, compression):
    message = Message(
        topic=stranger.topic,
        body=b"\x00\xff" * 1000,
        key=b"k\xff",
        headers=(("trace", b"1"), ("trace", b"\x00")),
        content_type="application/octet-stream",
        timestamp=datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
        message_id="job-1",
    )
    async with publishing(stranger, compression=compression) as out:
        assert await out.publish(message) == f"{stranger.topic}[0]@0"
        await out.publish(Message(topic=stranger.topic, key=b"k", tombstone=True))
    first, second = await stranger.everything()
    assert (first.value, first.key, first.timestamp) == (message.body, message.key, 1704164645000)
    assert first.headers == (
        *message.headers, ("content-type", b"application/octet-stream"), ("message-id", b"job-1"),
    )  # fmt: skip
    assert (second.value, second.key) == (None, b"k")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Message(topic="no topic", body=b"x"), "is no topic"),
        (Message(topic="..", body=b"x"), "is no topic"),
        (Message(topic="t", tombstone=True), "needs a key"),
        (Message(topic="t", body=b"x" * 1_048_577), "more than max_message"),
        (Message(topic="t", body=b"x", timestamp=datetime.now(UTC) + timedelta(hours=2)), "in the future"),
    ],
)
async def test_what_no_broker_takes_is_refused_for_good_before_it_spoils_others(stranger, message, text):
    async with publishing(stranger) as out:
        with pytest.raises(DeliveryError, match=text) as refused:
            await out.publish(message)
    assert refused.value.permanent


async def test_a_broker_that_refuses_one_message_still_gets_all_others(stranger):
    """A broker refuses whole batches, and then all that follows from the same producer."""
    await stranger.create(topic=f"{stranger.topic}-small", **{"max.message.bytes": "3000"})
    topic = f"{stranger.topic}-small"
    messages = [Message(topic=topic, body=b"%d" % n, message_id=str(n)) for n in range(60)]
    messages[30] = Message(topic=topic, body=b"x" * 5000)
    async with publishing(stranger) as out:
        results = await asyncio.gather(*map(out.publish, messages), return_exceptions=True)
        await out.publish(Message(topic=topic, body=b"60"))
    assert [n for n, result in enumerate(results) if isinstance(result, Exception)] == [30]
    assert isinstance(results[30], DeliveryError)
    assert results[30].permanent
    found = [int(record.value) for record in await stranger.everything(topic)]
    assert sorted(found) == [n for n in range(61) if n != 30]


async def test_a_missing_topic_fails_soon_and_is_found_once_it_is_there(stranger):
    topic = f"{stranger.topic}-later"
    async with publishing(stranger) as out:
        with pytest.raises(DeliveryError, match="does not exist") as refused:
            await asyncio.wait_for(out.publish(Message(topic=topic, body=b"x")), 5)
        assert not refused.value.permanent
        await stranger.create(topic=topic)
        await out.publish(Message(topic=topic, body=b"x"))


async def test_publishing_to_a_frozen_broker_fails_in_time(kafka, stranger):
    async with publishing(stranger, delivery_timeout=2) as out:
        await out.publish(Message(topic=stranger.topic, body=b"before"))
        os.kill(kafka.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeliveryError, match="not confirmed within 2 s"):
                await asyncio.wait_for(out.publish(Message(topic=stranger.topic, body=b"x")), 6)
        finally:
            os.kill(kafka.pid, signal.SIGCONT)
        await out.publish(Message(topic=stranger.topic, body=b"after"))
    assert [record.value for record in await stranger.everything()][-1] == b"after"


async def test_a_frozen_broker_ends_the_life(kafka, stranger):
    life = asyncio.create_task(stranger.connector().run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Disconnected):
            await asyncio.wait_for(life, 30)
    finally:
        os.kill(kafka.pid, signal.SIGCONT)


async def test_a_broker_that_is_gone_is_named_and_does_not_flood_the_log(kafka, stranger):
    lines = []
    handler = logging.Handler()
    handler.emit = lines.append
    logging.getLogger().addHandler(handler)  # pytest's own looks past what limits the client library
    life = asyncio.create_task(stranger.connector().run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    await asyncio.to_thread(kafka.stop)
    try:
        with pytest.raises(Disconnected, match=f"127.0.0.1:{kafka.port}: Connect call failed"):
            await asyncio.wait_for(life, 15)
        with pytest.raises(Disconnected, match="no broker can be reached"):
            await stranger.connector().check()
    finally:
        logging.getLogger().removeHandler(handler)
        kafka.launch()
        await asyncio.to_thread(kafka.wait)
    assert 0 < len(lines) < 50


async def test_a_connection_that_is_still_being_made_when_its_client_stops_is_closed(kafka, monkeypatch):
    connecting, go_on, made = asyncio.Event(), asyncio.Event(), []

    async def connect_slowly(*arguments, **options):
        connecting.set()
        await go_on.wait()
        made.append(await create_conn(*arguments, **options))
        return made[-1]

    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.url)
    await consumer.start()
    client = consumer._client
    monkeypatch.setattr("aiokafka.client.create_conn", connect_slowly)
    late = asyncio.create_task(client.ready(client.get_random_node(), group=ConnectionGroup.COORDINATION))
    await connecting.wait()
    await close(consumer.stop(), client)
    go_on.set()
    await late
    assert not made[0].connected()


async def test_the_check_says_who_answers(kafka, stranger):
    told = await stranger.connector().check()
    assert re.fullmatch(rf"cluster \S+ at {kafka.url} answers, 1 broker, {stranger.topic}: 1 partition", told)
    assert await stranger.committed() == {}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"bootstrap_servers": ""}, "at least one"),
        ({"bootstrap_servers": "kafka://b:9092"}, "host:port"),
        ({"bootstrap_servers": ["b:9092", "b:x"]}, "host:port"),
        ({"inbound": [{**ENTRY}]}, "either 'topic' or 'pattern'"),
        ({"inbound": [{**ENTRY, "topic": "a", "pattern": "b"}]}, "either 'topic' or 'pattern'"),
        ({"inbound": [{"handler": "h", "topic": "a"}]}, "Field required"),
        ({"inbound": [{**ENTRY, "topic": "a b"}]}, "is no topic"),
        ({"inbound": [{**ENTRY, "topic": []}]}, "one name, or a list"),
        ({"inbound": [{**ENTRY, "pattern": "("}]}, "not a regular expression"),
        (
            {"inbound": [{**ENTRY, "topic": "a", "start_from": "yesterday"}]},
            "a time with its zone",
        ),
        (
            {"inbound": [{**ENTRY, "topic": "a", "start_from": "2026-01-01"}]},
            "a time with its zone",
        ),
        ({"inbound": [{**ENTRY, "topic": t} for t in ("a", ["b", "a"])]}, "by two entries"),
        (
            {"inbound": [{**ENTRY, **t} for t in ({"topic": "ab"}, {"pattern": "a."})]},
            "by two entries",
        ),
        ({"username": "u"}, "belong together"),
        ({"username": "u", "password": "p", "token": "t"}, "or a token"),
        ({"mechanism": "OAUTHBEARER"}, "needs 'token'"),
        ({"mechanism": "SCRAM-SHA-512"}, "needs 'username'"),
        ({"token": "t", "token_file": "f"}, "not both"),
        ({"tls": {"certificate": "c"}}, "belong together"),
        ({"compression": "brotli"}, "gzip"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(keys, text):
    with pytest.raises(ValidationError) as caught:
        KafkaConfig.model_validate({"type": "kafka", "bootstrap_servers": "b:9092", **keys})
    assert text in str(caught.value)


def test_a_time_may_stand_in_yaml_without_quotes():
    entry = {**ENTRY, "topic": "a", "start_from": datetime(2026, 1, 31, 8, tzinfo=UTC)}
    [found] = config("b:9092", inbound=[entry]).inbound
    assert found.start_time == entry["start_from"]


def test_what_gives_secrets_away_is_warned_of_and_no_secret_is_shown():
    secret = "a-secret-nobody-may-see"
    plain = config("b:9092", username="u", password=secret)
    assert plain.warnings() == ["the password is sent in the clear (PLAIN without tls)"]
    assert config("b:9092", token=secret).warnings() == ["the token is sent in the clear (OAUTHBEARER without tls)"]
    assert config("b:9092", username="u", password=secret, tls={}).warnings() == []
    assert "anybody in between" in config("b:9092", tls={"verify": False}).warnings()[0]
    assert secret not in repr(plain) + str(plain) + plain.model_dump_json()
