"""Who gets in, and whom the connector trusts: ActiveMQ Classic with certificates and a password."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.errors import ConfigError, Disconnected
from gateway.message import Message
from gateway.testing.connectors import Recorder, running, until
from tests.brokers.activemq import ActiveMQ
from tests.conftest import missing
from tests.connectors.conftest import openssl
from tests.connectors.stomp_tools import connector, started

pytestmark = pytest.mark.broker

LOGIN = {"username": "gateway", "password": "only for: tests"}


@pytest.fixture(scope="module")
def folder(certificates):
    """The certificates as Java wants them, and a key behind a password."""
    folder = Path(certificates["ca.pem"]).parent
    openssl(folder, "rsa", "-aes256", "-in", "own.key", "-out", "locked.key", "-passout", "pass:hidden")
    packing = ("-inkey", "own.key", "-in", "own.pem", "-certfile", "ca.pem", "-passout", "pass:changeit")
    openssl(folder, "pkcs12", "-export", *packing, "-out", "keys.p12")
    trusting = ("-importcert", "-noprompt", "-alias", "ca", "-file", "ca.pem", "-keystore", "keys.p12")
    if shutil.which("keytool") is None:
        missing("Java's keytool is not installed (Debian: apt-get install openjdk-17-jdk-headless)")
    subprocess.run(["keytool", *trusting, "-storepass", "changeit"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def broker(folder):
    server = started(ActiveMQ, keys=folder / "keys.p12", password=LOGIN["password"])
    yield server
    server.remove()


@pytest.fixture
def own(folder):
    return {name: str(folder / file) for name, file in (("certificate", "own.pem"), ("key", "own.key"))}


@pytest.fixture
def ca(folder):
    return {"ca": str(folder / "ca.pem")}


def secured(broker, port=None, **keys):
    return connector(f"stomp+ssl://127.0.0.1:{port or broker.tls}", {"queue": "secured"}, **{**LOGIN, **keys})


async def test_messages_pass_over_tls(broker, ca):
    made = secured(broker, tls=ca)
    async with running(made) as inbox:
        await made.publish(Message(topic="secured", body=b"\x00" * 300_000))
        await until(lambda: inbox.stored)
    assert inbox.stored[0].body == b"\x00" * 300_000
    assert "ActiveMQ/6" in await secured(broker, tls=ca).check()


async def test_a_certificate_nobody_vouches_for_is_not_trusted(broker):
    with pytest.raises(Disconnected, match="certificate verify failed"):
        await secured(broker).run(Recorder())


async def test_a_certificate_for_another_name_is_not_trusted(broker, ca):
    with pytest.raises(Disconnected, match="match"):
        await secured(broker, tls={**ca, "server_name": "broker.example"}).run(Recorder())


async def test_verification_can_be_left_out_and_is_warned_of(broker):
    made = secured(broker, tls={"verify": False})
    async with running(made):
        assert "verify is false" in made.config.warnings()[0]


async def test_a_broker_that_wants_a_certificate_gets_it(broker, ca, own, folder):
    with pytest.raises(Disconnected):
        await secured(broker, broker.mtls, tls=ca).run(Recorder())
    async with running(secured(broker, broker.mtls, tls={**ca, **own})):
        pass
    locked = {**own, "key": str(folder / "locked.key"), "key_password": "hidden"}
    async with running(secured(broker, broker.mtls, tls={**ca, **locked})):
        pass


async def test_files_that_are_missing_or_locked_are_a_mistake(broker, own, folder):
    locked = {**own, "key": str(folder / "locked.key"), "key_password": "wrong"}
    for tls in ({"ca": "/nowhere.pem"}, {**own, "key": "/nowhere.key"}, locked, {"ca": own["key"]}):
        with pytest.raises(ConfigError, match="'tls' cannot be used"):
            await secured(broker, tls=tls).run(Recorder())


@pytest.mark.parametrize("login", [LOGIN | {"password": "guessed"}, {"username": None, "password": None}])
async def test_without_the_password_nobody_gets_in_and_it_is_told(broker, login):
    made = connector(broker.url, {"queue": "secured"}, **login)
    told = set()
    for _ in range(5):  # the broker may close the connection before its answer has come
        with pytest.raises(Disconnected) as refused:
            await made.run(Recorder())
        told.add(str(refused.value).partition("User name")[:2])
    assert (f"127.0.0.1:{broker.port} answers: ", "User name") in told
    with pytest.raises(Disconnected):
        await made.check()


async def test_no_password_is_shown(broker, caplog):
    caplog.set_level("DEBUG")
    made = connector(broker.url, {"queue": "secured"}, **LOGIN)
    async with running(made):
        pass
    assert LOGIN["password"] not in f"{made.config!r} {made.config} {caplog.text}"
