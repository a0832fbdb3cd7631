"""What a hub may do wrong, shown by one inside the test's process; and what its messages look like in bytes."""

import asyncio
import base64
import json
import socket
from datetime import UTC, datetime

import msgpack
import pytest
from pydantic import ValidationError

from connectors.signalr.config import SignalrConfig
from connectors.signalr.protocol import Answer, Event, Farewell, Json, MessagePack
from gateway.errors import Disconnected
from gateway.testing.harness import Recorder, nothing_left, running, until
from tests.connectors.signalr_tools import connector, scripted

EVENT = '{"type":1,"target":"event","arguments":[1]}\x1e'


def packed(*messages):
    out = b""
    for message in messages:
        body = msgpack.packb(message)
        out += bytes(MessagePack(version=1)._to_varint(len(body))) + body
    return out


PACKED_EVENT = packed([1, {}, None, "event", [1], []])


@pytest.mark.parametrize(
    "frame",
    [
        "{",
        "no JSON\x1e",
        "[]\x1e",
        '{"type":1,"target":"event","arguments":[1]}',
        '{"type":1,"target":"event","arguments":{}}\x1e',
        '{"type":1,"target":"event","arguments":[NaN]}\x1e',
        '{"type":1,"arguments":[]}\x1e',
        '{"type":1} {}\x1e',
        '{"type":1 "target":2}\x1e',
        '{"a":' + "[" * 100_000 + "\x1e",
        b"\xff\xfe\x1e",
    ],
)
async def test_what_cannot_be_read_ends_the_life_and_loses_nothing_before_it(frame):
    async with scripted(EVENT + frame if isinstance(frame, str) else EVENT.encode() + frame) as (url, _):
        inbox = Recorder()
        with pytest.raises(Disconnected, match="cannot be read"):
            await asyncio.wait_for(connector(url).run(inbox), 10)
    assert [message.body for message in inbox.stored] == ([b"[1]"] if isinstance(frame, str) else [])


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x7f\x01",
        packed([1, {}, None, "event"]),
        packed([1, {}, None, 5, [1], []]),
        packed([1, {}, None, "event", 5, []]),
        packed([3, {}, "1"]),
        packed({}),
        packed(7),
        b"\x01\xc1",
        b"\x03" + b"\x93\x01\x80",
        b"\x80",
        "text",
    ],
)
async def test_what_is_no_messagepack_ends_the_life_and_loses_nothing_before_it(frame):
    frames = [PACKED_EVENT + frame] if isinstance(frame, bytes) else [PACKED_EVENT, frame]
    async with scripted(*frames) as (url, _):
        inbox = Recorder()
        with pytest.raises(Disconnected, match="cannot be read"):
            await asyncio.wait_for(connector(url, protocol="messagepack").run(inbox), 10)
    assert [message.body for message in inbox.stored] == [b"[1]"]


async def test_messages_of_other_kinds_are_passed_over():
    frame = '{"type":6}\x1e{}\x1e{"type":99,"x":[]}\x1e{"type":3,"invocationId":"77","result":1}\x1e' + EVENT
    async with scripted(frame) as (url, _), running(connector(url)) as inbox:
        await until(lambda: inbox.stored)
    frame = packed([6], [99], [3, {}, "77", 3, 1], [2, {}, "7", 1]) + PACKED_EVENT
    async with scripted(frame) as (url, _), running(connector(url, protocol="messagepack")) as inbox:
        await until(lambda: inbox.stored)


@pytest.mark.parametrize(("protocol", "event"), [("json", EVENT), ("messagepack", PACKED_EVENT)])
async def test_events_right_behind_the_handshake_are_received(protocol, event):
    first = "{}\x1e" + event if isinstance(event, str) else b"{}\x1e" + event
    hub = scripted(event, before_handshake=[first])
    async with hub as (url, came), running(connector(url, protocol=protocol)) as inbox:
        await until(lambda: len(inbox.stored) == 2)
    sent = came[0] if isinstance(came[0], str) else came[0].decode()
    assert sent.endswith("\x1e")
    assert json.loads(sent[:-1]) == {"protocol": protocol, "version": 1}


async def silent(stream):
    await asyncio.sleep(30)


