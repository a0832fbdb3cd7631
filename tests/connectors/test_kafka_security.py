"""TLS and logins against a real broker: what lets in, and what a person is told where it does not."""

import asyncio
import base64
import json
import ssl
import subprocess
import time

import pytest

from gateway.errors import ConfigError, Disconnected
from gateway.message import Message
from gateway.testing.harness import Recorder, nothing_left, running, until
from tests.brokers.kafka import Kafka
from tests.conftest import missing
from tests.connectors.kafka_tools import Stranger, connector
from tests.services import ServiceMissing

LOGIN = {"username": "gateway", "password": "a-password-nobody-may-see"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=broker",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "ca.pem"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (folder / "broker.pem").write_text((folder / "key.pem").read_text() + (folder / "ca.pem").read_text())
    return folder


@pytest.fixture(scope="module")
def secured(certificates):
    try:
        broker = Kafka(users={LOGIN["username"]: LOGIN["password"]}, pem=certificates / "broker.pem")
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield broker.start()
    finally:
        broker.remove()


@pytest.fixture
async def stranger(secured):
    async with Stranger.at(secured.url) as stranger:
        yield stranger


def unsecured_token(lifetime: int = 600) -> str:
    """Return a token that Kafka's own test validator takes: signed by nobody."""
    now = int(time.time())
    parts = {"alg": "none"}, {"sub": "gateway", "iat": now - 1000, "exp": now + lifetime}
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


@pytest.fixture(params=["SSL", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "token", "token_file", "SASL_SSL"])
def keys(request, secured, certificates, tmp_path):
    tls = {"tls": {"ca": str(certificates / "ca.pem")}}
    (tmp_path / "token").write_text(unsecured_token() + "\n")
    listener, keys = {
        "SSL": ("SSL", tls),
        "SASL_SSL": ("SASL_SSL", {**tls, **LOGIN, "mechanism": "SCRAM-SHA-512"}),
        "token": ("SASL_PLAINTEXT", {"token": unsecured_token()}),
        "token_file": ("SASL_PLAINTEXT", {"token_file": str(tmp_path / "token")}),
    }.get(request.param, ("SASL_PLAINTEXT", {**LOGIN, "mechanism": request.param}))
    return {"address": secured.address(listener), **keys}


async def test_each_way_in_carries_messages_both_ways(stranger, keys):
    member = connector(**keys, inbound=[stranger.entry()])
    async with running(member) as inbox:
        await member.publish(Message(topic=stranger.topic, body=b"hello"))
        await until(lambda: inbox.stored)
    assert "answers" in await member.check()


@pytest.mark.parametrize(
    ("listener", "keys", "text"),
    [
        ("SASL_PLAINTEXT", {**LOGIN, "password": "wrong"}, "Invalid username or password"),
        ("SASL_PLAINTEXT", {**LOGIN, "password": "wrong", "mechanism": "SCRAM-SHA-256"}, "invalid credentials"),
        ("SASL_PLAINTEXT", {"token": "not-a-token"}, "does not accept the token$"),
        ("SASL_PLAINTEXT", {"token": unsecured_token(-60)}, "the token, which expired [0-9]+ seconds ago"),
        ("SASL_PLAINTEXT", {"token_file": "/nowhere/token"}, "token_file /nowhere/token cannot be read"),
        ("SSL", {"tls": {}}, "certificate is not trusted"),
        ("SASL_SSL", {"tls": {}, **LOGIN}, "certificate is not trusted"),
        ("SSL", {"tls": {"ca": "/nowhere/ca.pem"}}, "certificate or key cannot be used"),
    ],
)
async def test_a_refusal_is_told_as_what_it_is(secured, listener, keys, text):
    member = connector(secured.address(listener), **keys)
    await asyncio.to_thread(int)  # the loop's own thread, which the client library computes passwords in
    for attempt in (lambda: member.run(Recorder()), member.check):
        async with nothing_left():
            with pytest.raises(ConfigError, match=text) as refused:
                await attempt()
        assert LOGIN["password"] not in str(refused.value)


async def test_a_broker_that_speaks_something_else_is_named(secured):
    for listener, keys in (("SSL", {}), ("PLAINTEXT", {"tls": {}}), ("PLAINTEXT", LOGIN)):
        with pytest.raises((Disconnected, ConfigError), match=rf"127.0.0.1:{secured.ports[listener]}"):
            await connector(secured.address(listener), request_timeout=2, **keys).check()


async def test_a_certificate_for_another_host_is_refused_unless_told_otherwise(secured, certificates):
    address = f"localhost:{secured.ports['SSL']}"
    with pytest.raises(ConfigError, match="not valid for 'localhost'"):
        await connector(address, tls={"ca": str(certificates / "ca.pem")}).check()
    assert "answers" in await connector(address, tls={"verify": False}).check()
    assert ssl.create_default_context().check_hostname
