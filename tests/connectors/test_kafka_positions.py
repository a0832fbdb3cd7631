"""One job per record, with the positions in a real database: rebalances, zombies, brokers and topics that go away."""

import asyncio
import random
from collections import Counter
from typing import ClassVar

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from connectors.kafka import source
from gateway import telemetry
from gateway.connector import Receipt
from gateway.errors import ConfigError, Disconnected, StoreUnavailable
from gateway.supervisor import ConnectorState
from gateway.testing.harness import Recorder, running, stays, until
from tests.connectors.kafka_tools import Member, Stranger, bodies, opened, until_count
from tests.faulty import Faulty

SECONDS = 12.0
"""How long members join and leave."""


@pytest.fixture
async def stranger(kafka):
    async with Stranger.at(kafka.url) as stranger:
        yield stranger


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


class Load:
    """A stranger that sends numbers, as fast as they are taken, until told to stop."""

    def __init__(self, stranger: Stranger) -> None:
        self.stranger, self.sent, self.ends = stranger, 0, asyncio.Event()

    async def run(self) -> None:
        while not self.ends.is_set():
            numbers = range(self.sent, self.sent + 50)
            sending = [await self.stranger.producer.send(self.stranger.topic, b"%d" % n, b"%d" % n) for n in numbers]
            await asyncio.gather(*sending)
            self.sent += 50
            await asyncio.sleep(0.05)


async def test_members_that_join_and_leave_make_one_job_of_each_record(kafka, url):
    chance = random.Random(7)
    async with Stranger.at(kafka.url, partitions=6) as stranger, opened(url) as store:
        load = Load(stranger)
        sending = asyncio.create_task(load.run())
        members: list[Member] = []
        end = asyncio.get_running_loop().time() + SECONDS
        changes = 0
        while asyncio.get_running_loop().time() < end:
            if len(members) < 2 or (len(members) < 3 and chance.random() < 0.6):
                members.append(Member(lambda: stranger.connector(session_timeout=6), store))
                await members[-1].start()
            else:
                await members.pop(chance.randrange(len(members))).stop()
            changes += 1
            await asyncio.sleep(chance.random() / 2)
        load.ends.set()
        await sending
        await until_count(url, load.sent)
        for member in members:
            await member.stop()
        await stores_each_once(url, load.sent)
        assert changes >= 6


async def test_a_broker_killed_under_load_loses_and_doubles_nothing(kafka, url):
    async with Stranger.at(kafka.url, partitions=3) as stranger, opened(url) as store:
        load = Load(stranger)
        sending = asyncio.create_task(load.run())
        members = [Member(lambda: stranger.connector(session_timeout=6), store) for _ in range(2)]
        for member in members:
            await member.start()
        await until(lambda: load.sent > 500)
        kafka.kill()
        await until(lambda: any(each.supervisor.state is ConnectorState.DEGRADED for each in members))
        kafka.launch()
        await asyncio.to_thread(kafka.wait)
        before = load.sent
        await until(lambda: load.sent > before + 500, 30)
        load.ends.set()
        await sending
        await until_count(url, load.sent)
        for member in members:
            await member.stop()
        assert Counter(await bodies(url)).keys() == {b"%d" % n for n in range(load.sent)}
        # A record that its producer repeated is two records.
        assert len(await bodies(url)) == sum((await stranger.committed()).values())


async def test_two_that_both_read_everything_make_one_job_of_each_record(stranger, sqlite_url):
    """Kafka fences neither of two live members with one instance id: each is the other's zombie."""
    async with opened(sqlite_url) as store:
        twins = [Member(lambda: stranger.connector(instance_id="same"), store) for _ in range(2)]
        async with twins[0].running(), twins[1].running():
            for start in range(0, 1000, 50):
                await stranger.send(*(b"%d" % n for n in range(start, start + 50)))
                await asyncio.sleep(0.05)
            await until_count(sqlite_url, 1000)
        await stores_each_once(sqlite_url, 1000, in_order=True)


async def test_what_the_database_says_counts_more_than_the_group(stranger, sqlite_url):
    await stranger.send(b"0", b"1", b"2")
    async with opened(sqlite_url) as store:
        async with Member(stranger.connector, store).running():
            await until_count(sqlite_url, 3)
        await stranger.send(b"3")
        other = f"{stranger.group}-new"
        async with Member(lambda: stranger.connector(group=other, start_from="latest"), store).running():
            await until_count(sqlite_url, 4)
    assert await bodies(sqlite_url) == [b"0", b"1", b"2", b"3"]


async def test_a_database_that_is_away_at_the_start_is_waited_for(stranger, sqlite_url):
    await stranger.send(b"0")
    async with opened(sqlite_url) as store:
        faulty = Faulty(store)
        faulty.fail("positions", *[StoreUnavailable("away")] * 3)
        async with Member(stranger.connector, faulty).running():
            await until_count(sqlite_url, 1)
    assert len([verb for verb, _ in faulty.calls if verb == "positions"]) == 4


