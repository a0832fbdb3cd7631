"""What goes over the wire, with a broker that does as a test tells it."""

import asyncio
import time

import pytest

from gateway.connector import Receipt
from gateway.errors import DeliveryError, Disconnected
from gateway.message import Message
from gateway.testing.connectors import Recorder, nothing_left, running, stays, until
from tests.connectors.stomp_tools import Scripted, connector, frame


@pytest.fixture
async def scripted():
    async with Scripted().running() as broker:
        yield broker


def given(number, body=b"x", subscription="0", **headers):
    """Return a MESSAGE frame."""
    pairs = {
        "subscription": subscription,
        "destination": "/queue/q",
        "message-id": f"ID:{number}",
        "ack": f"a:{number}",
    }
    return frame("MESSAGE", {**pairs, "content-length": len(body), **headers}, body)


async def true(condition):
    return condition


@pytest.mark.parametrize(("ack", "expected"), [("client", [["a:3"]]), ("client-individual", [["a:1", "a:2", "a:3"]])])
async def test_a_batch_is_acknowledged_in_order_once_it_is_stored(scripted, ack, expected):
    inbox = Recorder()
    inbox.gate.clear()
    async with running(connector(scripted, {"queue": "q", "ack": ack}), inbox):
        scripted.write(given(1) + given(2) + given(3))
        await until(lambda: len(inbox.offered) == 3)
        assert await stays(lambda: true("ACK" not in scripted.commands))
        inbox.gate.set()
        await until(lambda: len(scripted.of("ACK")) == len(expected[0]))
    assert [[each.headers["id"] for each in scripted.of("ACK")]] == expected
    assert scripted.of("SUBSCRIBE")[0].headers["ack"] == ack


async def test_each_entry_acknowledges_its_own(scripted):
    async with running(connector(scripted, {"queue": "q"}, {"topic": "t", "prefetch": 7})) as inbox:
        scripted.write(given(1) + given(2, subscription="1") + given(3))
        await until(lambda: len(scripted.of("ACK")) == 2)
    assert [message.dedupe_scope for message in inbox.stored] == ["/queue/q", "/queue/q", "/topic/t\n\nh"]
    assert {each.headers["id"] for each in scripted.of("ACK")} == {"a:3", "a:2"}
    assert scripted.of("SUBSCRIBE")[1].headers["activemq.prefetchSize"] == "7"


async def test_what_cannot_be_stored_is_neither_acknowledged_nor_refused(scripted):
    inbox = Recorder()
    inbox.error = Disconnected("the database says no")
    life = asyncio.create_task(connector(scripted, {"queue": "q"}).run(inbox))
    await until(lambda: inbox.readies)
    scripted.write(given(1))

    with pytest.raises(Disconnected, match="the database says no"):
        await life

    assert "ACK" not in scripted.commands
    assert "NACK" not in scripted.commands
    assert scripted.commands.count("DISCONNECT") == 2  # in order, so that Artemis does not count it as a failure


async def test_another_message_with_a_known_id_is_stored_all_the_same(scripted):
    async with running(connector(scripted, {"queue": "q"})) as inbox:
        scripted.write(given(1, b"one") + given(1, b"one") + given(1, b"other") + given(1, b"other"))
        await until(lambda: scripted.of("ACK"))
    assert [message.body for message in inbox.stored] == [b"one", b"other"]


async def test_what_is_filtered_is_acknowledged(scripted):
    class Unwanted(Recorder):
        async def receive(self, messages, entry):
            return [Receipt("") for _ in messages]

    async with running(connector(scripted, {"queue": "q"}), Unwanted()):
        scripted.write(given(1))
        await until(lambda: scripted.of("ACK"))


async def test_nothing_more_is_read_while_too_many_bytes_wait(scripted):
    inbox = Recorder()
    inbox.gate.clear()
    entry = {"queue": "q", "prefetch": 1}
    async with running(connector(scripted, entry, max_pending_bytes=500_000, heartbeat=0.5), inbox):
        scripted.write(b"".join(given(n, b"x" * 100_000) for n in range(200)))
        await until(lambda: inbox.offered)
        with pytest.raises(TimeoutError):  # far more than the kernel's own buffers hold
            await asyncio.wait_for(scripted.writers[0].drain(), 2)
        inbox.gate.set()
        await until(lambda: len(inbox.stored) == 200)
    assert inbox.readies == 1  # nor did the silence of a broker that is not listened to count


