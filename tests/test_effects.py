import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import column, insert, table

from gateway.effects import Effects, ordering_key
from gateway.errors import PayloadError, TransactionRefused
from gateway.job import Direction, QueueJob
from gateway.message import Message


@pytest.fixture
def effects():
    return Effects(QueueJob(id="parent", sequence=1), max_retries=lambda name: {"known": 9}.get(name, 3))


def publish(effects, **options):
    return effects.publish("shop", "t", options.pop("body", b""), options)


def test_a_published_message_is_an_outbound_job_of_its_sender(effects):
    sent = publish(effects, body={"a": "ä"}, key="k", headers={"h": "v"}, delay=5, priority=2)
    (job,) = effects.outgoing
    assert (job.id, job.handler, job.direction, job.parent_id) == (
        sent,
        "gateway.publish",
        Direction.OUTBOUND,
        "parent",
    )
    assert (job.metadata["connector"], job.delay, job.priority, job.ordering_key) == ("shop", 5.0, 2, "shop\x1fk")
    message = Message.from_row(job.payload, job.metadata)
    assert (message.topic, message.key, message.headers) == ("t", b"k", (("h", b"v"),))
    assert (message.json(), message.content_type) == ({"a": "ä"}, "application/json")


@pytest.mark.parametrize(
    ("body", "payload", "content_type"),
    [
        (b"\x00\xff", b"\x00\xff", None),
        (bytearray(b"a"), b"a", None),
        ("ä", "ä".encode(), "text/plain; charset=utf-8"),
        ([1, None], b"[1,null]", "application/json"),
        (0, b"0", "application/json"),
        ("", b"", "text/plain; charset=utf-8"),
        (None, None, None),
    ],
)
def test_a_body_is_bytes_text_json_or_a_tombstone(effects, body, payload, content_type):
    publish(effects, body=body)
    (job,) = effects.outgoing
    assert (job.payload, job.metadata.get("content_type")) == (payload, content_type)


def test_a_content_type_given_is_kept(effects):
    publish(effects, body={}, content_type="application/vnd.shop+json")
    assert effects.outgoing[0].metadata["content_type"] == "application/vnd.shop+json"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"body": float("nan")}, PayloadError),
        ({"body": object()}, PayloadError),
        ({"body": "\ud800"}, PayloadError),
        ({"key": "\ud800"}, PayloadError),
        ({"key": 5}, PayloadError),
        ({"headers": {"a": 5}}, PayloadError),
        ({"headers": [("a",)]}, PayloadError),
        ({"delay": -1}, ValueError),
        ({"delay": float("inf")}, ValueError),
        ({"delay": float("nan")}, ValueError),
        ({"priority": 10**9}, ValueError),
        ({"keys": "k"}, TypeError),
    ],
)
def test_what_could_never_be_sent_is_refused_at_once(effects, options, error):
    with pytest.raises(error):
        publish(effects, **options)
    assert effects.outgoing == []


def test_an_enqueued_job_takes_its_handlers_retries_and_its_own_options(effects):
    at = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    first = effects.enqueue("known", {"a": 1}, {})
    effects.enqueue("other", None, {"at": at, "max_retries": 0, "metadata": {"m": 1}, "key": "k", "priority": -5})
    one, two = effects.outgoing
    assert (one.id, one.handler, one.payload, one.max_retries, one.parent_id) == (
        first,
        "known",
        b'{"a":1}',
        9,
        "parent",
    )
    assert (two.scheduled_at, two.max_retries, two.metadata) == (datetime(2030, 1, 1, 10, tzinfo=UTC), 0, {"m": 1})
    assert (two.payload, two.ordering_key, two.priority) == (None, "other\x1fk", -5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("", {}),
        ("gateway.publish", {}),
        ("h", {"at": datetime(2030, 1, 1)}),  # noqa: DTZ001
        ("h", {"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 5}),
        ("h", {"max_retries": -1}),
        ("h", {"retries": 1}),
    ],
)
def test_what_could_never_run_is_refused_at_once(effects, name, options):
    with pytest.raises((ValueError, TypeError)):
        effects.enqueue(name, None, options)
    assert effects.outgoing == []


def test_metadata_is_copied_and_must_be_json(effects):
    metadata = {"list": []}
    effects.enqueue("h", None, {"metadata": metadata})
    metadata["list"].append(1)
    assert effects.outgoing[0].metadata == {"list": []}
    with pytest.raises(PayloadError):
        effects.enqueue("h", None, {"metadata": {"a": object()}})


def test_a_deferred_write_keeps_its_values_as_they_were(effects):
    statement, values = insert(table("t", column("a"))), {"a": 1}
    effects.defer(statement, values)
    effects.defer(statement, None)
    values["a"] = 2
    assert effects.deferred == [(statement, {"a": 1}), (statement, {})]
    with pytest.raises(TypeError, match="SQLAlchemy statement"):
        effects.defer("INSERT INTO t VALUES (1)", None)


def test_an_error_in_a_block_takes_back_what_was_asked_for_in_it(effects):
    publish(effects)
    with pytest.raises(KeyError), effects.undone_by_an_error():  # noqa: PT012
        publish(effects)
        effects.enqueue("h", None, {})
        effects.defer(insert(table("t", column("a"))), {"a": 1})
        raise KeyError
    assert (len(effects.outgoing), len(effects.deferred)) == (1, 0)


def test_nothing_can_be_asked_for_once_the_attempt_is_over(effects):
    effects.close("its time was up")
    calls = (
        lambda: publish(effects),
        lambda: effects.enqueue("h", None, {}),
        lambda: effects.defer(insert(table("t", column("a"))), {}),
        lambda: effects.progress(0.5, None),
        effects.require_open,
    )
    for call in calls:
        with pytest.raises(TransactionRefused, match="its time was up"):
            call()


def test_progress_is_from_0_to_1_and_the_newest_counts(effects):
    told = []
    effects.on_progress = lambda: told.append(dict(effects.reported))
    effects.progress(0, None)
    effects.progress(1, "x" * 5000)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError):
            effects.progress(wrong, None)
    assert told == [{"fraction": 0.0}, {"fraction": 1.0, "note": "x" * 1000}]
    json.dumps(effects.reported)


@pytest.mark.parametrize("key", [b"k", "ä".encode(), b"\xff", b"nul\x00", b"x" * 5000, b""])
def test_an_ordering_key_fits_its_column_and_differs_per_scope_and_key(key):
    made = ordering_key("shop", key)
    assert len(made) <= 255
    assert "\x00" not in made
    others = {ordering_key("shop2", key), ordering_key("shop", key + b"x"), ordering_key("s" * 300, key)}
    assert made not in others
    assert len(others) == 3
    assert all(len(other) <= 255 for other in others)