class Watched(AIOKafkaConsumer):
    """A consumer that notes what it gave; it must be asked for records at least every two seconds."""

    given: ClassVar[list[int]] = []
    made: ClassVar[list[AIOKafkaConsumer]] = []

    def __init__(self, **options) -> None:
        super().__init__(**options, max_poll_interval_ms=2000)
        self.made.append(self)

    async def getmany(self, *partitions, **options):
        found = await super().getmany(*partitions, **options)
        self.given += [record.offset for records in found.values() for record in records]
        return found


async def test_nothing_is_read_before_it_is_known_where_to_begin(stranger, sqlite_url, monkeypatch):
    monkeypatch.setattr(source, "AIOKafkaConsumer", Watched)
    monkeypatch.setattr(Watched, "given", [])
    await stranger.send(*[b"x"] * 10)
    async with opened(sqlite_url) as store:
        async with Member(stranger.connector, store).running():
            await until_count(sqlite_url, 10)
        await stranger.commit(3)
        await stranger.send(b"y")
        faulty = Faulty(store)
        faulty.fail("positions", *[StoreUnavailable("away")] * 5)
        async with Member(stranger.connector, faulty).running():
            await until_count(sqlite_url, 11)
    assert Watched.given == list(range(11))


async def test_a_store_that_takes_longer_than_a_member_may_be_silent_loses_it_nothing(stranger, monkeypatch):
    monkeypatch.setattr(source, "AIOKafkaConsumer", Watched)
    inbox = Recorder()
    inbox.gate.clear()
    await stranger.commit(0)  # after an error, such as that there is no offset, the library does not look any more
    async with running(stranger.connector(), inbox):
        await stranger.send(*(b"%d" % n for n in range(20)))
        await until(lambda: inbox.offered)
        await stranger.send(*(b"%d" % n for n in range(20, 40)))
        assert await stays(stranger.has_a_member, 4)
        inbox.gate.set()
        await until(lambda: len(inbox.stored) == 40)
    assert [message.body for message in inbox.offered] == [b"%d" % n for n in range(40)]


@pytest.mark.parametrize("count", [2, 20])
async def test_a_topic_made_anew_stops_its_connector_and_says_so(stranger, sqlite_url, count):
    """Whether its new log is shorter than the old position, or longer, when it would be read on from the middle."""
    await stranger.send(*[b"old"] * 10)
    async with opened(sqlite_url) as store, Member(stranger.connector, store).running() as supervisor:
        await until_count(sqlite_url, 10)
        await stranger.delete()
        await stranger.create()
        await stranger.send(*[b"new"] * count)
        await until(lambda: supervisor.state is ConnectorState.FAILED, 40)
        assert f"{stranger.topic} was deleted and created again" in supervisor.reason
    assert await bodies(sqlite_url) == [b"old"] * 10


async def test_a_topic_made_anew_between_two_looks_at_the_cluster_is_noticed(stranger, monkeypatch):
    """Same name, same number of partitions, a longer log: nothing but the topic's id tells it from the former."""
    monkeypatch.setattr(source, "AIOKafkaConsumer", Watched)
    looks = asyncio.Event()
    monkeypatch.setattr(Watched, "made", [])
    await stranger.send(*[b"old"] * 10)
    inbox = Recorder()
    life = asyncio.create_task(stranger.connector().run(inbox))
    await until(lambda: len(inbox.stored) == 10)
    [consumer], partition = Watched.made, TopicPartition(stranger.topic, 0)
    client = consumer._client
    look = client._metadata_update

    async def look_later(*arguments):
        await looks.wait()
        return await look(*arguments)

    client._metadata_update = look_later
    consumer.pause(partition)
    await stranger.delete()
    await stranger.create()
    await stranger.send(*[b"new"] * 20)
    looks.set()
    consumer.resume(partition)
    with pytest.raises(ConfigError, match="was deleted and created again"):
        await asyncio.wait_for(life, 30)
    assert len(inbox.stored) == 10


async def test_a_topic_made_anew_while_nobody_looked_is_noticed_at_the_start(stranger):
    inbox = Recorder()
    async with running(stranger.connector(), inbox):
        await stranger.send(b"old")
        await until(lambda: inbox.stored)
    await stranger.delete()
    await stranger.create()
    await stranger.send(b"new 0", b"new 1")
    with pytest.raises(ConfigError, match="deleted and created again"):
        await asyncio.wait_for(stranger.connector().run(inbox), 20)
    with telemetry.subscribed(lambda event, fields: heard.append(fields) if event == "connector.warning" else None):
        heard: list[dict] = []
        async with running(stranger.connector(on_position_invalid="earliest"), inbox):
            await until(lambda: len(inbox.stored) == 3)
    assert [message.body for message in inbox.stored] == [b"old", b"new 0", b"new 1"]
    assert "deleted and created again" in heard[0]["warning"]


