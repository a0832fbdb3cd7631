"""What a SignalR hub sends, how a connection to it comes about, and how one is lost."""

import asyncio
import signal

import pytest

from gateway.errors import ConfigError, Disconnected
from gateway.message import Message
from gateway.testing.harness import Recorder, nothing_left, running, until
from tests.connectors.signalr_tools import EVENT, connector, receiving, seen


@pytest.mark.parametrize("protocol", ["json", "messagepack"])
async def test_an_events_body_is_the_list_of_its_arguments(hub, protocol):
    arguments = [1, "é\u0000", None, {"a": [True, 1.5]}]
    async with receiving(hub, protocol=protocol) as (_, inbox):
        await hub.control("invoke", {"target": "Event", "arguments": arguments})
        await until(lambda: inbox.stored)
    (message,) = inbox.stored
    assert message.json() == arguments
    assert (message.topic, message.content_type) == ("Event", "application/json")


async def test_a_json_event_keeps_its_numbers_as_the_hub_wrote_them(hub):
    arguments = '[12345678901234567890.12345678901234567890,1.10, "\\u00e9" ]'
    async with receiving(hub) as (_, inbox):
        await hub.control("raw", f'{{"type":1,"target":"event","arguments":{arguments}}}\x1e')
        await until(lambda: inbox.stored)
    assert inbox.stored[0].body.decode() == arguments


async def test_binary_arguments_of_messagepack_become_base64(hub):
    async with receiving(hub, protocol="messagepack") as (_, inbox):
        await hub.control("invoke", {"target": "event", "arguments": [{"base64": "AP8="}, "text"]})
        await until(lambda: inbox.stored)
    assert inbox.stored[0].json() == ["AP8=", "text"]


async def test_events_that_no_entry_receives_are_left_out(hub):
    async with receiving(hub) as (_, inbox):
        await hub.control("invoke", {"target": "other", "arguments": [1], "id": "o"})
        await hub.control("invoke", {"target": "event", "arguments": [2], "id": "e"})
        state = await seen(hub, lambda state: len(state["answers"]) == 2)
    assert [message.json() for message in inbox.stored] == [[2]]
    assert state["answers"] == {"o": "nobody receives other here", "e": "job-1"}


async def test_a_slow_event_does_not_hold_back_the_reader_of_answers(hub):
    inbox = Recorder()
    inbox.gate.clear()
    async with receiving(hub, inbox) as (made, _):
        await hub.control("push", count=10)
        await until(lambda: inbox.offered)
        assert await made.publish(Message(topic="echo", body=b'["still there"]')) == "still there"
        inbox.gate.set()
        await until(lambda: len(inbox.stored) == 10)


async def test_a_flood_stays_at_the_hub_while_it_cannot_be_stored(hub):
    inbox = Recorder()
    inbox.gate.clear()
    async with receiving(hub, inbox, max_pending=1000, max_pending_bytes=100_000, server_timeout=1) as (_, _):
        await hub.control("push", count=20_000, size=2000)
        state = await seen(hub, lambda state: state["buffered"] > 10_000_000)
        await asyncio.sleep(1.5)  # longer than the hub may be silent: it is not, it is not listened to
        assert len(inbox.offered) < 50
        assert (await hub.control())["buffered"] > state["buffered"] - 5_000_000
        inbox.gate.set()
        await until(lambda: len(inbox.stored) == 20_000, 60)
    assert [message.json()[0]["i"] for message in inbox.stored] == list(range(20_000))
    assert inbox.readies == 1


async def test_what_has_arrived_is_stored_when_the_connector_stops(hub):
    inbox = Recorder()
    inbox.gate.clear()
    life = asyncio.create_task(connector(hub.url).run(inbox))
    await until(lambda: inbox.readies)
    await hub.control("push", count=5)
    await until(lambda: inbox.offered)
    life.cancel()
    await asyncio.sleep(0)
    inbox.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert len(inbox.stored) == 5


async def test_a_stop_does_not_wait_long_for_a_database_that_is_away(hub):
    async with nothing_left():
        inbox = Recorder()
        inbox.gate.clear()
        life = asyncio.create_task(connector(hub.url).run(inbox))
        await until(lambda: inbox.readies)
        await hub.control("push", count=5)
        await until(lambda: inbox.offered)
        life.cancel()
        await asyncio.wait({life}, timeout=5)
        assert life.cancelled()
    inbox.gate.set()
    assert inbox.stored == []


async def test_what_has_arrived_is_stored_when_the_hub_goes_away(hub):
    inbox = Recorder()
    inbox.gate.clear()
    life = asyncio.create_task(connector(hub.url).run(inbox))
    await until(lambda: inbox.readies)
    await hub.control("push", count=5)
    await until(lambda: inbox.offered)
    await hub.control("abort")
    await seen(hub, lambda state: state["connections"] == 0)
    inbox.gate.set()
    with pytest.raises(Disconnected):
        await asyncio.wait_for(life, 10)
    assert len(inbox.stored) == 5


async def test_a_hub_is_asked_to_go_on_after_the_last_stored_event(hub):
    inbox = Recorder()
    entry = EVENT | {"resume": {"method": "subscribe", "position": "body[0].id"}}
    async with receiving(hub, inbox, inbound=[entry]):
        for n in range(3):
            await hub.control("enqueue", {"target": "event", "n": n})
        await until(lambda: len(inbox.stored) == 3)
    await hub.control("enqueue", {"target": "event", "n": 3})
    last = inbox.stored[-1].json()[0]["id"]
    async with receiving(hub, inbox, inbound=[entry]):
        await until(lambda: len(inbox.stored) >= 4)
    assert [message.json()[0]["n"] for message in inbox.stored] == [0, 1, 2, 3]
    assert (await hub.control())["joined"] == [None, last]


