import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from yarl import URL

from connectors.http import HttpConnector, outgoing
from gateway.errors import DeliveryError
from gateway.message import Message
from gateway.testing.connectors import running
from gateway.web.caller import MAX_ANSWER, retry_after
from gateway.web.egress import is_public
from tests.connectors.http_tools import Receiver, config, sending

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def message(topic="t", **keys):
    return Message(topic=topic, body=b"\x00\xff", message_id="job-1", **keys)


async def refused(connector, sent):
    with pytest.raises(DeliveryError) as caught:
        await connector.publish(sent)
    return caught.value


async def test_a_message_is_one_request_and_the_answer_comes_back():
    async with Receiver().running() as receiver, sending(url=receiver.url + "/base?v=1", method="PUT") as connector:
        sent = message(
            "a b/ü", content_type="text/x", headers=(("X-Trace", b"1"), ("x-trace", b"2"), ("Host", b"evil"))
        )
        assert await connector.publish(sent) == "taken"
    ((method, path, headers, body),) = receiver.requests
    assert (method, path, body) == ("PUT", "/base/a%20b/%C3%BC?v=1", b"\x00\xff")
    assert (headers["Idempotency-Key"], headers["Content-Type"]) == ("job-1", "text/x")
    assert headers.getall("X-Trace") == ["1", "2"]
    assert headers["Host"].startswith("127.0.0.1")


