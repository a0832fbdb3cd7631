"""What every connector must do, as tests: subclass `ConnectorConformance` and give it a `harness`.

    class TestKafka(ConnectorConformance):
        @pytest.fixture
        async def harness(self): ...

What a protocol cannot do is switched off by a class attribute, with a comment that names the protocol's reason; the
test is then skipped visibly. The tests are coroutines: run them with pytest-asyncio in its automatic mode.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from pydantic import ValidationError

from gateway.errors import DeliveryError, Disconnected, NotConnected
from gateway.message import Message
from gateway.testing.harness import Harness, Recorder, cancel, nothing_left, running, stays, until, within

__all__ = ["ConnectorConformance", "Harness", "Recorder", "nothing_left", "running", "stays", "until"]


class ConnectorConformance:
    """The tests. Each true switch is a promise; one that is false says what the protocol cannot do."""

    redelivers: ClassVar[bool] = True
    """What was not acknowledged is offered again, to the next life."""
    keeps_order: ClassVar[bool] = True
    carries_key: ClassVar[bool] = True
    carries_headers: ClassVar[bool] = True
    has_message_id: ClassVar[bool] = True
    """A published message arrives with its `message_id`."""
    has_dedupe_id: ClassVar[bool] = True
    """A redelivered message has the dedupe id it had before."""
    receives: ClassVar[bool] = True
    publishes: ClassVar[bool] = True
    publishes_only_while_running: ClassVar[bool] = True
    has_broker: ClassVar[bool] = True
    """There is something in between that can go away and come back."""
    takes_binary: ClassVar[bool] = True
    blocked_for: ClassVar[float] = 2.0
    """Seconds for which the database is away in the test of back-pressure."""
    prefetch: ClassVar[int | None] = None
    """How many messages a consumer may hold at most."""
    many: ClassVar[int] = 1000

    @pytest.fixture
    def harness(self) -> Harness:
        """Override: a broker, and how to reach it."""
        raise NotImplementedError("a conformance test gives its harness")

    async def test_a_message_is_stored_whole_and_then_acknowledged(self, harness: Harness) -> None:
        self._needs("receives")
        bodies = [b"text", b"", b"x" * 1_000_000] + [b"\x00\xff\x80binary\r\n\x00"] * self.takes_binary
        async with running(harness.connector()) as inbox:
            for body in bodies:
                await _sent(harness, body)
                await until(lambda body=body: inbox.stored and inbox.stored[-1].body == body)  # type: ignore[misc]
            await _acknowledged(harness, len(bodies))
        assert [len(message.body) for message in inbox.stored] == [len(body) for body in bodies]

    async def test_nothing_is_acknowledged_while_it_is_being_stored(self, harness: Harness) -> None:
        self._needs("receives")
        inbox = Recorder()
        inbox.gate.clear()
        async with running(harness.connector(), inbox), _sending(harness, [b"x"]):
            await until(lambda: inbox.offered)
            assert await stays(lambda: _is(harness, 0)), "acknowledged before it was stored"
            inbox.gate.set()
            await _acknowledged(harness, 1)

    async def test_what_could_not_be_stored_is_not_acknowledged(self, harness: Harness) -> None:
        self._needs("receives")
        inbox = Recorder()
        inbox.error = Disconnected("the position was moved by another consumer")
        connector = harness.connector()
        life = asyncio.create_task(connector.run(inbox))
        try:
            await until(lambda: inbox.readies or life.done())
            async with _sending(harness, [b"x"]):
                await until(lambda: inbox.offered)
                assert await stays(lambda: _is(harness, 0)), "acknowledged although it was not stored"
                inbox.error = None  # a life that goes on may be offered it again, and take it
        finally:
            await cancel(life)

    async def test_order_is_kept(self, harness: Harness) -> None:
        self._needs("receives", "keeps_order")
        bodies = [b"%d" % n for n in range(self.many)]
        async with running(harness.connector()) as inbox:
            async with _sending(harness, bodies):
                await until(lambda: len(inbox.stored) == len(bodies), 60)
            await _acknowledged(harness, len(bodies))
        assert [message.body for message in inbox.stored] == bodies

    async def test_a_life_cancelled_while_storing_leaves_its_messages_to_the_next(self, harness: Harness) -> None:
        self._needs("receives", "redelivers")
        message = Message(topic=harness.topic, body=b"again", headers=(("trace", b"7"),), dedupe_id="conformance-1")
        first, second = Recorder(), Recorder()
        first.gate.clear()
        sending = asyncio.create_task(harness.send(message))
        try:
            async with running(harness.connector(), first):
                await until(lambda: first.offered)
            assert await _is(harness, 0), "acknowledged although the store was cancelled"
            async with running(harness.connector(), second):
                await until(lambda: second.stored)
                await _acknowledged(harness, 1)
                await sending
        finally:
            await cancel(sending)
        before, after = first.offered[0], second.stored[0]
        assert (before.topic, before.body, before.key) == (after.topic, after.body, after.key)
        if self.has_dedupe_id:
            assert before.dedupe_id == after.dedupe_id is not None

    async def test_headers_and_key_arrive(self, harness: Harness) -> None:
        self._needs("receives")
        if not (self.carries_headers or self.carries_key):
            pytest.skip("this protocol carries neither headers nor keys")
        message = Message(topic=harness.topic, body=b"x", key=b"key-1", headers=(("trace-id", b"abc"), ("n", b"1")))
        async with running(harness.connector()) as inbox, _sending(harness, [message]):
            await until(lambda: inbox.stored)
        if self.carries_headers:
            assert (inbox.stored[0].header("trace-id"), inbox.stored[0].header("N")) == ("abc", "1")
        if self.carries_key:
            assert inbox.stored[0].key == b"key-1"

    async def test_a_published_message_reaches_the_broker(self, harness: Harness) -> None:
        self._needs("publishes")
        body = b"\x00\xffout" if self.takes_binary else b"out"
        connector = harness.connector()
        async with running(connector):
            await connector.publish(Message(topic=harness.topic, body=body, message_id="job-77"))
            delivered = await harness.delivered()
        assert [message.body for message in delivered] == [body]
        if self.has_message_id:
            assert delivered[0].message_id == "job-77"

    async def test_publishing_outside_a_life_sends_nothing_and_says_so(self, harness: Harness) -> None:
        self._needs("publishes", "publishes_only_while_running")
        connector = harness.connector()
        with pytest.raises(NotConnected):
            await connector.publish(Message(topic=harness.topic, body=b"early"))
        async with running(connector):
            await connector.publish(Message(topic=harness.topic, body=b"in time"))
        with pytest.raises(NotConnected):
            await connector.publish(Message(topic=harness.topic, body=b"late"))
        assert [message.body for message in await harness.delivered()] == [b"in time"]

    async def test_many_publish_at_once_and_one_that_fails_fails_alone(self, harness: Harness) -> None:
        self._needs("publishes")
        connector, refused = harness.connector(), harness.refusable()
        bodies = [b"%d" % n for n in range(200)]
        messages = [Message(topic=harness.topic, body=body, message_id=body.decode()) for body in bodies]
        messages[100:100] = [refused] if refused is not None else []
        async with running(connector):
            results = await asyncio.gather(*map(connector.publish, messages), return_exceptions=True)
            delivered = await harness.delivered()
        failed = [n for n, result in enumerate(results) if isinstance(result, BaseException)]
        assert failed == ([100] if refused is not None else [])
        assert all(isinstance(results[n], DeliveryError) for n in failed)
        assert sorted(message.body for message in delivered) == sorted(bodies)

    async def test_a_life_is_ready_once_and_then_nothing_sent_is_missed(self, harness: Harness) -> None:
        for _ in range(3):
            async with running(harness.connector()) as inbox:
                if self.receives:
                    async with _sending(harness, [b"at once"]):
                        await until(lambda inbox=inbox: inbox.stored)  # type: ignore[misc]
                assert await stays(lambda inbox=inbox: _true(inbox.readies == 1), 0.05)  # type: ignore[misc]

    async def test_a_broker_that_goes_away_ends_the_life_and_none_of_its_messages(self, harness: Harness) -> None:
        self._needs("has_broker")
        inbox = Recorder()
        life = asyncio.create_task(harness.connector().run(inbox))
        try:
            await until(lambda: inbox.readies)
            if self.receives:
                await _sent(harness, b"before")
                await until(lambda: inbox.stored)
            await harness.stop_broker()
            with pytest.raises(Disconnected):
                await within(life)
            with pytest.raises(Disconnected):
                await within(harness.connector().run(Recorder()))
        finally:
            await harness.start_broker()
            await cancel(life)
        async with running(harness.connector(), inbox):
            if self.receives:
                async with _sending(harness, [b"after"]):
                    await until(lambda: any(message.body == b"after" for message in inbox.stored))

    async def test_a_database_that_is_away_holds_back_the_source_and_breaks_nothing(self, harness: Harness) -> None:
        self._needs("receives")
        count = 3 * (self.prefetch or 100)
        inbox = Recorder()
        inbox.gate.clear()
        async with running(harness.connector(), inbox) as inbox, _sending(harness, [b"%d" % n for n in range(count)]):
            await until(lambda: inbox.offered)
            assert await stays(lambda: _is(harness, 0), self.blocked_for)
            assert len(inbox.offered) <= (self.prefetch or count)
            inbox.gate.set()
            await until(lambda: len(inbox.stored) == count, 60)
            await _acknowledged(harness, count)
        assert sorted(int(message.body) for message in inbox.stored) == list(range(count))
        assert inbox.readies == 1

    async def test_cancelled_at_any_moment_nothing_is_left(self, harness: Harness) -> None:
        chance = random.Random(20)  # noqa: S311 - moments, the same each time
        async with nothing_left():
            for _ in range(20):
                inbox = Recorder()
                life = asyncio.create_task(harness.connector().run(inbox))
                if chance.random() < 0.5:
                    await until(lambda inbox=inbox, life=life: inbox.readies or life.done())  # type: ignore[misc]
                await asyncio.sleep(chance.random() * 0.02)
                await cancel(life)
                assert life.cancelled(), "the cancellation was swallowed"

    async def test_a_failed_store_leaves_nothing(self, harness: Harness) -> None:
        self._needs("receives", "has_broker")
        async with nothing_left():
            inbox = Recorder()
            inbox.error = Disconnected("another consumer took over")
            life = asyncio.create_task(harness.connector().run(inbox))
            await until(lambda: inbox.readies)
            await _sent(harness, b"x")
            with pytest.raises(Disconnected):
                await within(life)

    async def test_the_smallest_configuration_loads_and_mistakes_are_named(self, harness: Harness) -> None:
        config_class = type(harness.connector()).config_class
        config_class.model_validate(harness.minimal)
        for broken in ({"no_such_key": 1}, {"type": 7}, {"inbound": [{"handler": 7}]}):
            with pytest.raises(ValidationError) as caught:
                config_class.model_validate({**harness.minimal, **broken})
            assert any(next(iter(broken)) in error["loc"] for error in caught.value.errors())

    async def test_two_instances_do_not_disturb_each_other(self, harness: Harness) -> None:
        self._needs("receives")
        inbox = Recorder()
        async with running(harness.connector(1), inbox):
            async with running(harness.connector(0), inbox):
                await harness.send(Message(topic=harness.topic, body=b"both"), instance=0)
                await until(lambda: len(inbox.stored) == 1)
            await harness.send(Message(topic=harness.topic, body=b"one left"), instance=1)
            await until(lambda: len(inbox.stored) == 2)
        assert [message.body for message in inbox.stored] == [b"both", b"one left"]

    def _needs(self, *switches: str) -> None:
        for switch in switches:
            if not getattr(self, switch):
                pytest.skip(f"{type(self).__name__}.{switch} is off")


@asynccontextmanager
async def _sending(harness: Harness, messages: Sequence[Message | bytes]) -> AsyncIterator[None]:
    async def one_by_one() -> None:
        for message in messages:
            await _sent(harness, message)

    task = asyncio.create_task(one_by_one())
    try:
        yield
        await until(task.done)
    finally:
        await cancel(task)
    if not task.cancelled():
        task.result()


async def _sent(harness: Harness, message: Message | bytes) -> None:
    await harness.send(message if isinstance(message, Message) else Message(topic=harness.topic, body=message))


async def _is(harness: Harness, count: int) -> bool:
    return await harness.acknowledged() == count


async def _true(condition: bool) -> bool:
    return condition


async def _acknowledged(harness: Harness, count: int) -> None:
    async def reached() -> None:
        while not await _is(harness, count):
            await asyncio.sleep(0.005)

    await within(reached())
