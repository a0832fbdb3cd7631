import asyncio
from typing import ClassVar

import aiohttp
import pytest
from pydantic import ValidationError

from connectors.http import HttpConnector
from gateway.errors import ConfigError, Disconnected
from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance, Harness, Recorder, nothing_left, running, until
from tests.connectors.http_tools import Receiver, config, entry, serving
from tests.services import free_port


class HttpHarness(Harness):
    """The sender is the broker here: it repeats with the same key until it is answered with 202."""

    minimal: ClassVar = {"type": "http", "listen": "127.0.0.1:0"}
    topic = "messages/conformance"

    def __init__(self, receiver: Receiver, session: aiohttp.ClientSession) -> None:
        self.receiver, self.session, self.done = receiver, session, 0
        self.ports = [free_port(), free_port()]

    def connector(self, instance=0):
        keys = {"listen": f"127.0.0.1:{self.ports[instance]}", "url": self.receiver.url, "inbound": [entry()]}
        return HttpConnector(config(**keys), name=f"web{instance}")

    async def send(self, message, instance=0):
        headers = [(name, value.decode()) for name, value in message.headers]
        if message.dedupe_id is not None:
            headers.append(("Idempotency-Key", message.dedupe_id))
        url = f"http://127.0.0.1:{self.ports[instance]}/{message.topic}"
        while not await self._once(url, message.body, headers):  # noqa: ASYNC110 - as a real client repeats
            await asyncio.sleep(0.01)

    async def _once(self, url, body, headers):
        try:
            async with self.session.post(url, data=body, headers=headers) as answer:
                accepted = answer.status == 202
        except aiohttp.ClientError:
            return False
        self.done += accepted
        return accepted

    async def acknowledged(self):
        return self.done

    async def delivered(self):
        return [
            Message(topic=path, body=body, message_id=headers.get("Idempotency-Key"))
            for _, path, headers, body in self.receiver.requests
        ]

    async def stop_broker(self):
        raise NotImplementedError

    async def start_broker(self):
        raise NotImplementedError

    def refusable(self):
        return Message(topic="../elsewhere", body=b"x")


class TestHttp(ConnectorConformance):
    carries_key = False  # HTTP has no ordering key
    has_broker = False  # nothing stands between the client and the listener

    @pytest.fixture
    async def harness(self):
        async with Receiver().running() as receiver, aiohttp.ClientSession() as session:
            yield HttpHarness(receiver, session)


async def test_an_address_in_use_is_a_mistake_a_person_must_see():
    async with serving() as client:
        twin = HttpConnector(config(listen=f"127.0.0.1:{client.port}", inbound=[entry()]), name="twin")
        async with nothing_left():
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{client.port}: .*in use"):
                await twin.run(Recorder())


async def test_the_check_connects_but_sends_nothing():
    async with Receiver().running() as receiver:
        assert "answers" in await HttpConnector(config(url=receiver.url), name="out").check()
        assert receiver.requests == []
        gone = receiver.url
    with pytest.raises(Disconnected, match="cannot be reached"):
        await HttpConnector(config(url=gone), name="out").check()


@pytest.mark.parametrize(("stored_after", "status", "count"), [(0.05, 202, 1), (60, 503, 0)])
async def test_a_stop_answers_what_is_stored_in_time_and_refuses_the_rest(stored_after, status, count):
    inbox = Recorder()
    inbox.gate.clear()
    connector = HttpConnector(config(listen="127.0.0.1:0", inbound=[entry()]), name="web")
    async with aiohttp.ClientSession() as session:
        async with running(connector, inbox):
            posting = asyncio.create_task(_status(session, f"http://127.0.0.1:{connector.port}/messages/a"))
            await until(lambda: inbox.offered)
            timer = asyncio.get_running_loop().call_later(stored_after, inbox.gate.set)
        assert await posting == status
        timer.cancel()
    assert len(inbox.stored) == count


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "'listen' or 'url' is needed"),
        ({"url": "http://h", "inbound": [entry()]}, "'listen' is needed"),
        ({"listen": "0.0.0.0:80", "inbound": [entry()]}, "'auth' is required at /messages/{topic}"),
        ({"listen": ":80", "inbound": [entry()]}, "'auth' is required"),
        ({"listen": "gateway.example:80", "inbound": [entry()]}, "'auth' is required"),
        ({"listen": "127.0.0.1", "inbound": []}, "host:port"),
        ({"listen": "127.0.0.1:99999", "inbound": []}, "host:port"),
        ({"listen": "::1:80", "inbound": []}, "host:port"),
        ({"listen": "127.0.0.1:0", "inbound": [entry(), entry()]}, "there twice"),
        ({"listen": "127.0.0.1:0", "inbound": [entry("/a/{x}"), entry("/a/{y}")]}, "same paths"),
        ({"listen": "127.0.0.1:0", "inbound": [entry("a")]}, "starts with '/'"),
        ({"listen": "127.0.0.1:0", "inbound": [entry("/a-{x}")]}, "whole segment"),
        ({"listen": "127.0.0.1:0", "inbound": [entry("/{x}/{x}")]}, "different names"),
        ({"listen": "127.0.0.1:0", "tls": {"ca": "x"}}, "'tls.certificate' is needed"),
        ({"url": "ftp://h"}, "http:// or https://"),
        ({"url": "http://user:pw@h"}, "belong under 'auth'"),
        ({"listen": "127.0.0.1:0", "inbound": [entry(auth={"type": "hmac", "secret": "short"})]}, "at least 16 bytes"),
        ({"listen": "127.0.0.1:0", "inbound": [entry(auth={"type": "hmac", "secret": "whsec_!"})]}, "base64"),
        ({"listen": "127.0.0.1:0", "inbound": [entry(auth={"type": "bearer", "token": []})]}, "at least 1 item"),
        ({"listen": "127.0.0.1:0", "inbound": [entry(auth={"type": "oauth"})]}, "does not match any of the expected"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(keys, text):
    with pytest.raises(ValidationError) as caught:
        config(**keys)
    assert text in str(caught.value)


def test_no_auth_off_loopback_must_be_written_out_and_is_warned_of():
    open_to_all = config(listen="0.0.0.0:80", inbound=[entry("/a", auth={"type": "none"})])
    assert open_to_all.warnings() == ["/a on 0.0.0.0:80 takes messages from anybody (auth: none)"]
    assert config(listen="127.0.0.1:0", inbound=[entry()]).warnings() == []
    assert config(listen="[::1]:0", inbound=[entry()]).warnings() == []
    assert config(listen="localhost:0", inbound=[entry()]).warnings() == []


def test_no_secret_is_shown():
    secret = "a-secret-nobody-may-see"
    auths = [
        {"type": "basic", "username": "u", "password": secret},
        {"type": "bearer", "token": [secret]},
        {"type": "api_key", "token": secret},
        {"type": "hmac", "secret": secret},
    ]
    entries = [entry(f"/{n}", auth=auth) for n, auth in enumerate(auths)]
    shown = config(listen="127.0.0.1:0", url="http://h", headers={"X-Key": secret}, auth=auths[0], inbound=entries)
    assert secret not in repr(shown) + str(shown) + shown.model_dump_json()


async def _status(session, url):
    async with session.post(url, data=b"x") as answer:
        return answer.status
