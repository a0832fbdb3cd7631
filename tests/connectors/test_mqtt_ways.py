"""Every way to reach an MQTT broker: websockets, TLS, certificates, several addresses, many open files."""

import asyncio
import os
import socket

import pytest

from gateway.errors import ConfigError, Disconnected
from gateway.message import Message
from gateway.testing.connectors import Recorder, nothing_left, running, until
from gateway.testing.harness import cancel
from tests.connectors.mqtt_tools import Script, connector

numbers = iter(range(1_000_000))


@pytest.fixture
def name():
    """A name for the connector and its topics that no other test has used."""
    return f"ways-{next(numbers)}"


async def round_trip(one, topic):
    # Mosquitto's websockets take a tenth of a second for each 4 KB.
    body = b"\x00" * (5_000 if one.config.addresses[0].path else 70_000)
    async with running(one) as inbox:
        await one.publish(Message(topic=topic, body=body, headers=(("a", b"1"),)))
        await until(lambda: inbox.stored)
    assert inbox.stored[0].body == body


@pytest.mark.parametrize("version", [5, "3.1.1"])
@pytest.mark.parametrize("way", ["websocket", "tls", "mtls", "wss"])
async def test_every_way_to_connect_carries_messages(mosquitto, certificates, name, way, version):
    scheme = {"websocket": "ws", "tls": "mqtts", "mtls": "mqtts", "wss": "wss"}[way]
    tls = {"ca": certificates["ca.pem"]} if scheme in ("mqtts", "wss") else None
    if way == "mtls":
        tls |= {"certificate": certificates["own.pem"], "key": certificates["own.key"]}
    url = f"{scheme}://127.0.0.1:{getattr(mosquitto, way)}{'/mqtt' if scheme[0] == 'w' else ''}"
    async with nothing_left():
        await round_trip(connector(0, name, name=name, url=url, tls=tls, version=version), name)


async def test_a_certificate_nobody_vouches_for_is_not_trusted_unless_told_so(mosquitto, name):
    url = f"mqtts://127.0.0.1:{mosquitto.tls}"
    with pytest.raises(ConfigError, match="cannot be trusted"):
        await connector(0, name, url=url).run(Recorder())
    await round_trip(connector(0, name, name=name, url=url, tls={"verify": False}), name)


async def test_a_broker_that_wants_a_certificate_gets_none(mosquitto, certificates, name):
    url, tls = f"mqtts://127.0.0.1:{mosquitto.mtls}", {"ca": certificates["ca.pem"]}
    with pytest.raises(Disconnected, match=r"CERTIFICATE_REQUIRED|hung up"):
        await asyncio.wait_for(connector(0, name, url=url, tls=tls).run(Recorder()), 5)


@pytest.mark.parametrize("scheme", ["mqtts", "ws", "wss"])
async def test_a_handshake_that_never_ends_is_broken_off(scheme, name):
    async def silent(peer):
        await peer.reader.read()

    async with nothing_left(), Script(silent, silent).running() as port:
        one = connector(0, name, url=f"{scheme}://127.0.0.1:{port}", connect_timeout=0.2)
        with pytest.raises(Disconnected, match="did not answer within"):
            await asyncio.wait_for(one.run(Recorder()), 3)
        life = asyncio.create_task(
            connector(0, name, url=f"{scheme}://127.0.0.1:{port}", connect_timeout=30).run(Recorder())
        )
        await asyncio.sleep(0.05)
        await cancel(life)


async def test_the_next_broker_is_taken_if_the_first_is_down(mosquitto, name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        down = taken.getsockname()[1]
        both = [f"mqtt://127.0.0.1:{down}", mosquitto.url]
        await round_trip(connector(0, name, name=name, url=None, urls=both), name)
        with pytest.raises(Disconnected, match="Connection refused"):
            await connector(down, name).run(Recorder())


async def test_a_socket_beyond_what_select_can_see_is_no_obstacle(mosquitto, name):
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        await round_trip(connector(mosquitto.port, name, name=name), name)
    finally:
        for each in many:
            os.close(each)


async def test_the_check_says_what_answered_and_disturbs_nobody(mosquitto, name):
    async with running(connector(mosquitto.port, name, name=name)):
        said = await connector(mosquitto.port, name, name=name, entry={"qos": 2}).check()
        assert said.startswith(f"127.0.0.1:{mosquitto.port} answers MQTT 5")
        assert "qos 2 is served as qos 1" in said
    with pytest.raises(Disconnected):
        await connector(1, name).check()