async def fragments(stream):
    """Send an event in two fragments, with a ping between them."""
    half = len(EVENT) // 2
    await stream._writer.send_frame(b"", 0x9)
    stream._writer.transport.write(bytes([0x01, half]) + EVENT[:half].encode())
    stream._writer.transport.write(bytes([0x89, 1]) + b"p")
    stream._writer.transport.write(bytes([0x80, len(EVENT) - half]) + EVENT[half:].encode())


async def test_an_event_in_fragments_is_one_event():
    async with scripted(fragments) as (url, _), running(connector(url)) as inbox:
        await until(lambda: inbox.stored)


@pytest.mark.parametrize(
    ("hub", "keys", "reason"),
    [
        ({"before_handshake": ['{"error":"not today"}\x1e']}, {}, "refused the handshake: not today"),
        ({"before_handshake": ["hello"]}, {}, "handshake cannot be read"),
        ({"before_handshake": ["[]\x1e"]}, {}, "handshake cannot be read"),
        ({"before_handshake": [""]}, {}, "handshake cannot be read"),
        ({"before_handshake": [silent]}, {"connect_timeout": 0.3}, r"did not answer within 0\.3 seconds"),
        ({"negotiation": "hang"}, {"connect_timeout": 0.3}, r"did not answer within 0\.3 seconds"),
        ({"negotiation": "<html>"}, {}, "negotiation cannot be read"),
        ({"negotiation": "[]"}, {}, "negotiation cannot be read"),
        ({"negotiation": {"error": "go away"}}, {}, "refused the connection: go away"),
        ({"negotiation": {"availableTransports": [{"transport": "LongPolling"}]}}, {}, "offers no WebSockets"),
        ({"status": 503}, {}, "HTTP 503"),
        ({"status": 301}, {}, "HTTP 301"),
    ],
)
async def test_a_connection_that_does_not_come_about_says_why_and_leaves_nothing(hub, keys, reason):
    async with nothing_left(), scripted(**hub) as (url, _):
        for attempt in (connector(url, **keys).run(Recorder()), connector(url, **keys).check()):
            with pytest.raises(Disconnected, match=reason):
                await asyncio.wait_for(attempt, 10)


async def test_nobody_at_the_address_is_said_and_leaves_nothing():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with nothing_left():
            for url in (f"http://127.0.0.1:{port}/hub", f"ws://127.0.0.1:{port}/hub"):
                with pytest.raises(Disconnected, match=f"127.0.0.1:{port} cannot be reached"):
                    await connector(url).run(Recorder())


async def test_a_hub_that_sends_its_clients_round_in_circles_is_left():
    async with scripted(negotiation={"url": "http://127.0.0.1:1/hub", "accessToken": "t"}) as (url, _):
        with pytest.raises(Disconnected, match="cannot be reached"):
            await connector(url).run(Recorder())
    answer = {}
    async with scripted(negotiation=answer) as (url, _):
        answer["url"] = url
        with pytest.raises(Disconnected, match="circles"):
            await connector(url).run(Recorder())


async def test_a_hub_that_answers_no_acknowledgement_is_left():
    frame = "".join(f'{{"type":1,"target":"event","arguments":[{n}]}}\x1e' for n in range(1200))
    entry = {"event": "event", "handler": "h", "acknowledge": {"method": "ack", "id": "body[0]"}}
    async with scripted(frame) as (url, came), running(connector(url, inbound=[entry], max_pending=1)) as inbox:
        await until(lambda: len(inbox.stored) == 1200)
    told = [json.loads(text.rstrip("\x1e")) for text in came[1:]]
    ids = [each["arguments"] for each in told if each.get("target") == "ack"]
    assert ids[:3] == [[[0]], [[1]], [[2]]]
    assert len(ids) == 1000


def test_messagepack_values_become_json():
    when = datetime(2026, 3, 1, 12, tzinfo=UTC)
    values = [
        b"\x00\xff",
        {1: "a", "b": {True: b"x"}},
        when,
        msgpack.ExtType(5, b"z"),
        float("inf"),
        float("nan"),
        2**63,
    ]
    body = msgpack.packb([1, {"h": "v"}, "9", "event", values, []], datetime=True)
    frame = MessagePack(version=1)._to_varint(len(body)) + body
    (event,) = MessagePack(version=1).parse_messages(frame)
    assert isinstance(event, Event)
    assert json.loads(event.body) == [
        "AP8=",
        {"1": "a", "b": {"true": "eA=="}},
        "2026-03-01T12:00:00+00:00",
        {"type": 5, "data": "eg=="},
        "Infinity",
        "NaN",
        2**63,
    ]
    assert (event.headers, event.invocation_id) == ({"h": "v"}, "9")


