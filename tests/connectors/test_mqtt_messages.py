"""What MQTT carries: topics and captures, properties, retained messages, groups, versions; and its configuration."""

import asyncio

import pytest
from pydantic import ValidationError

from connectors.mqtt import MqttConnector
from connectors.mqtt.config import MqttConfig, parse_url
from connectors.mqtt.topics import overlapping, parse_filter
from gateway.config import parse_config
from gateway.errors import DeliveryError
from gateway.message import Message
from gateway.testing.connectors import Recorder, running, until
from tests.connectors.mqtt_tools import Stranger, connector

numbers = iter(range(1_000_000))


@pytest.fixture
def name():
    """A name for the connector and its topics that no other test has used."""
    return f"messages-{next(numbers)}"


@pytest.fixture
async def stranger(mosquitto, name):
    who = await Stranger(mosquitto.port, f"stranger {name}").connect()
    yield who
    await who.close()


def config(**keys):
    return MqttConfig.model_validate({"type": "mqtt", "url": "mqtt://localhost", **keys})


# -- over a broker -----------------------------------------------------------------------------------------------------


async def test_captures_are_parameters(mosquitto, stranger, name):
    topic = f"{name}/sensors/{{device}}/{{what}}/#"
    async with running(connector(mosquitto.port, topic, name=name)) as inbox:
        await stranger.publish(f"{name}/sensors/7/temperature/raw/x", b"21")
        await stranger.publish(f"{name}/sensors/8/pressure", b"3")
        await until(lambda: len(inbox.stored) == 2)
    assert [dict(m.parameters) for m in inbox.stored] == [
        {"device": "7", "what": "temperature"},
        {"device": "8", "what": "pressure"},
    ]
    assert inbox.stored[0].topic == f"{name}/sensors/7/temperature/raw/x"


async def test_everything_that_belongs_to_a_message_goes_out_and_comes_in(mosquitto, name):
    headers = (
        ("traceparent", b"00-1-2-01"),
        ("twice", b"1"),
        ("twice", b"2"),
        ("latin", b"caf\xe9"),
        ("control", b"a\x00b\x1f"),
        ("mqtt-response-topic", b"answers/7"),
        ("mqtt-correlation-data", b"\x00\xff"),
        ("mqtt-message-expiry", b"600"),
        ("mqtt-message-expiry", b"700"),
        ("mqtt-response-topic", b"a/+"),
    )
    sent = Message(topic=name, body=b"x", headers=headers, content_type="text/plain", message_id="job-1")
    async with running(connector(mosquitto.port, name, name=name)) as inbox:
        await inbox_gets(inbox, connector_sends(mosquitto, sent))
    received = inbox.stored[0]
    assert received.content_type == "text/plain"
    assert received.headers == (
        ("traceparent", b"00-1-2-01"),
        ("twice", b"1"),
        ("twice", b"2"),
        ("latin", "café".encode()),
        ("control", "a\ufffdb\ufffd".encode()),
        ("mqtt-message-expiry", b"700"),
        ("mqtt-response-topic", b"a/+"),
        ("message-id", b"job-1"),
        ("mqtt-response-topic", b"answers/7"),
        ("mqtt-correlation-data", b"\x00\xff"),
        ("mqtt-message-expiry", b"600"),
    )


async def test_a_header_that_is_too_long_fails_for_good_and_alone(mosquitto, name):
    sender = connector(mosquitto.port, None, name=name)
    async with running(sender):
        with pytest.raises(DeliveryError, match="a header is longer") as caught:
            await sender.publish(Message(topic=name, headers=(("a", b"x" * 65_536),)))
        await sender.publish(Message(topic=name, headers=(("a", b"x" * 65_535),)))
    assert caught.value.permanent


async def connector_sends(mosquitto, message, **keys):
    sender = connector(mosquitto.port, None, name=f"sender-{next(numbers)}", **keys)
    async with running(sender):
        return await sender.publish(message)


async def inbox_gets(inbox, sending, count=1):
    await sending
    await until(lambda: len(inbox.stored) >= count)


async def test_three_one_one_carries_bodies(mosquitto, stranger, name):
    inbox = Recorder()
    inbox.gate.clear()
    keys = {"name": name, "version": "3.1.1"}
    async with running(connector(mosquitto.port, name, **keys), inbox):
        await connector_sends(mosquitto, Message(topic=name, body=b"\x00\xff", headers=(("a", b"b"),)), version="3.1.1")
        await until(lambda: inbox.offered)
    inbox.gate.set()
    async with running(connector(mosquitto.port, name, **keys), inbox):
        await until(lambda: inbox.stored)
    assert (inbox.stored[0].body, inbox.stored[0].headers) == (b"\x00\xff", ())


