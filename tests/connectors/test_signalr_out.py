"""What goes out: how a message becomes an invocation, and what the hub's answer means for it."""

import asyncio
import json

import pytest

from gateway.errors import DeliveryError, Disconnected
from gateway.message import Message
from gateway.testing.harness import Recorder, cancel, until
from tests.connectors.signalr_tools import connector, receiving


@pytest.mark.parametrize("protocol", ["json", "messagepack"])
@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        (b'["a", 2]', ["a", 2]),
        (b'{"a": 1}', [{"a": 1}]),
        (b"5", [5]),
        (b"[]", []),
        (b"text", ["text"]),
        (b"", [""]),
        ("[é]".encode(), ["[é]"]),
        (b"NaN", ["NaN"]),
        (b"\xef\xbb\xbf[1]", [1]),
        ("[1]".encode("utf-16"), [1]),
    ],
)
async def test_a_body_is_the_list_of_arguments_or_the_one_argument(hub, protocol, body, arguments):
    async with receiving(hub, protocol=protocol) as (made, _):
        await made.publish(Message(topic="send", body=body))
    assert (await hub.control())["received"][0]["arguments"] == arguments


async def test_a_body_that_is_no_text_is_a_binary_argument(hub):
    for protocol in ("json", "messagepack"):
        async with receiving(hub, protocol=protocol) as (made, _):
            await made.publish(Message(topic="send", body=b"\x00\xff"))
    assert [each["arguments"] for each in (await hub.control())["received"]] == [["AP8="], [{"base64": "AP8="}]]


async def test_a_tombstone_is_null(hub):
    async with receiving(hub) as (made, _):
        await made.publish(Message(topic="send", tombstone=True))
    assert (await hub.control())["received"][0]["arguments"] == [None]


@pytest.mark.parametrize("protocol", ["json", "messagepack"])
async def test_headers_and_the_message_id_go_along(hub, protocol):
    headers = (("traceparent", b"00-1"), ("traceparent", b"second"))
    async with receiving(hub, protocol=protocol) as (made, _):
        await made.publish(Message(topic="send", body=b"1", headers=headers, message_id="job-1"))
    assert (await hub.control())["received"][0]["headers"] == {"traceparent": "00-1", "message-id": "job-1"}


async def test_a_methods_result_is_the_answer(hub):
    async with receiving(hub) as (made, _):
        results = [await made.publish(Message(topic="echo", body=body)) for body in (b'"text"', b'{"a":1}', b"null")]
        assert results == ["text", '{"a":1}', None]
        assert len(await made.publish(Message(topic="echo", body=b"x" * 30_000))) == 30_000


async def test_an_error_of_the_hub_is_permanent_and_a_missing_answer_is_not(hub):
    async with receiving(hub, timeout=0.3) as (made, _):
        for topic, text, permanent in (
            ("fail", "the hub refused fail: hub says no", True),
            ("nowhere", "Method does not exist: nowhere", True),
            ("hang", r"has not answered hang in 0\.3 seconds", False),
        ):
            with pytest.raises(DeliveryError, match=text) as caught:
                await made.publish(Message(topic=topic))
            assert caught.value.permanent is permanent
        assert await made.publish(Message(topic="echo", body=b"1")) == "1"


async def test_invocations_pending_when_the_connection_is_cut_are_told(hub):
    made, inbox = connector(hub.url), Recorder()
    life = asyncio.create_task(made.run(inbox))
    await until(lambda: inbox.readies)
    pending = [asyncio.create_task(made.publish(Message(topic="hang"))) for _ in range(50)]
    with pytest.raises(Disconnected, match="lost before the hub answered"):
        await asyncio.wait_for(made.publish(Message(topic="quit")), 5)
    errors = await asyncio.wait_for(asyncio.gather(*pending, return_exceptions=True), 5)
    assert {type(each) for each in errors} == {Disconnected}
    with pytest.raises(Disconnected):
        await asyncio.wait_for(life, 5)


async def test_an_invocation_that_the_hub_would_hang_up_on_is_refused(own_hub):
    hub = own_hub(max_message=32_768)
    async with receiving(hub) as (made, _):
        with pytest.raises(DeliveryError, match="max_invocation") as caught:
            await made.publish(Message(topic="send", body=b"x" * 33_000))
        assert caught.value.permanent
        await made.publish(Message(topic="send", body=b"x" * 32_000))
    assert len((await hub.control())["received"][0]["arguments"][0]) == 32_000


async def test_an_event_above_max_body_ends_the_life_and_says_so(hub):
    inbox = Recorder()
    life = asyncio.create_task(connector(hub.url, max_body=10_000).run(inbox))
    await until(lambda: inbox.readies)
    await hub.control("push", size=9_000)
    await until(lambda: inbox.stored)
    await hub.control("push", size=11_000)
    with pytest.raises(Disconnected, match="more than 10000 bytes at once"):
        await asyncio.wait_for(life, 5)


async def test_a_cancelled_publish_leaves_the_others_alone(hub):
    async with receiving(hub) as (made, _):
        hanging = asyncio.create_task(made.publish(Message(topic="hang")))
        await made.publish(Message(topic="echo", body=b"1"))
        await cancel(hanging)
        assert hanging.cancelled()
        assert await made.publish(Message(topic="echo", body=json.dumps("on").encode())) == "on"
