"""MQTT against brokers that die, freeze, refuse and lie."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import pytest

from connectors.mqtt import MqttConnector
from connectors.mqtt.client import Client
from gateway.errors import ConfigError, DeliveryError, Disconnected
from gateway.message import Message
from gateway.testing.connectors import Recorder, running, until
from gateway.testing.harness import cancel
from tests.brokers.mosquitto import PASSWORD
from tests.connectors.mqtt_tools import Script, Stranger, Tap, connector, packet
from tests.faults import FaultProxy

numbers = iter(range(1_000_000))


@pytest.fixture
def name():
    """A name for the connector and its topics that no other test has used."""
    return f"faults-{next(numbers)}"


@asynccontextmanager
async def stranger(port):
    who = await Stranger(port, f"stranger-{next(numbers)}").connect()
    try:
        yield who
    finally:
        await who.close()


def bodies(inbox):
    return [message.body for message in inbox.stored]


# -- the broker dies, freezes, or loses what it was told ---------------------------------------------------------------


async def test_nothing_is_lost_when_the_broker_is_killed(mosquitto, name):
    inbox = Recorder()
    inbox.gate.clear()
    life = asyncio.create_task(connector(mosquitto.port, name, name=name).run(inbox))
    await until(lambda: inbox.readies)
    async with stranger(mosquitto.port) as who:
        for n in range(50):
            await who.publish(name, b"%d" % n)
        await until(lambda: inbox.offered)
        mosquitto.save()
        mosquitto.kill()
    with pytest.raises(Disconnected):
        await asyncio.wait_for(life, 15)
    mosquitto.start()
    inbox.gate.set()
    async with running(connector(mosquitto.port, name, name=name), inbox):
        await until(lambda: len(inbox.stored) == 50)
    assert bodies(inbox) == [b"%d" % n for n in range(50)]


async def test_a_frozen_broker_is_given_up_within_the_keepalive(mosquitto, name):
    life = asyncio.create_task(connector(mosquitto.port, name, name=name, keepalive=1).run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    os.kill(mosquitto.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Disconnected, match="nothing was heard"):
            await asyncio.wait_for(life, 3)
        with pytest.raises(Disconnected, match="did not answer within"):
            await asyncio.wait_for(connector(mosquitto.port, name, connect_timeout=0.3).run(Recorder()), 3)
    finally:
        os.kill(mosquitto.pid, signal.SIGCONT)


async def test_a_quiet_connection_is_kept(mosquitto, name):
    async with running(connector(mosquitto.port, name, name=name, keepalive=1)):
        await asyncio.sleep(2.2)


async def test_a_peer_that_is_gone_without_a_word_is_noticed_while_messages_still_come(mosquitto, name):
    async with FaultProxy("127.0.0.1", mosquitto.port) as proxy, stranger(mosquitto.port) as who:
        life = asyncio.create_task(connector(proxy.port, name, name=name, keepalive=1).run(inbox := Recorder()))
        await until(lambda: inbox.readies)
        proxy.stall(["up"])
        for _ in range(3):
            await who.publish(name, b"x")
        with pytest.raises(Disconnected, match="nothing was heard"):
            await asyncio.wait_for(life, 5)


async def test_what_was_not_acknowledged_is_repeated_to_the_next_life_and_marked(mosquitto, name):
    async with Tap(mosquitto.port) as tap, stranger(mosquitto.port) as who:
        inbox = Recorder()
        async with running(connector(tap.port, name, name=name), inbox):
            await who.publish(name, b"heard")
            await until(lambda: len(tap.acknowledged) == 1)
            tap.deaf = True
            for body in (b"a", b"b"):
                await who.publish(name, body)
            await until(lambda: len(inbox.stored) == 3)
        tap.deaf = False
        again = Recorder()
        again.stored = list(inbox.stored)
        async with running(connector(tap.port, name, name=name), again):
            await until(lambda: len(tap.acknowledged) == 3)
        assert [repeated for _, repeated in tap.delivered] == [False, False, False, True, True]
        # What the inbox would count and forget: it has a position that is stored already.
        assert [m.position.next_offset for m in again.stored[3:]] == [m.position.next_offset for m in inbox.stored[1:]]


async def test_acknowledgements_are_sent_in_the_order_of_receipt(mosquitto, name):
    class Uneven(Recorder):
        async def receive(self, messages, entry):
            await asyncio.sleep(0.002 * (int(messages[0].body) % 3))
            return await super().receive(messages, entry)

    async with Tap(mosquitto.port) as tap, stranger(mosquitto.port) as who:
        async with running(connector(tap.port, name, name=name, receive_maximum=20), Uneven()):
            await asyncio.gather(*(who.publish(name, b"%d" % n) for n in range(300)))
            await until(lambda: len(tap.acknowledged) == 300)
        assert tap.acknowledged == [packet_id for packet_id, _ in tap.delivered]


async def test_an_acknowledgement_never_reaches_a_later_connection(mosquitto, name):
    config = connector(mosquitto.port, name).config
    client = Client(config, config.addresses[0], session=name, keep=True)
    await client.connect()
    await client.subscribe(config.inbound)
    async with stranger(mosquitto.port) as who:
        await who.publish(name, b"x")
        held = await client.take(10, 1000)
    client.close()
    with pytest.raises(Disconnected):
        client.settle(held)


async def test_a_broker_that_sends_more_than_it_may_is_not_read(name):
    """Mosquitto 2.0.11 does, after the first acknowledgement; and MQTT 3.1.1 has no such limit."""
    sent = asyncio.Event()

    async def flood(peer):
        await peer.welcome()
        for n in range(500):
            peer.send(b"%d" % n + b"x" * 50_000, n + 1)
        sent.set()
        for n in range(500):
            assert await peer.acknowledged() == n + 1
        await peer.reader.read()

    inbox = Recorder()
    inbox.gate.clear()
    client = None

    class Watched(MqttConnector):
        async def _connect(self, session, *, keep):
            nonlocal client
            client = await super()._connect(session, keep=keep)
            return client

    async with Script(flood).running() as port:
        config = connector(port, receive_maximum=20, keepalive=1).config
        async with asyncio.TaskGroup() as group:
            life = group.create_task(Watched(config, name=name).run(inbox))
            await until(lambda: sent.is_set() and client is not None and client._held > 20)
            await asyncio.sleep(1.5)  # longer than the keepalive: who does not read cannot hear
            assert client._held < 30
            assert not life.done()
            inbox.gate.set()
            await until(lambda: len(inbox.stored) == 500)
            life.cancel()


async def test_bytes_are_bounded_too(mosquitto, name):
    inbox = Recorder()
    inbox.gate.clear()
    async with running(connector(mosquitto.port, name, name=name, max_pending_bytes=300_000), inbox):
        async with stranger(mosquitto.port) as who:
            for _ in range(30):
                await who.publish(name, b"x" * 100_000)
        await until(lambda: inbox.offered)
        assert len(inbox.offered) <= 4
        inbox.gate.set()
        await until(lambda: len(inbox.stored) == 30)


async def test_a_broker_that_says_why_it_hangs_up_is_quoted():
    async def life(peer):
        await peer.welcome()
        peer.writer.write(b"\xe0\x01\x8e")
        await peer.reader.read()

    async with Script(life).running() as port:
        with pytest.raises(Disconnected, match="closed the connection: Session taken over"):
            await asyncio.wait_for(connector(port).run(Recorder()), 15)


# -- the broker says no ------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_a_mistake_and_a_right_one_is_none(mosquitto, name):
    login = {"username": "gateway", "password": PASSWORD}
    async with running(connector(mosquitto.login, name, name=name, **login)):
        pass
    for version in (5, "3.1.1"):
        with pytest.raises(ConfigError, match=r"refuses the connection: (Not authorized|Bad user)") as caught:
            await connector(mosquitto.login, name, version=version, **login | {"password": "wr0ng"}).run(Recorder())
        assert "wr0ng" not in str(caught.value)


async def test_a_subscription_that_is_refused_or_weakened_is_a_mistake(name):
    def answering(reason):
        async def life(peer):
            peer.writer.write(packet(0x20, b"\x00\x00\x00"))
            await peer.reader.readuntil(b"t\x11")
            peer.writer.write(packet(0x90, b"\x00\x01\x00" + bytes([reason])))
            await peer.reader.read()

        return life

    async with Script(answering(0x87), answering(0)).running() as port:
        with pytest.raises(ConfigError, match="refuses the subscription to t: Not authorized"):
            await connector(port).run(Recorder())
        with pytest.raises(ConfigError, match="grants only QoS 0 to t"):
            await connector(port).run(Recorder())


async def test_what_the_broker_answers_decides_whether_it_is_tried_again():
    async def life(peer):
        await peer.welcome(subscribes=False)
        for reason in (0x00, 0x10, 0x97, 0x80, 0x87, 0x90):
            packet_id, _ = await peer.published()
            peer.confirm(packet_id, reason)
        await peer.reader.read()

    async def outcomes(sender):
        for _ in range(6):
            try:
                yield await sender.publish(Message(topic="t"))
            except DeliveryError as error:
                yield error.permanent

    async with Script(life).running() as port:
        sender = connector(port, None)
        async with running(sender):
            assert [outcome async for outcome in outcomes(sender)] == [
                None, "No matching subscribers", False, False, True, True,
            ]  # fmt: skip


async def test_a_message_that_is_not_confirmed_has_failed_in_time_and_no_others_are_sent_beyond_the_window():
    seen = []

    async def life(peer):
        await peer.welcome(subscribes=False, properties=b"\x21\x00\x02")  # Receive Maximum 2
        seen.append(await peer.published())
        seen.append(await peer.published())
        await peer.reader.read(1)
        seen.append(None)

    async with Script(life).running() as port:
        sender = connector(port, None, publish_timeout=0.2, keepalive=30)
        async with running(sender):
            results = await asyncio.gather(
                *(sender.publish(Message(topic="t")) for _ in range(5)), return_exceptions=True
            )
    assert [str(result).partition("did not confirm")[1] for result in results] == ["did not confirm"] * 5
    assert not any(result.permanent for result in results)
    assert len(seen) <= 3


async def test_a_lost_connection_fails_what_was_not_confirmed():
    async def life(peer):
        await peer.welcome(subscribes=False)
        await peer.published()

    async with Script(life).running() as port:
        sender = connector(port, None)
        task = asyncio.create_task(sender.run(inbox := Recorder()))
        await until(lambda: inbox.readies)
        results = await asyncio.gather(*(sender.publish(Message(topic="t")) for _ in range(3)), return_exceptions=True)
        await cancel(task)
    assert [type(result) for result in results] == [Disconnected] * 3


async def test_a_topic_the_broker_forbids_fails_for_good(mosquitto, name):
    sender = connector(mosquitto.port, None, name=name)
    task = asyncio.create_task(sender.run(inbox := Recorder()))
    await until(lambda: inbox.readies)
    with pytest.raises(DeliveryError, match="Not authorized") as caught:
        await sender.publish(Message(topic="refused/x"))
    assert caught.value.permanent
    await cancel(task)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\x00", "a\ud800", "x" * 65_536])
async def test_what_is_no_topic_fails_for_good_and_alone(mosquitto, name, topic):
    sender = connector(mosquitto.port, None, name=name)
    async with running(sender):
        with pytest.raises(DeliveryError) as caught:
            await sender.publish(Message(topic=topic))
        assert caught.value.permanent
        await sender.publish(Message(topic="fine"))


async def test_a_message_larger_than_the_broker_takes_is_not_sent():
    async def life(peer):
        await peer.welcome(subscribes=False, properties=b"\x27\x00\x00\x04\x00")  # Maximum Packet Size 1024
        assert await peer.reader.read() == b"\xe0\x00"

    async with Script(life).running() as port:
        sender = connector(port, None)
        async with running(sender):
            with pytest.raises(DeliveryError, match="larger than the broker takes") as caught:
                await sender.publish(Message(topic="t", body=b"x" * 1024))
    assert caught.value.permanent


# -- the broker talks nonsense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 100,
        packet(0x32, b"\xff\xff"),
        packet(0x32, b"\x00\x01t\x00\x01\x7fx"),
        packet(0x30, b""),
        b"\x30\xff\xff\xff\xff\x01",
    ],
)
async def test_nonsense_ends_the_life_and_nothing_else(nonsense):
    async def life(peer):
        await peer.welcome()
        peer.writer.write(nonsense)
        await peer.reader.read()

    async with Script(life).running() as port:
        with pytest.raises(Disconnected):
            await asyncio.wait_for(connector(port, keepalive=1).run(Recorder()), 5)


async def test_nonsense_before_the_welcome_ends_the_life():
    async def life(peer):
        peer.writer.write(b"SSH-2.0-OpenSSH\r\n")
        await peer.reader.read()

    async with Script(life).running() as port:
        with pytest.raises(Disconnected):
            await asyncio.wait_for(connector(port, connect_timeout=1).run(Recorder()), 5)


async def test_a_topic_that_is_no_text_cannot_stop_the_rest():
    async def life(peer):
        await peer.welcome()
        peer.send(b"x", 1, topic=b"a\xff\xfe")
        peer.send(b"y", 2, topic="a")
        assert [await peer.acknowledged() for _ in "12"] == [1, 2]
        await peer.reader.read()

    async with Script(life).running() as port, running(connector(port, "#")) as inbox:
        await until(lambda: len(inbox.stored) == 2)
    assert [message.topic for message in inbox.stored] == ["a\ufffd\ufffd", "a"]


async def test_what_fits_no_entry_is_acknowledged_so_that_it_holds_up_nobody():
    async def life(peer):
        await peer.welcome()
        peer.send(b"x", 1, topic="of/an/older/configuration")
        peer.send(b"y", 2)
        assert [await peer.acknowledged() for _ in "12"] == [1, 2]
        await peer.reader.read()

    async with Script(life).running() as port, running(connector(port)) as inbox:
        await until(lambda: inbox.stored)
    assert bodies(inbox) == [b"y"]
