from pathlib import Path

import pytest

from gateway.errors import ConfigError, Disconnected
from gateway.message import Message
from gateway.testing.harness import Recorder, running, until
from tests.connectors.signalr_tools import connector


@pytest.fixture
def hub_of(certificates, own_hub):
    """Make a hub with these of the certificates; it runs."""
    return lambda *names: own_hub(tls=tuple(Path(certificates[name]) for name in names))


async def test_events_and_invocations_pass_over_tls(hub_of, certificates):
    hub = hub_of("own.pem", "own.key")
    async with running(made := connector(hub.url, tls={"ca": certificates["ca.pem"]})) as inbox:
        await hub.control("push")
        assert await made.publish(Message(topic="echo", body=b"1")) == "1"
        await until(lambda: inbox.stored)


async def test_a_certificate_nobody_vouches_for_is_not_trusted(hub_of):
    hub = hub_of("own.pem", "own.key")
    for skip in (False, True):
        with pytest.raises(Disconnected, match=r"(?i)certificate.verify.failed"):
            await connector(hub.url, skip_negotiation=skip).run(Recorder())


async def test_a_certificate_for_another_name_is_not_trusted(hub_of, certificates):
    hub = hub_of("own.pem", "own.key")
    url = hub.url.replace("127.0.0.1", "localhost")
    with pytest.raises(Disconnected, match=r"(?i)hostname mismatch|not valid for .localhost."):
        await connector(url, tls={"ca": certificates["ca.pem"]}).run(Recorder())


async def test_a_hub_that_asks_for_a_certificate_gets_it(hub_of, certificates):
    hub = hub_of("own.pem", "own.key", "ca.pem")
    trust = {"ca": certificates["ca.pem"]}
    with pytest.raises(Disconnected):
        await connector(hub.url, tls=trust).run(Recorder())
    own = {"certificate": certificates["own.pem"], "key": certificates["own.key"]}
    assert "answers" in await connector(hub.url, tls=trust | own).check()


async def test_a_file_that_cannot_be_used_is_a_mistake_in_the_configuration():
    with pytest.raises(ConfigError, match="under 'tls'"):
        await connector("https://127.0.0.1:1/hub", tls={"ca": "/no/such/file"}).run(Recorder())
