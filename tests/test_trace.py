import pytest

from gateway import handlers
from gateway.effects import Effects
from gateway.job import QueueJob
from gateway.message import Message
from gateway.testing import run_handler
from gateway.trace import trace_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-00"


def received(*headers):
    return Message(topic="t", headers=tuple((name, value.encode()) for name, value in headers)).to_metadata()


def effects(metadata):
    return Effects(QueueJob(id="parent", sequence=1, metadata=metadata), max_retries=lambda _: 3)


def sent(metadata, **options):
    asked = effects(metadata)
    asked.publish("out", "t", b"", options)
    return [(name, value.decode()) for name, value in Message.from_row(b"", asked.outgoing[0].metadata).headers]


def enqueued(of, /, **options):
    asked = effects(of)
    asked.enqueue("h", None, options)
    return asked.outgoing[0].metadata


def test_a_message_s_trace_is_in_its_headers_whatever_their_case():
    assert trace_of(received(("TraceParent", PARENT), ("tracestate", "a=1"))) == {
        "traceparent": PARENT,
        "tracestate": "a=1",
    }
    assert trace_of({}) == trace_of(received(("tracestate", "a=1"))) == {}


@pytest.mark.parametrize(
    "value",
    [
        "", "x", PARENT.upper(), PARENT + "-00", PARENT + " ", "ff" + PARENT[2:], PARENT.replace("4bf9", "4bg9"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", PARENT[:-1],
    ],
)  # fmt: skip
def test_what_is_no_trace_is_not_passed_on(value):
    assert trace_of(received(("traceparent", value), ("tracestate", "a=1"))) == {}
    assert trace_of({"traceparent": value}) == {}


def test_a_later_version_may_say_more():
    assert trace_of(received(("traceparent", f"cc{PARENT[2:]}-more"))) == {"traceparent": f"cc{PARENT[2:]}-more"}


@pytest.mark.parametrize("state", ["x" * 1025, "a=\n", "a=ä"])
def test_a_state_that_could_do_harm_is_left_out(state):
    assert trace_of(received(("traceparent", PARENT), ("tracestate", state))) == {"traceparent": PARENT}


def test_two_parents_are_none():
    assert trace_of(received(("traceparent", PARENT), ("Traceparent", OTHER))) == {}


@pytest.mark.parametrize("metadata", [{"traceparent": 5}, {"headers": 5}, {"headers": [["traceparent", None]]}])
def test_rows_written_by_hand_may_hold_anything(metadata):
    assert trace_of(metadata) == {}


def test_a_trace_goes_along_on_what_is_published_and_enqueued():
    metadata = received(("traceparent", PARENT), ("tracestate", "a=1"), ("other", "x"))

    assert sent(metadata, headers={"h": "v"}) == [("h", "v"), ("traceparent", PARENT), ("tracestate", "a=1")]
    child = enqueued(metadata, metadata={"note": 1})
    assert child == {"traceparent": PARENT, "tracestate": "a=1", "note": 1}
    assert sent(child) == [("traceparent", PARENT), ("tracestate", "a=1")]
    assert enqueued(child) == {"traceparent": PARENT, "tracestate": "a=1"}


def test_a_handler_s_own_trace_is_left_alone():
    metadata = received(("traceparent", PARENT), ("tracestate", "a=1"))

    assert sent(metadata, headers={"Traceparent": OTHER}) == [("Traceparent", OTHER)]
    assert enqueued(metadata, metadata={"traceparent": OTHER}) == {"traceparent": OTHER}


def test_without_a_trace_nothing_is_added():
    assert sent(received(("other", "x"))) == []
    assert enqueued({}) == {}


async def test_a_forwarded_message_has_its_trace_once():
    run = await run_handler(
        handlers.forward, b"x", headers={"traceparent": PARENT}, metadata={"to": {"connector": "out"}}
    )
    assert [value for name, value in run.published[0].headers if name == "traceparent"] == [PARENT.encode()]