async def test_a_gateway_that_keeps_the_position_of_the_former_topic_is_told_so_before_anything_is_lost(stranger):
    class Keeping(Recorder):
        """Takes what stands before the position of the former log for stored."""

        async def receive(self, messages, entry):
            if self.stored and messages[0].position.offset < self.stored[-1].position.next_offset:
                return [Receipt("", duplicate=True)] * len(messages)
            return await super().receive(messages, entry)

    inbox = Keeping()
    async with running(stranger.connector(), inbox):
        await stranger.send(b"old 0", b"old 1")
        await until(lambda: len(inbox.stored) == 2)
    await stranger.delete()
    await stranger.create()
    await stranger.send(*[b"new"] * 5)
    with pytest.raises(ConfigError, match=r"position of the former .* must be deleted"):
        await asyncio.wait_for(stranger.connector(on_position_invalid="earliest").run(inbox), 20)
    assert [message.body for message in inbox.stored] == [b"old 0", b"old 1"]


@pytest.mark.parametrize(("policy", "expected"), [("earliest", [b"0", b"3", b"4"]), ("latest", [b"0", b"5"])])
async def test_records_that_expired_unread_stop_the_connector_unless_told_otherwise(stranger, policy, expected):
    inbox = Recorder()
    async with running(stranger.connector(), inbox):
        await stranger.send(b"0")
        await until(lambda: inbox.stored)
    await stranger.send(b"1", b"2", b"3", b"4")
    await stranger.admin.delete_records({TopicPartition(stranger.topic, 0): RecordsToDelete(before_offset=3)})
    with pytest.raises(ConfigError, match="2 messages from offset 1 on expired"):
        await asyncio.wait_for(stranger.connector().run(inbox), 20)
    warnings: list[str] = []
    with telemetry.subscribed(lambda event, told: event == "connector.warning" and warnings.append(told["warning"])):
        async with running(stranger.connector(on_position_invalid=policy), inbox):
            await until(lambda: warnings)
            if policy == "latest":
                await stranger.send(b"5")
            await until(lambda: len(inbox.stored) == len(expected))
    assert [message.body for message in inbox.stored] == expected


async def test_where_nothing_is_known_the_entry_says_where_to_begin(stranger):
    await stranger.send(b"old", timestamp_ms=1_000_000_000_000)
    await stranger.send(b"new", timestamp_ms=1_600_000_000_000)

    async def first(**keys):
        inbox = Recorder()
        async with running(stranger.connector(group=f"{stranger.group}-{keys['start_from']}", **keys), inbox):
            await stranger.send(b"now")
            await until(lambda: inbox.stored)
        return inbox.stored[0].body

    assert await first(start_from="earliest") == b"old"
    assert await first(start_from="2015-01-01T00:00:00Z") == b"new"
    assert await first(start_from="latest") == b"now"
    with pytest.raises(ConfigError, match="start_from is committed"):
        await asyncio.wait_for(stranger.connector(start_from="committed").run(Recorder()), 20)


async def test_a_partition_added_later_is_read_from_its_first_record(stranger):
    inbox = Recorder()
    async with running(stranger.connector(start_from="latest"), inbox):
        await stranger.grow(2)
        await stranger.send(b"early", partition=1)
        await until(lambda: inbox.stored, 30)
    assert inbox.stored[0].body == b"early"


async def test_a_topic_that_matches_later_is_found_and_read_from_its_first_record(stranger):
    inbox = Recorder()
    pattern = f"{stranger.topic}(-[a-z]+)?"
    connector = stranger.connector(topic=None, pattern=pattern, start_from="latest")
    async with running(connector, inbox):
        for name in ("later", "UPPER"):
            await stranger.create(topic=f"{stranger.topic}-{name}")
            await stranger.send(name.encode(), topic=f"{stranger.topic}-{name}")
        await until(lambda: inbox.stored, 30)
    assert [message.body for message in inbox.stored] == [b"later"]


async def test_aborted_transactions_are_left_out_and_their_marks_are_passed(kafka, stranger):
    inbox = Recorder()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.url, transactional_id=stranger.topic)
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(stranger.topic, b"undone")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(stranger.topic, b"done")
    finally:
        await producer.stop()
    async with running(stranger.connector(), inbox):
        await until(lambda: inbox.stored)
    assert [message.body for message in inbox.stored] == [b"done"]
    assert (inbox.stored[0].position.offset, inbox.stored[0].position.next_offset) == (2, 4)


async def test_a_missing_topic_is_named_and_not_made(stranger):
    connector = stranger.connector(topic=["nowhere", stranger.topic])
    with pytest.raises(Disconnected, match="nowhere does not exist"):
        await connector.run(Recorder())
    assert "nowhere" not in await stranger.admin.list_topics()
    assert "nowhere: DOES NOT EXIST" in await connector.check()


async def test_a_broker_that_is_back_is_read_from_within_five_seconds(kafka, stranger, sqlite_url):
    async with opened(sqlite_url) as store, Member(stranger.connector, store).running() as supervisor:
        await stranger.send(b"0")
        await until_count(sqlite_url, 1)
        kafka.kill()
        await until(lambda: supervisor.state is ConnectorState.DEGRADED)
        kafka.launch()
        await asyncio.to_thread(kafka.wait)
        await stranger.send(b"1")
        await until_count(sqlite_url, 2, seconds=5)


async def stores_each_once(url, count, *, in_order=False):
    found = await bodies(url)
    assert Counter(found) == Counter(b"%d" % n for n in range(count))
    if in_order:
        assert found == [b"%d" % n for n in range(count)]