@pytest.mark.parametrize(
    ("status", "permanent"),
    [(s, False) for s in (408, 425, 429, 500, 502, 503, 504, 599)]
    + [(s, True) for s in (300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 409, 410, 413, 422)],
)
async def test_the_status_says_whether_to_try_again(status, permanent):
    def answer():
        return web.Response(status=status, text="why", headers={"Retry-After": "7", "Location": "/elsewhere"})

    async with Receiver(answer).running() as receiver, sending(url=receiver.url) as connector:
        error = await refused(connector, message())
    assert (error.permanent, error.retry_after) == (permanent, None if permanent else 7)
    assert str(status) in str(error)
    assert error.response == ("" if status == 304 else "why")
    assert len(receiver.requests) == 1  # redirects are not followed


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        (" 12 ", 12),
        ("999999999999999999999", 86_400),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
        ((NOW + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 90),
        ((NOW - timedelta(days=1)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry_after(value, NOW) == seconds


async def test_a_long_answer_is_capped():
    def answer():
        return web.Response(text="x" * 1_000_000)

    async with Receiver(answer).running() as receiver, sending(url=receiver.url) as connector:
        assert await connector.publish(message()) == "x" * MAX_ANSWER
        assert await connector.publish(message()) == "x" * MAX_ANSWER


async def test_a_receiver_that_does_not_answer_is_not_waited_for():
    async with (
        Receiver(hold=asyncio.Event()).running() as receiver,
        sending(url=receiver.url, timeout=0.1) as connector,
    ):
        error = await refused(connector, message())
        receiver.hold.set()
    assert not error.permanent
    assert "in time" in str(error)


async def test_a_receiver_that_is_away_is_tried_later_and_used_once_it_is_back():
    receiver = Receiver()
    async with receiver.running():
        port = receiver.port
    async with sending(url=f"http://127.0.0.1:{port}") as connector:
        assert not (await refused(connector, message())).permanent
        async with receiver.running(port):
            assert await connector.publish(message()) == "taken"
        assert not (await refused(connector, message())).permanent
        async with receiver.running(port):  # its kept-alive connection is gone by now
            assert await connector.publish(message()) == "taken"


async def test_a_kept_alive_connection_that_the_receiver_gave_up_costs_no_attempt():
    seen = []

    async def one_answer_per_connection(reader, writer):
        await reader.readuntil(b"\x00\xff")
        seen.append(b"answered")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntaken")
        await reader.readuntil(b"\x00\xff")
        seen.append(b"given up")
        writer.close()

    server = await asyncio.start_server(one_answer_per_connection, "127.0.0.1", 0)
    async with server, sending(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as connector:
        assert await connector.publish(message()) == "taken"
        assert await connector.publish(message()) == "taken"
    assert seen == [b"answered", b"given up", b"answered"]


async def test_an_answer_that_is_no_http_is_tried_later():
    async def rubbish(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"rubbish\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(rubbish, "127.0.0.1", 0)
    async with server, sending(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as connector:
        assert not (await refused(connector, message())).permanent


async def test_a_request_of_no_more_use_is_ended_by_cancelling_it():
    async with Receiver(hold=asyncio.Event()).running() as receiver, sending(url=receiver.url) as connector:
        publishing = asyncio.create_task(connector.publish(message()))
        await receiver.seen.wait()
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        receiver.hold.set()


# What a message may not do


@pytest.mark.parametrize("header", [("X", b"a\r\nY: b"), ("X", b"a\x00"), ("X\r\nY", b"a"), ("X Y", b"a"), ("", b"a")])
async def test_a_header_cannot_become_another(header):
    async with Receiver().running() as receiver, sending(url=receiver.url) as connector:
        assert (await refused(connector, message(headers=(header,)))).permanent
        assert (await refused(connector, message(content_type="a\r\nX: b"))).permanent
    assert receiver.requests == []


@pytest.mark.parametrize(
    "topic", ["../x", "a/../../x", "./x", "http://127.0.0.1/x", "HTTPS://h/x", "file:///etc/passwd", "gopher://h/x"]
)
async def test_a_topic_stays_below_the_url(topic):
    async with Receiver().running() as receiver, sending(url=receiver.url + "/base") as connector:
        assert (await refused(connector, message(topic))).permanent
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("topic", "path"),
    [
        ("", "/base"),
        ("/", "/base"),
        ("//evil.example/x", "/base/evil.example/x"),
        ("@evil.example", "/base/%40evil.example"),
        ("x?a=1#b", "/base/x%3Fa%3D1%23b"),
        ("%2e%2e/x", "/base/%252e%252e/x"),
        ("a\r\nb", "/base/a%0D%0Ab"),
        ("x/", "/base/x/"),
    ],
)
def test_whatever_a_topic_holds_is_a_path(topic, path):
    call = outgoing(config(url="http://host:81/base"), message(topic), 0)
    assert (str(call.url.origin()), call.url.raw_path, call.url.raw_query_string) == ("http://host:81", path, "")


PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1",
    "::1", "::", "fe80::1", "fe80::1%lo", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_message_cannot_choose_a_private_address(address):
    assert not is_public(ipaddress.ip_address(address))
    async with sending(allow_absolute_urls=True, timeout=1) as connector:
        host = f"[{address.replace('%', '%25')}]" if ":" in address else address
        error = await refused(connector, message(f"http://{host}:9/x"))
    assert error.permanent
    assert "not allowed" in str(error)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::"]
)
def test_the_public_internet_is_allowed(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    ["http://localhost:9/", "http://127.1:9/", "http://2130706433:9/", "http://0x7f000001:9/", "http://0177.0.0.1:9/",
     "http://user:pw@8.8.8.8/", "ftp://8.8.8.8/", "http:///x", "http://[::1", "http://①②⑦.0.0.1:9/"],
)  # fmt: skip
async def test_no_other_way_to_write_it_helps(url):
    async with sending(allow_absolute_urls=True, timeout=2) as connector:
        assert (await refused(connector, message(url))).permanent


class Lying(AbstractResolver):
    """A name server that gives a public and a private address."""

    async def resolve(self, host, port=0, family=socket.AF_INET):
        make = {"hostname": host, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [{**make, "host": address} for address in ("8.8.8.8", "127.0.0.1")]

    async def close(self):
        pass


async def test_every_address_of_a_name_is_checked(monkeypatch):
    monkeypatch.setattr(aiohttp, "ThreadedResolver", Lying)
    async with sending(allow_absolute_urls=True, timeout=2) as connector:
        error = await refused(connector, message("http://rebind.example/x"))
    assert error.permanent
    assert "rebind.example is not on the public internet" in str(error)


async def test_the_operators_own_url_may_be_anywhere_but_only_at_its_port():
    async with Receiver().running() as receiver, Receiver().running() as other:
        async with sending(url=receiver.url, allow_absolute_urls=True) as connector:
            assert await connector.publish(message(receiver.url + "/x")) == "taken"
            assert (await refused(connector, message(other.url + "/x"))).permanent
        async with sending(url=receiver.url, allow_absolute_urls=True, allow_private=True) as connector:
            assert await connector.publish(message(other.url + "/x")) == "taken"


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Receiver().running() as receiver, sending(url=receiver.url) as connector:
        assert await connector.publish(message()) == "taken"


# Showing who it is


def headers_of(topic="t", **keys):
    return outgoing(config(url="http://host/base", allow_absolute_urls=True, **keys), message(topic), 1000).headers


def test_the_secrets_go_to_the_own_url_only():
    keys = {"auth": {"type": "bearer", "token": "secret"}, "headers": {"X-Key": "other"}}
    own, foreign = headers_of(**keys), headers_of("http://elsewhere.example/x", **keys)
    assert (own["Authorization"], own["X-Key"]) == ("Bearer secret", "other")
    assert "Authorization" not in foreign
    assert "X-Key" not in foreign
    assert "Authorization" not in headers_of("https://host/base", **keys)


def test_basic_and_api_key():
    basic = headers_of(auth={"type": "basic", "username": "u", "password": "p"})
    assert basic["Authorization"] == "Basic " + base64.b64encode(b"u:p").decode()
    assert headers_of(auth={"type": "api_key", "token": ["new", "old"], "header": "X-K"})["X-K"] == "new"


def test_a_signature_goes_everywhere_and_is_made_with_every_secret():
    keys = [b"a" * 24, b"b" * 24]
    secrets = ["whsec_" + base64.b64encode(key).decode() for key in keys]
    headers = headers_of("http://elsewhere.example/x", auth={"type": "hmac", "secret": secrets})
    expected = [
        "v1," + base64.b64encode(hmac.new(key, b"job-1.1000.\x00\xff", hashlib.sha256).digest()).decode()
        for key in keys
    ]
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("job-1", "1000")
    assert headers["webhook-signature"] == " ".join(expected)


async def test_what_one_gateway_signs_another_one_takes():
    auth = {"type": "hmac", "secret": "0123456789abcdef0123456789abcdef"}
    inbound = [{"path": "/in", "handler": "h", "auth": auth}]
    taking = HttpConnector(config(listen="127.0.0.1:0", inbound=inbound), name="in")
    async with running(taking) as inbox, sending(url=f"http://127.0.0.1:{taking.port}", auth=auth) as connector:
        assert "job_id" in await connector.publish(message("in"))
        await connector.publish(message("in"))
    assert [(m.body, m.dedupe_id) for m in inbox.stored] == [(b"\x00\xff", "job-1")]


async def test_a_connector_without_url_cannot_send():
    connector = HttpConnector(config(listen="127.0.0.1:0"), name="in")
    async with running(connector):
        assert (await refused(connector, message())).permanent


async def test_errors_do_not_show_the_query():
    async with sending(url="http://127.0.0.1:1/?token=secret") as connector:
        error = await refused(connector, message())
    assert "secret" not in str(error)


def test_configured_headers_are_checked_too():
    with pytest.raises(DeliveryError):
        outgoing(config(url="http://h", headers={"X": "a\r\nb"}), message(), 0)
    assert outgoing(config(url="http://h", headers={"X": "a"}), message(), 0).headers["X"] == "a"
    assert str(outgoing(config(url="http://h/?secret=1"), message(), 0)) == "POST http://h/t"
    assert URL("http://h").origin() == outgoing(config(url="http://h"), message(), 0).url.origin()