async def test_an_acknowledgement_that_the_hub_refuses_ends_the_life(hub):
    inbox = Recorder()
    entry = EVENT | {"acknowledge": {"method": "fail", "id": "body[0].i"}}
    life = asyncio.create_task(connector(hub.url, inbound=[entry]).run(inbox))
    await until(lambda: inbox.readies)
    await hub.control("push")
    with pytest.raises(Disconnected, match="the hub refused fail: hub says no"):
        await asyncio.wait_for(life, 10)


# How it connects.


async def test_the_token_is_read_again_at_every_connect(own_hub, tmp_path):
    hub = own_hub(token="first")
    file = tmp_path / "token"
    file.write_text("first\n")
    async with receiving(hub, token_file=str(file)):
        pass
    hub.allow("second")
    with pytest.raises(Disconnected, match="401"):
        await connector(hub.url, token_file=str(file)).run(Recorder())
    file.write_text("second")
    async with receiving(hub, token_file=str(file)) as (made, _):
        assert await made.publish(Message(topic="echo", body=b"1")) == "1"
    file.unlink()
    with pytest.raises(ConfigError, match="token_file"):
        await connector(hub.url, token_file=str(file)).run(Recorder())
    state = await hub.control()
    assert [each["token"] for each in state["requests"]] == ["first", "first", "first", "second", "second"]


async def test_headers_and_token_go_along_with_both_requests_and_nowhere_else(hub):
    async with receiving(hub, headers={"X-Plant": "7"}, token="secret") as (made, _):
        await made.publish(Message(topic="send", body=b"1"))
    state = await hub.control()
    assert [(each["custom"], each["token"]) for each in state["requests"]] == [("7", "secret")] * 2
    assert state["received"] == [{"headers": {}, "arguments": [1]}]


async def test_negotiation_can_be_left_out_and_can_lead_elsewhere(hub):
    async with receiving(hub, skip_negotiation=True):
        pass
    elsewhere = hub.url.replace("/hub", "/elsewhere?give=other")
    async with running(connector(elsewhere, token="mine")):
        pass
    requests = (await hub.control())["requests"]
    assert [each["method"] for each in requests] == ["GET", "POST", "GET"]
    assert [each["token"] for each in requests] == ["", "other", "other"]


async def test_the_check_says_what_answers_and_invokes_nothing(hub):
    made = connector(hub.url + "?key=secret", on_connect=[{"method": "join", "arguments": ["g"]}])
    assert await made.check() == f"the hub {hub.url} answers (json)"
    assert (await hub.control())["joined"] == []


async def test_a_method_invoked_at_connect_must_succeed(hub):
    made = connector(hub.url, on_connect=[{"method": "join", "arguments": ["g"]}, {"method": "fail"}])
    with pytest.raises(Disconnected, match="the hub refused fail: hub says no"):
        await made.run(Recorder())
    made = connector(hub.url, on_connect=[{"method": "hang"}], timeout=0.2)
    with pytest.raises(Disconnected, match=r"has not answered hang in 0\.2 seconds"):
        await made.run(Recorder())


# Faults.


async def test_a_killed_hub_is_noticed_and_used_again_once_it_is_back(own_hub):
    hub, inbox = own_hub(), Recorder()
    life = asyncio.create_task(connector(hub.url).run(inbox))
    await until(lambda: inbox.readies)
    hub.kill()
    with pytest.raises(Disconnected):
        await asyncio.wait_for(life, 5)
    hub.start()
    async with receiving(hub, inbox):
        await hub.control("push")
        await until(lambda: inbox.stored)


@pytest.mark.parametrize("publishing", [False, True])
async def test_a_frozen_hub_is_noticed_and_nothing_of_it_is_left(own_hub, publishing):
    hub = own_hub(keep_alive=0.2, max_message=10_000_000)
    big = Message(topic="echo", body=b"x" * 5_000_000)
    async with nothing_left():
        made = connector(hub.url, server_timeout=0.8, ping_interval=0.3, max_invocation=10_000_000)
        inbox = Recorder()
        life = asyncio.create_task(made.run(inbox))
        await until(lambda: inbox.readies)
        hub.signal(signal.SIGSTOP)
        try:
            sends = [asyncio.create_task(made.publish(big)) for _ in range(4 * publishing)]
            with pytest.raises(Disconnected, match="silent"):
                await asyncio.wait_for(life, 5)
            failed = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 5)
        finally:
            hub.signal(signal.SIGCONT)
        assert all(isinstance(each, Disconnected) for each in failed)


async def test_the_hub_keeps_a_connector_that_has_nothing_to_say(own_hub):
    hub = own_hub(client_timeout=0.5, keep_alive=0.2)
    async with receiving(hub, ping_interval=0.1, server_timeout=1):
        await seen(hub, lambda state: state["pings"] >= 10)
        assert (await hub.control())["connections"] == 1


async def test_a_websocket_ping_is_answered_and_no_message(hub):
    for protocol in ("json", "messagepack"):
        async with receiving(hub, protocol=protocol) as (_, inbox):
            await hub.control("ping")
            await hub.control("push")
            await until(lambda inbox=inbox: inbox.stored)


async def test_a_close_message_ends_the_life_with_the_hubs_reason(hub):
    inbox = Recorder()
    life = asyncio.create_task(connector(hub.url).run(inbox))
    await until(lambda: inbox.readies)
    await hub.control("close")
    with pytest.raises(Disconnected, match="the hub is told to"):
        await asyncio.wait_for(life, 5)
