import ssl

import aiohttp
import pytest

from connectors.http import HttpConnector
from gateway.errors import ConfigError, DeliveryError
from gateway.message import Message
from gateway.testing.connectors import Recorder, running
from tests.connectors.http_tools import config, entry, sending


@pytest.fixture
def tls(certificates):
    return {"certificate": certificates["own.pem"], "key": certificates["own.key"]}


def listening(tls):
    return HttpConnector(config(listen="127.0.0.1:0", inbound=[entry()], tls=tls), name="in")


async def test_messages_pass_over_tls(tls, certificates):
    taking = listening(tls)
    async with running(taking) as inbox:
        url = f"https://127.0.0.1:{taking.port}"
        async with sending(url=url, tls={"ca": certificates["ca.pem"]}) as connector:
            await connector.publish(Message(topic="messages/a", body=b"x"))
    assert inbox.stored[0].body == b"x"


async def test_a_certificate_nobody_vouches_for_is_not_trusted(tls):
    taking = listening(tls)
    async with running(taking) as inbox, sending(url=f"https://127.0.0.1:{taking.port}") as connector:
        with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
            await connector.publish(Message(topic="messages/a"))
    assert inbox.stored == []


async def test_a_certificate_for_another_name_is_not_trusted(tls, certificates):
    taking = listening(tls)
    async with running(taking):
        url = f"https://localhost:{taking.port}"
        async with sending(url=url, tls={"ca": certificates["ca.pem"]}) as connector:
            with pytest.raises(DeliveryError):
                await connector.publish(Message(topic="messages/a"))


async def test_with_a_ca_only_clients_with_a_certificate_get_in(tls, certificates):
    taking = listening(tls | {"ca": certificates["ca.pem"]})
    async with running(taking) as inbox:
        url = f"https://127.0.0.1:{taking.port}"
        async with sending(url=url, tls={"ca": certificates["ca.pem"]}) as stranger:
            with pytest.raises(DeliveryError):
                await stranger.publish(Message(topic="messages/a", body=b"stranger"))
        async with sending(url=url, tls=tls | {"ca": certificates["ca.pem"]}) as known:
            await known.publish(Message(topic="messages/a", body=b"known"))
    assert [message.body for message in inbox.stored] == [b"known"]


async def test_a_client_of_tls_1_2_is_served(tls, certificates):
    taking = listening(tls)
    context = ssl.create_default_context(cafile=certificates["ca.pem"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(taking), aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{taking.port}/messages/a"
        async with session.post(url, ssl=context) as answer:
            assert answer.status == 202


@pytest.mark.parametrize("broken", [{"certificate": "/no/such/file"}, {"key": "/no/such/file"}, {"key": None}])
async def test_a_file_that_cannot_be_used_is_a_mistake_a_person_must_see(tls, broken):
    with pytest.raises(ConfigError, match="'tls'"):
        await listening(tls | broken).run(Recorder())
    with pytest.raises(ConfigError, match="'tls'"):
        await listening(tls | broken).check()