async def test_frames_after_many_heart_beats_are_not_lost(scripted):
    async with running(connector(scripted, {"queue": "q"})) as inbox:
        scripted.write(b"\n\n\n" + given(1, b"a\x00b") + b"\n\n" + given(2))
        await until(lambda: len(inbox.stored) == 2)
    assert inbox.stored[0].body == b"a\x00b"


async def test_heart_beats_are_sent_more_often_than_promised_and_silence_ends_the_life(scripted):
    scripted.greeting["heart-beat"] = "200,200"
    began = time.monotonic()
    with pytest.raises(Disconnected, match=r"no sign of life for 0.[5-9] seconds"):
        await asyncio.wait_for(connector(scripted, {"queue": "q"}, heartbeat=0.2).run(Recorder()), 10)
    assert 0.4 < time.monotonic() - began < 5
    assert scripted.frames[0].headers["heart-beat"] == "400,200"


async def test_a_broker_with_heart_beats_of_its_own_is_kept(scripted):
    scripted.greeting["heart-beat"] = "200,0"

    async def beat():
        while True:
            for writer in scripted.writers:
                writer.write(b"\n")
            await asyncio.sleep(0.1)

    beating = asyncio.create_task(beat())
    life = asyncio.create_task(connector(scripted, {"queue": "q"}, heartbeat=0.2).run(Recorder()))
    assert await stays(lambda: true(not life.done()), 1.5)
    for task in (life, beating):
        task.cancel()
    await asyncio.wait({life, beating})


@pytest.mark.parametrize("offer", ["0,0", "60000,0"])
async def test_a_broker_without_timely_heart_beats_is_asked_for_answers(scripted, offer):
    scripted.greeting["heart-beat"] = offer
    life = asyncio.create_task(connector(scripted, heartbeat=0.2).run(Recorder()))
    await until(lambda: len(scripted.of("ABORT")) > 10)
    assert not life.done()

    scripted.silent.add("ABORT")

    with pytest.raises(Disconnected, match="no sign of life"):
        await asyncio.wait_for(life, 10)


async def test_an_error_ends_the_life_with_the_brokers_words(scripted):
    life = asyncio.create_task(connector(scripted, {"queue": "q"}).run(Recorder()))
    await until(lambda: "SUBSCRIBE" in scripted.commands)
    scripted.write(frame("ERROR", {"message": "you are not: welcome"}, b"java.lang.Exception\n\tat a.b.c"))

    with pytest.raises(Disconnected, match=r"127.0.0.1:\d+ answers: you are not: welcome$"):
        await asyncio.wait_for(life, 10)


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n\x00", b"x" * 2_000_000, b"M\ncontent-length:1\n\nabc", given(1, ack="")],
)
async def test_what_is_no_stomp_ends_the_life(scripted, garbage):
    life = asyncio.create_task(connector(scripted, {"queue": "q"}).run(Recorder()))
    await until(lambda: "SUBSCRIBE" in scripted.commands)
    scripted.write(garbage.replace(b"\nack:\n", b"\n"))

    with pytest.raises(Disconnected, match="no STOMP"):
        await asyncio.wait_for(life, 10)


@pytest.mark.parametrize("silent", ["STOMP", "SUBSCRIBE"])
async def test_a_broker_that_does_not_answer_is_given_up_in_time(scripted, silent):
    scripted.silent.add(silent)
    async with nothing_left():
        with pytest.raises(Disconnected, match=r"0.3 seconds"):
            await asyncio.wait_for(connector(scripted, {"queue": "q"}, connect_timeout=0.3).run(Recorder()), 10)


async def test_an_old_broker_is_not_used(scripted):
    scripted.greeting["version"] = "1.1"
    async with nothing_left():
        with pytest.raises(Disconnected, match=r"does not speak STOMP 1.2"):
            await connector(scripted).run(Recorder())


async def test_a_message_without_a_receipt_in_time_was_not_delivered(scripted):
    sending = connector(scripted, send_timeout=0.2)
    scripted.silent.add("SEND")
    async with running(sending):
        with pytest.raises(DeliveryError, match=r"did not confirm it within 0.2 seconds"):
            await sending.publish(Message(topic="q"))
        scripted.silent.clear()
        await sending.publish(Message(topic="q"))


