import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import PayloadError
from gateway.message import Message, Position

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@given(
    topic=names.filter(bool),
    body=st.binary(),
    key=st.none() | st.binary(),
    headers=st.lists(st.tuples(names, st.binary())),
    content_type=st.none() | names,
    parameters=st.dictionaries(names, names),
    dedupe_id=st.none() | names,
    position=st.none() | st.builds(Position, names, names, st.integers(), st.integers(), st.integers(), names),
    timestamp=st.none() | st.datetimes(timezones=st.just(UTC)),
)
def test_a_message_comes_back_from_its_row_byte_by_byte(**parts):
    message = Message(**{**parts, "headers": tuple(parts["headers"])})
    metadata = json.loads(json.dumps(message.to_metadata(), allow_nan=False))
    assert Message.from_row(message.body, metadata) == message


def test_metadata_is_readable_where_the_bytes_are_text():
    message = Message(topic="t", key=b"k1", headers=(("a", b"b"), ("raw", b"\xff"), ("nul", b"\x00")))
    assert message.to_metadata() == {
        "topic": "t",
        "key": "k1",
        "headers": [["a", "b"], ["raw", {"base64": "/w=="}], ["nul", {"base64": "AA=="}]],
    }


def test_no_part_of_a_message_can_refuse_its_row():
    message = Message(
        topic="a\x00\ud800",
        headers=(("\x00\udfff", b"\x00"),),
        content_type="\x00",
        parameters={"\x00": "\ud800"},
        dedupe_id="\x00\ud800",
    )
    text = json.dumps(message.to_metadata(), ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode()


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"topic": None, "key": None, "headers": None, "parameters": None, "position": None, "timestamp": None},
        {"topic": 7, "key": {"a": 1}, "headers": {"a": 1}, "parameters": [1], "position": [], "timestamp": 5},
        {"headers": [["a"], ["a", "b", "c"], []], "position": {"x": 1}, "timestamp": "yesterday", "content_type": 3},
        {"key": {"base64": "A"}, "headers": [["a", {"base64": "ä"}], ["b", "\ud800"]]},
        {"key": ["list"], "headers": "text", "position": "text", "parameters": {"n": 1}},
    ],
)
def test_metadata_written_by_hand_never_stops_a_job(metadata):
    message = Message.from_row(b"x", metadata)
    assert message.body == b"x"
    assert isinstance(message.topic, str)


def test_a_tombstone_is_not_an_empty_body():
    assert Message.from_row(None, {}).tombstone
    assert not Message.from_row(b"", {}).tombstone
    assert Message.from_row(None, {}).body == b""


def test_a_header_is_found_in_any_case_and_the_first_counts():
    message = Message(topic="t", headers=(("X-A", b"first"), ("x-a", b"second"), ("latin", b"\xe9")))
    assert (message.header("x-A"), message.header("LATIN"), message.header("none")) == ("first", "é", None)


def test_text_and_json_are_what_was_sent():
    message = Message(topic="t", body='{"a": "ä"}'.encode())
    assert message.text() == '{"a": "ä"}'
    assert message.json() == {"a": "ä"}


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"[Infinity]", b"\xff", b"[" * 200_000, b"1" * 5000])
def test_a_body_that_is_no_json_says_so(body):
    with pytest.raises(PayloadError, match="not JSON"):
        Message(topic="t", body=body).json()


def test_a_body_that_is_no_text_says_so():
    with pytest.raises(PayloadError, match="not UTF-8"):
        Message(topic="t", body=b"\xff").text()


def test_a_time_keeps_its_zone():
    at = datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=UTC)
    assert Message.from_row(None, Message(topic="t", timestamp=at).to_metadata()).timestamp == at