async def test_what_was_kept_comes_once_and_is_marked_or_not_at_all(mosquitto, stranger, name):
    await stranger.publish(f"{name}/kept", b"old", retain=True)
    await stranger.subscribe(f"{name}/#")
    for version in (5, "3.1.1"):
        keys = {"version": version, "name": f"{name}-{version}"}
        receiving, skipping = (keys | {"name": f"{keys['name']}-{n}"} for n in "rs")
        inbox, none = Recorder(), Recorder()
        async with running(connector(mosquitto.port, f"{name}/+", **receiving), inbox):
            await until(lambda inbox=inbox: inbox.stored)
        entry = {"retained": "skip"}
        async with running(connector(mosquitto.port, f"{name}/+", entry=entry, **skipping), none):
            await stranger.publish(f"{name}/new", b"new", retain=False)
            await until(lambda none=none: none.stored)
        assert [m.body for m in none.stored] == [b"new"]
        assert inbox.stored[0].header("mqtt-retained") == "true"
        assert none.stored[0].header("mqtt-retained") is None
    again = Recorder()
    async with running(connector(mosquitto.port, f"{name}/+", name=f"{name}-5-r"), again):
        await stranger.publish(f"{name}/later", b"later")
        await until(lambda: any(m.body == b"later" for m in again.stored))
    assert b"old" not in [m.body for m in again.stored]


async def test_what_is_sent_can_be_kept(mosquitto, stranger, name):
    await connector_sends(mosquitto, Message(topic=name, body=b"state"), retain=True)
    await stranger.subscribe(name)
    await until(lambda: stranger.received)
    assert stranger.received[0].body == b"state"


async def test_members_of_a_group_share_the_messages(mosquitto, stranger, name):
    one, other = Recorder(), Recorder()
    entry = {"share": f"group-{name}"}
    first, second = (connector(mosquitto.port, f"{name}/{{n}}", name=f"{name}-{n}", entry=entry) for n in "12")
    async with running(first, one), running(second, other):
        for n in range(40):
            await stranger.publish(f"{name}/{n}")
        await until(lambda: len(one.stored) + len(other.stored) == 40)
    assert min(len(one.stored), len(other.stored)) > 5
    assert {m.parameters["n"] for m in one.stored + other.stored} == {str(n) for n in range(40)}


async def test_what_the_connector_sent_itself_need_not_come_back(mosquitto, stranger, name):
    both = connector(mosquitto.port, name, name=name, entry={"no_local": True})
    async with running(both) as inbox:
        await both.publish(Message(topic=name, body=b"own"))
        await stranger.publish(name, b"other")
        await until(lambda: inbox.stored)
    assert [m.body for m in inbox.stored] == [b"other"]


async def test_qos_zero_arrives_and_needs_no_position(mosquitto, stranger, name):
    async with running(connector(mosquitto.port, name, name=name, entry={"qos": 0})) as inbox:
        for n in range(100):
            await stranger.publish(name, b"%d" % n)
        await until(lambda: len(inbox.stored) == 100)
    assert not any(m.position for m in inbox.stored)


async def test_entries_have_their_own_messages(mosquitto, stranger, name):
    class Told(Recorder):
        def __init__(self):
            super().__init__()
            self.told = []

        async def receive(self, messages, entry):
            self.told += [(entry.handler, message.body) for message in messages]
            return await super().receive(messages, entry)

    one = connector(mosquitto.port, None, name=name)
    inbound = [{"topic": f"{name}/a/+", "handler": "a"}, {"topic": f"{name}/b/{{x}}", "handler": "b", "qos": 0}]
    one = type(one)(config(url=mosquitto.url, inbound=inbound), name=name)
    async with running(one, Told()) as inbox:
        for n in range(20):
            await stranger.publish(f"{name}/{'ab'[n % 2]}/x", b"%d" % n)
        await until(lambda: len(inbox.stored) == 20)
    assert inbox.told == [("ab"[n % 2], b"%d" % n) for n in range(20)]


async def test_a_will_is_published_when_the_connection_is_lost_and_not_when_it_ends(mosquitto, stranger, name):
    await stranger.subscribe(f"{name}/gone")
    will = {"topic": f"{name}/gone", "payload": "gone"}
    async with running(connector(mosquitto.port, None, name=name, will=will)):
        pass
    lost = connector(mosquitto.port, None, name=name, will=will)
    life = asyncio.create_task(lost.run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    lost._client._paho.drop()
    await asyncio.wait({life})
    await until(lambda: stranger.received)
    assert [m.body for m in stranger.received] == [b"gone"]


# -- without one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "topic", "captures"),
    [
        ("a/{x}/c", "a/b/c", {"x": "b"}),
        ("a/{x}/c", "a/b/d", None),
        ("a/{x}/c", "a/b/c/d", None),
        ("a/{x}", "a/", {"x": ""}),
        ("{x}/#", "a", {"x": "a"}),
        ("{x}/#", "a/b/c", {"x": "a"}),
        ("a/b/#", "a", None),
        ("#", "a/b", {}),
        ("#", "$SYS/uptime", None),
        ("+/uptime", "$SYS/uptime", None),
        ("$SYS/#", "$SYS/uptime", {}),
        ("a.c", "abc", None),
        ("/a", "/a", {}),
        ("+/a", "/a", {}),
    ],
)
def test_a_filter_takes_its_topics(text, topic, captures):
    assert parse_filter(text).match(topic) == captures