def test_text_that_is_no_unicode_survives_as_json_escapes():
    (event,) = MessagePack(version=1).parse_messages(packed_raw(b"\xa1\xff"))
    assert event.body == b'["\\udcff"]'
    (event,) = Json(version=1).parse_messages('{"type":1,"target":"e","arguments":["\\ud800"]}\x1e')
    assert event.body == b'["\\ud800"]'


def packed_raw(argument):
    body = b"\x96\x01\x80\xc0\xa1e\x91" + argument + b"\x90"
    return bytes([len(body)]) + body


def test_answers_and_farewells_are_read_alike():
    wanted = [Answer("1", "no", None), Answer("2", None, [5]), Answer("3", None, None), Farewell("bye")]
    answers = '{"type":3,"invocationId":"1","error":"no"}\x1e{"type":3,"invocationId":"2","result":[5]}\x1e'
    text = answers + '{"type":3,"invocationId":"3"}\x1e{"type":7,"error":"bye"}\x1e'
    assert Json(version=1).parse_messages(text) == wanted
    frame = packed([3, {}, "1", 1, "no"], [3, {}, "2", 3, [5]], [3, {}, "3", 2], [7, "bye", True])
    assert MessagePack(version=1).parse_messages(frame) == wanted


def test_a_whole_number_that_messagepack_does_not_have_is_refused():
    with pytest.raises(ValueError, match="64 bits"):
        MessagePack(version=1).invocation("1", "m", f"[{2**64}]", {})
    assert str(2**64) in Json(version=1).invocation("1", "m", f"[{2**64}]", {})


def test_arguments_go_out_in_json_as_they_are():
    frame = Json(version=1).invocation("1", "m", "[1.10, 12345678901234567890.5]", {"a": "b"})
    assert frame.endswith('"headers":{"a":"b"},"arguments":[1.10, 12345678901234567890.5]}\x1e')
    assert json.loads(Json(version=1).invocation("1", "m", [b"\x00"], {})[:-1])["arguments"] == ["AA=="]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"url": "ftp://hub"}, "'url' is http"),
        ({"url": "http:///hub"}, "'url' is http"),
        ({"url": "https://user:secret@hub"}, "a token belongs under 'token'"),
        ({"token": "a", "token_file": "b"}, "exclude each other"),
        ({"inbound": [{"event": "A", "handler": "h"}, {"event": "a", "handler": "h"}]}, "two entries receive 'A'"),
        ({"inbound": [{"event": "a", "handler": "h", "resume": {"method": "m", "position": "body["}}]}, "position"),
        ({"protocol": "xml"}, "messagepack"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(keys, text):
    with pytest.raises(ValidationError) as caught:
        SignalrConfig.model_validate({"type": "signalr", "url": "http://hub/x", **keys})
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_secrets_without_encryption_are_warned_of():
    def warned(url, **keys):
        return SignalrConfig.model_validate({"type": "signalr", "url": url, **keys}).warnings()

    assert warned("http://hub/x") == warned("https://hub/x", token="t") == warned("ws://127.0.0.1/x", token="t") == []
    assert warned("http://hub/x", tls={}) == ["'tls' has no effect, because 'url' starts with http://"]
    assert warned("http://hub/x", token="t") == ["the token and headers for hub are sent without encryption (http://)"]
    assert warned("ws://hub/x", headers={"a": "b"}) == [
        "the token and headers for hub are sent without encryption (ws://)"
    ]


def test_no_secret_is_shown():
    keys = {"token": "hidden", "headers": {"X-Key": "hidden"}, "tls": {"key_password": "hidden"}}
    config = SignalrConfig.model_validate({"type": "signalr", "url": "https://hub/x", **keys})
    assert "hidden" not in repr(config) + str(config) + config.model_dump_json()
    assert base64.b64encode(b"hidden").decode() not in repr(config)
