"""What every connector must do, as tests: subclass `ConnectorConformance` and give it a `harness`.

    class TestKafka(ConnectorConformance):
        @pytest.fixture
        async def harness(self): ...

What a protocol cannot do is switched off by a class attribute, with a comment that names the protocol's reason; the
test is then skipped visibly. The tests are coroutines: run them with pytest-asyncio in its automatic mode.
"""

import asyncio
import gc
import os
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from gateway.connector import Connector, InboundEntry, Inbox, Receipt, StoredPosition
from gateway.errors import DeliveryError, Disconnected
from gateway.message import Message

DEADLINE = 15.0
"""Seconds after which something that must happen has not."""


async def until(condition: Callable[[], object], seconds: float | None = None) -> None:
    """Wait until a condition holds. Raises `TimeoutError` if it does not in `seconds`, else in `DEADLINE`."""
    async with asyncio.timeout(DEADLINE if seconds is None else seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def stays(condition: Callable[[], Awaitable[bool]], seconds: float = 0.1) -> bool:
    """Say whether a condition holds for that long: the only way to see that something does not happen."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        if not await condition():
            return False
        await asyncio.sleep(0.01)
    return True


class Recorder(Inbox):
    """Plays the gateway: stores in memory, while `gate` is set; waits, as if the database were away, while not.

    While `error` is set, `receive` raises it and stores nothing. Knows duplicates by dedupe scope and id.
    """

    def __init__(self, *, on_ready: Callable[[], None] = lambda: None) -> None:
        self.stored: list[Message] = []
        self.offered: list[Message] = []
        self.readies = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self._on_ready = on_ready
        self._known: dict[tuple[str, str], tuple[str, bytes]] = {}

    def ready(self) -> None:
        """Count it."""
        self.readies += 1
        self._on_ready()

    async def receive(self, messages: Sequence[Message], entry: InboundEntry) -> Sequence[Receipt]:
        """Store, once the gate is open."""
        assert entry.handler
        self.offered.extend(messages)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [self._store(message) for message in messages]

    async def positions(self, cluster: str, topic: str, partitions: Iterable[int]) -> Mapping[int, StoredPosition]:
        """Return what the stored messages say."""
        found = [m.position for m in self.stored if m.position is not None]
        return {
            p.partition: StoredPosition(p.topic_id, p.next_offset)
            for p in sorted(found, key=lambda p: p.offset)
            if (p.cluster, p.topic) == (cluster, topic) and p.partition in set(partitions)
        }

    def _store(self, message: Message) -> Receipt:
        known = (message.dedupe_scope, message.dedupe_id) if message.dedupe_id is not None else None
        if known in self._known:
            job, body = self._known[known]
            return Receipt(job, duplicate=True, conflict=body != message.body)
        self.stored.append(message)
        job = f"job-{len(self.stored)}"
        if known is not None:
            self._known[known] = (job, message.body)
        return Receipt(job)


class Harness(ABC):
    """What the suite needs to know of a broker: the stranger's and the broker's own side."""

    minimal: ClassVar[Mapping[str, Any]]
    """The smallest configuration that loads, as it stands in YAML."""
    topic: str = "conformance"
    """Where messages are sent to and published."""

    @abstractmethod
    def connector(self, instance: int = 0) -> Connector[Any]:
        """Make the connector of that instance, afresh; instances share the broker and consume `topic` together."""

    @abstractmethod
    async def send(self, message: Message, instance: int = 0) -> None:
        """Bring a message to the broker as a stranger would, for that instance where there is no broker between.

        May return only once it is acknowledged. A sender that is the source itself (HTTP) repeats until it is.
        """

    @abstractmethod
    async def acknowledged(self) -> int:
        """Return how many messages the broker regards as done."""

    @abstractmethod
    async def delivered(self) -> Sequence[Message]:
        """Return what the broker was given by `publish`, with the `message_id` as its receivers would find it."""

    @abstractmethod
    async def stop_broker(self) -> None:
        """Stop the broker, keeping what it has stored."""

    @abstractmethod
    async def start_broker(self) -> None:
        """Start it again, at the same address."""

    def refusable(self) -> Message | None:
        """Return a message that the broker refuses, if there is such a thing."""
        return None


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
            await _cancel(life)

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
            await _cancel(sending)
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

    async def test_publishing_outside_a_life_is_a_delivery_error(self, harness: Harness) -> None:
        self._needs("publishes", "publishes_only_while_running")
        connector = harness.connector()
        with pytest.raises(DeliveryError):
            await connector.publish(Message(topic=harness.topic, body=b"early"))
        async with running(connector):
            await connector.publish(Message(topic=harness.topic, body=b"in time"))
        with pytest.raises(DeliveryError):
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
                await asyncio.wait_for(life, DEADLINE)
            with pytest.raises(Disconnected):
                await asyncio.wait_for(harness.connector().run(Recorder()), DEADLINE)
        finally:
            await harness.start_broker()
            await _cancel(life)
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
                await _cancel(life)
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
                await asyncio.wait_for(life, DEADLINE)

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
async def running(connector: Connector[Any], inbox: Recorder | None = None) -> AsyncIterator[Recorder]:
    """Run one life of a connector, ready, while the block runs. An error of the life is raised at the end."""
    inbox = inbox or Recorder()
    before = inbox.readies
    life = asyncio.create_task(connector.run(inbox))
    try:
        await until(lambda: inbox.readies > before or life.done())
        yield inbox
        assert not life.done(), "the life ended by itself"
    finally:
        if not life.done():
            await _cancel(life)
        elif life.exception() is not None:
            life.result()


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail if the block leaves a task, a thread or a socket behind."""

    def there() -> tuple[int, int, int]:
        gc.collect()
        return len(asyncio.all_tasks()), threading.active_count(), _sockets()

    before = there()
    yield
    try:
        await until(lambda: all(now <= then for now, then in zip(there(), before, strict=True)), min(5, DEADLINE))
    except TimeoutError:
        left = [str(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        pytest.fail(f"left behind: (tasks, threads, sockets) was {before}, is {there()}; tasks: {left}")


def _sockets() -> int:
    return sum(map(_is_socket, os.listdir("/proc/self/fd"))) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208 - strings of numbers


def _is_socket(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")  # noqa: PTH115 - no path of a file
    except OSError:
        return False  # closed meanwhile, as the one that listed them


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
        await _cancel(task)
    if not task.cancelled():
        task.result()


async def _sent(harness: Harness, message: Message | bytes) -> None:
    await harness.send(message if isinstance(message, Message) else Message(topic=harness.topic, body=message))


async def _is(harness: Harness, count: int) -> bool:
    return await harness.acknowledged() == count


async def _true(condition: bool) -> bool:
    return condition


async def _acknowledged(harness: Harness, count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await _is(harness, count):
            await asyncio.sleep(0.005)


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=DEADLINE)
    assert done, "it did not end within its deadline after being cancelled"
    if not task.cancelled():
        task.exception()  # seen; whoever cares for it looks at the task