async def test_a_message_that_is_refused_fails_alone(scripted):
    sending = connector(scripted)
    scripted.silent.add("SEND")
    async with running(sending):
        first, second = (asyncio.create_task(sending.publish(Message(topic=topic))) for topic in ("a", "b"))
        await until(lambda: len(scripted.of("SEND")) == 2)
        receipts = [each.headers["receipt"] for each in scripted.of("SEND")]
        scripted.write(frame("ERROR", {"message": "no right", "receipt-id": receipts[0]}))
        scripted.write(frame("RECEIPT", {"receipt-id": receipts[1]}))
        with pytest.raises(DeliveryError, match="answers: no right"):
            await first
        await second
    assert [each.headers["destination"] for each in scripted.of("SEND")] == ["/queue/a", "/queue/b"]


async def test_a_lost_connection_fails_what_was_on_its_way(scripted):
    sending = connector(scripted)
    scripted.silent.add("SEND")
    life = asyncio.create_task(sending.run(Recorder()))
    await until(lambda: sending._out)
    several = [asyncio.create_task(sending.publish(Message(topic="q", body=b"x"))) for _ in range(20)]
    await until(lambda: len(scripted.of("SEND")) == 20)
    scripted.writers[0].close()

    failures = await asyncio.gather(*several, return_exceptions=True)

    assert {type(failure) for failure in failures} == {Disconnected}
    with pytest.raises(Disconnected, match="closed the connection"):
        await life


async def test_a_broker_that_takes_no_more_holds_messages_back_in_bounded_memory(scripted):
    sending = connector(scripted, send_timeout=0.5, heartbeat=10)
    async with running(sending):
        link = sending._out
        transport = scripted.writers[0].transport
        transport.pause_reading()  # as a broker does whose store is full
        results = await asyncio.gather(
            *(sending.publish(Message(topic="q", body=b"x" * 500_000)) for _ in range(60)), return_exceptions=True
        )
        assert all(isinstance(result, DeliveryError) for result in results)
        before = link._transport.get_write_buffer_size()
        for _ in range(3):
            with pytest.raises(DeliveryError):
                await sending.publish(Message(topic="q", body=b"x" * 500_000))
        assert link._transport.get_write_buffer_size() == before
        transport.resume_reading()


@pytest.mark.parametrize(
    "message",
    [Message(topic=""), Message(topic="q", body=b"x" * 2000), Message(topic="q", headers=(("a", b"x" * 11_000),))],
)
async def test_what_no_broker_takes_fails_for_good_before_it_is_sent(scripted, message):
    sending = connector(scripted, max_message=1024)
    async with running(sending):
        with pytest.raises(DeliveryError) as caught:
            await sending.publish(message)
        assert caught.value.permanent
    assert "SEND" not in scripted.commands


async def test_the_next_broker_of_the_list_is_used_and_all_reasons_are_told(scripted):
    async with Scripted().running() as gone:
        nobody = gone.url
    async with Scripted().running() as mute:
        mute.silent.add("STOMP")
        urls = [nobody, mute.url, scripted.url]
        sending = connector(scripted, {"queue": "q"}, urls=urls, connect_timeout=0.3)
        async with running(sending), nothing_left():
            await sending.publish(Message(topic="q"))
        assert len(scripted.writers) == 2
        with pytest.raises(Disconnected, match=r"cannot be reached: .*; .* did not answer within 0.3 seconds"):
            await connector(scripted, urls=urls[:2], connect_timeout=0.3).run(Recorder())


async def test_the_check_logs_in_and_takes_nothing(scripted):
    found = await connector(scripted, {"topic": "t", "subscription": "s"}, client_id="c").check()

    assert found == f"scripted answers at 127.0.0.1:{scripted.port}"
    assert "client-id" not in scripted.frames[0].headers
    assert scripted.commands[1:] == ["DISCONNECT"]


async def test_a_durable_subscription_is_asked_for_in_the_words_of_both_brokers(scripted):
    entry = {"topic": "t", "subscription": "s", "selector": "a = 'b:c'"}
    async with running(connector(scripted, entry, client_id="c", virtual_host="v")):
        greetings = [scripted.frames[0], next(each for each in scripted.frames[1:] if "accept-version" in each.headers)]
    assert [each.headers.get("client-id") for each in greetings] == ["c", None]  # one may be connected with it
    assert greetings[0].headers["host"] == "v"
    headers = scripted.of("SUBSCRIBE")[0].headers
    assert headers["activemq.subscriptionName"] == headers["durable-subscription-name"] == "s"
    assert headers["selector"] == "a = 'b:c'"
