"""STOMP frames and headers, without a broker."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.activemq.frames import MAX_HEAD, Splitter, acknowledgements, dedupe_id, received, sendable
from gateway.errors import DeliveryError
from gateway.message import Message
from tests.connectors.stomp_tools import config, frame

BODIES = st.lists(st.binary(max_size=40), min_size=1, max_size=6)
STREAM = b"\n\n\r\n" + frame("MESSAGE", {"a": "1", "content-length": 5}, b"\x00\n\n\x00x") + b"\n" + frame("RECEIPT")


def split(data, *cuts):
    splitter, found = Splitter(), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        found += splitter.feed(data[start:end])
    return found


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_wherever_a_stream_is_cut_its_frames_are_whole(cut):
    assert [each[:7] for each in split(STREAM, cut)] == [b"MESSAGE", b"RECEIPT"]
    assert split(STREAM, cut)[0].endswith(b"\n\n\x00\n\n\x00x")


@given(bodies=BODIES, beats=st.text("\n", max_size=3), size=st.integers(1, 50))
def test_bodies_of_any_bytes_pass_with_heart_beats_between_them(bodies, beats, size):
    stream = b"".join(beats.encode() + frame("MESSAGE", {"content-length": len(body)}, body) for body in bodies)

    found = split(stream, *range(size, len(stream), size))

    assert [each.partition(b"\n\n")[2] for each in found] == bodies


@given(data=st.binary(max_size=200))
def test_what_is_no_stomp_is_refused_or_waited_for_but_never_breaks(data):
    try:
        split(data, len(data) // 2)
    except ValueError as error:
        assert "content-length" in str(error)  # noqa: PT017 - only where it is refused


@pytest.mark.parametrize("data", [b"x" * (MAX_HEAD + 1), b"M\ncontent-length:1\n\nabc"])
def test_a_stream_without_frames_ends(data):
    with pytest.raises(ValueError, match="frame"):
        split(data)


def test_a_message_has_what_its_frame_had():
    headers = {
        "destination": "/queue/q", "message-id": "ID:1", "subscription": "0", "ack": "a", "content-length": "1",
        "content-type": "text/plain", "timestamp": "1700000000123", "redelivered": "true", "JMSXGroupID": "k", "x": "ä",
    }  # fmt: skip

    message = received(headers, b"b", "JMSXGroupID", "/queue/q")

    assert (message.topic, message.body, message.key, message.content_type) == ("/queue/q", b"b", b"k", "text/plain")
    assert (message.dedupe_id, message.dedupe_scope) == ("ID:1", "/queue/q")
    assert message.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)
    assert (message.header("redelivered"), message.header("x")) == ("true", "ä")
    assert message.header("subscription") is message.header("ack") is None
    assert received(headers, b"b", "x", None).key == "ä".encode()
    assert received(headers, b"b", "x", None).dedupe_id is None


def test_artemis_names_a_message_after_its_consumer_which_is_left_out():
    first, again = ({"message-id": f"{consumer},77", "timestamp": "5"} for consumer in (26, 31))

    assert dedupe_id(first) == dedupe_id(again)
    assert dedupe_id(first) != dedupe_id({"message-id": "26,77", "timestamp": "6"})  # of another journal
    assert dedupe_id({"message-id": "ID:a", "timestamp": "5"}) == "ID:a"
    assert dedupe_id({}) is None


def test_a_time_that_is_none_is_no_time():
    assert [received({"timestamp": text}, b"", "k", None).timestamp for text in ("", "x", "9" * 30)] == [None] * 3


def test_a_message_goes_with_its_id_key_type_and_headers():
    message = Message(
        topic="q", body=b"1", key=b"k", message_id="job-1", content_type="application/json",
        headers=(("a:b\n", b"1\x00\r"), ("A", b"\xff"), ("A", b"2"), ("reply-to", b"/queue/r"), ("priority", b"9")),
    )  # fmt: skip

    assert sendable(message, as_text=None) == {
        "a\\cb\\n": "1\ufffd\r", "A": "ÿ", "reply-to": "/queue/r", "priority": "9", "persistent": "true",
        "x-message-id": "job-1", "JMSXGroupID": "k", "content-type": "application/json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Destination", "receipt", "transaction", "JMSTimestamp", "_AMQ_ROUTING_TYPE", ""])
def test_a_header_that_belongs_to_the_broker_is_left_out(name):
    assert sendable(Message(topic="q", headers=((name, b"x"),)), as_text=True) == {"persistent": "true"}


@pytest.mark.parametrize("name", ["priority", "expires", "AMQ_SCHEDULED_DELAY", "amq_scheduled_repeat"])
@pytest.mark.parametrize("value", [b"high", b"-1", b"", b"9" * 20])
def test_a_number_that_is_none_is_left_out(name, value):
    assert sendable(Message(topic="q", headers=((name, value),)), as_text=True) == {"persistent": "true"}


@pytest.mark.parametrize(
    "headers", [[("a", b"x" * 10_001)], [("a", b":" * 5001)], [(f"a{n}", b"") for n in range(901)]]
)
def test_headers_that_would_cost_the_connection_fail_for_good(headers):
    with pytest.raises(DeliveryError) as caught:
        sendable(Message(topic="q", headers=tuple(headers)), as_text=None)
    assert caught.value.permanent


@pytest.mark.parametrize(
    ("content_type", "body", "as_text", "is_text"),
    [
        ("application/json", b"{}", None, True),
        ("application/ld+json; charset=utf-8", b"{}", None, True),
        ("text/plain", b"a\x00", None, False),
        ("text/plain", b"\xff", None, False),
        ("application/octet-stream", b"a", None, False),
        (None, b"a", None, False),
        (None, b"a", True, True),
        ("text/plain", b"a", False, False),
    ],
)
def test_java_receives_text_where_it_is_text(content_type, body, as_text, is_text):
    headers = sendable(Message(topic="q", body=body, content_type=content_type), as_text=as_text)

    assert ("content-length" not in headers) == is_text


def test_acknowledgements_are_one_piece_with_their_ids_escaped():
    assert acknowledgements(["ID:a-1", "2"]) == b"ACK\nid:ID\\ca-1\n\n\x00ACK\nid:2\n\n\x00"


URL = "stomp://broker"
MISTAKES = [
    ({}, "'url' or 'urls'"),
    ({"url": URL, "urls": [URL]}, "'url' or 'urls'"),
    ({"url": "http://broker"}, "stomp://host:port"),
    ({"url": "stomp://broker/queue"}, "stomp://host:port"),
    ({"url": "stomp://broker:99999"}, "stomp://host:port"),
    ({"urls": [URL, "stomp://a:b@broker"]}, "belong under"),
    ({"url": URL, "username": "a"}, "belong together"),
    ({"url": URL, "username": "a\nreceipt:1", "password": "b"}, "control characters"),
    ({"url": URL, "username": "a", "password": "b\x00"}, "control characters"),
    ({"url": URL, "tls": {}}, "stomp\\+ssl"),
    ({"url": "stomp+ssl://broker", "tls": {"key": "a"}}, "belong together"),
    ({"url": URL, "heartbeat": 11}, "less than or equal to 10"),
    ({"url": URL, "inbound": [{"handler": "h"}]}, "'queue' or 'topic'"),
    ({"url": URL, "inbound": [{"handler": "h", "queue": "a", "topic": "a"}]}, "'queue' or 'topic'"),
    ({"url": URL, "inbound": [{"handler": "h", "queue": "/queue/a"}]}, "bare names"),
    ({"url": URL, "inbound": [{"handler": "h", "queue": ""}]}, "bare names"),
    ({"url": URL, "inbound": [{"handler": "h", "queue": "a", "subscription": "s"}]}, "is for a topic"),
    ({"url": URL, "inbound": [{"handler": "h", "topic": "a", "subscription": "s"}]}, "'client_id' is needed"),
    (
        {"url": URL, "client_id": "c", "inbound": [{"handler": "h", "topic": t, "subscription": "s"} for t in "ab"]},
        "same 'subscription'",
    ),
]


@pytest.mark.parametrize(("keys", "reason"), MISTAKES)
def test_a_mistake_in_the_configuration_is_explained(keys, reason):
    with pytest.raises(ValidationError, match=reason):
        config(**keys)


def test_what_is_dangerous_is_said():
    found = config(
        urls=["stomp+ssl://a", "stomp+ssl://b:1"], username="u", password="p", tls={"verify": False}, client_id="c",
        inbound=[{"handler": "h", "topic": "lost"}, {"handler": "h", "topic": "kept", "subscription": "s"}],
    )  # fmt: skip

    assert [str(address) for address in found.addresses] == ["a:61614", "b:1"]
    assert [warning[:22] for warning in found.warnings()] == ["tls.verify is false: a", "messages of topic lost"]
    assert "in the clear" in config(url=URL, username="u", password="p").warnings()[0]


def test_two_subscriptions_of_a_topic_have_ids_of_their_own():
    entries = [{"handler": "h", "topic": "t", "subscription": name} for name in "ab"] + [{"handler": "h", "queue": "t"}]

    found = config(url=URL, client_id="c", inbound=entries).inbound

    assert len({entry.scope for entry in found}) == len({entry.source for entry in found}) == 3