@pytest.mark.parametrize("text", ["", "a/#/b", "a+", "a/b#", "a{x}", "{x}/{x}", "{1}", "a\x00", "$share/g/a"])
def test_what_is_no_filter_is_a_mistake(text):
    with pytest.raises(ValueError, match=r"."):
        parse_filter(text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "a/{x}", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b/#", False),
        ("#", "$SYS/#", False),
        ("+/b", "a/+", True),
        ("+/b/c", "a/+", False),
    ],
)
def test_filters_overlap_if_some_topic_fits_both(one, other, expected):
    assert (overlapping([parse_filter(one), parse_filter(other)]) is not None) is expected
    assert (overlapping([parse_filter(other), parse_filter(one)]) is not None) is expected


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"url": None}, "'url' or 'urls' is needed"),
        ({"urls": ["mqtt://a"]}, "one of them"),
        ({"url": "http://a"}, "mqtt://"),
        ({"url": "mqtt://user:secret@a"}, "belong under"),
        ({"url": "mqtt://a/b"}, "path"),
        ({"tls": {}}, "needs mqtts"),
        ({"url": "mqtts://a", "tls": {"key": "k"}}, "certificate"),
        ({"password": "x"}, "username"),
        ({"inbound": [{"topic": "a/+", "handler": "h"}, {"topic": "a/b", "handler": "h"}]}, "may both take"),
        ({"inbound": [{"topic": "a", "share": "a/b", "handler": "h"}]}, "group"),
        ({"inbound": [{"topic": "a", "share": "g", "no_local": True, "handler": "h"}]}, "no_local"),
        ({"will": {"topic": "a/#"}}, "wildcard"),
        ({"version": 4}, "5 or '3.1.1'"),
    ],
)
def test_mistakes_are_named(keys, reason):
    with pytest.raises(ValidationError, match=reason) as caught:
        config(**keys)
    assert "secret" not in str(caught.value)


def test_addresses_have_the_usual_ports():
    found = [parse_url(url) for url in ("mqtt://a", "mqtts://a", "ws://a", "wss://a:9/x", "mqtt://[::1]:2")]
    assert found == [
        ("a", 1883, False, None),
        ("a", 8883, True, None),
        ("a", 80, False, "/mqtt"),
        ("a", 9, True, "/x"),
        ("::1", 2, False, None),
    ]


def test_what_weakens_the_guarantee_is_said():
    def said(**keys):
        return " ".join(config(**keys).warnings())

    assert said(inbound=[{"topic": "a", "handler": "h"}]) == ""
    assert "qos 0 stores messages at most once" in said(inbound=[{"topic": "a", "handler": "h", "qos": 0}])
    assert "qos 2 is served as qos 1" in said(inbound=[{"topic": "a", "handler": "h", "qos": 2}])
    assert "is lost" in said(session_expiry=0, inbound=[{"topic": "a", "handler": "h"}])
    assert "unencrypted" in said(url="mqtt://far.away", username="u", password="p")
    assert "unencrypted" not in said(username="u", password="p")
    assert "anybody" in said(url="mqtts://a", tls={"verify": False})


def test_the_guarantee_is_that_of_the_weakest_entry():
    def given(*qualities, **keys):
        inbound = [{"topic": f"t{n}", "handler": "h", "qos": qos} for n, qos in enumerate(qualities)]
        return MqttConnector.guarantee_of(config(inbound=inbound, **keys))

    assert given() == given(1, 2) == "at-least-once"
    assert given(0) == given(1, 0) == given(1, session_expiry=0) == "at-most-once"


def test_each_instance_s_connector_has_a_session_of_its_own_that_stays():
    def client_id(instance, keys=""):
        text = f"gateway: {{name: {instance}}}\nconnectors: {{floor: {{type: mqtt, url: 'mqtt://a'{keys}}}}}"
        return parse_config(text).connectors["floor"].client_id

    assert client_id("one") == client_id("one") == "one:floor"
    assert client_id("two") == "two:floor"
    assert client_id("one", ", client_id: plant-7") == "plant-7"
