import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.connector import Connector, ConnectorConfig, Inbox
from gateway.errors import ConfigError, Disconnected
from gateway.message import Message
from gateway.supervisor import ConnectorState, Supervisor
from gateway.telemetry import subscribed
from gateway.testing.connectors import Recorder, until


class Scripted(Connector[ConnectorConfig]):
    """A connector whose life is a function."""

    config_class = ConnectorConfig
    protocol = "memory"

    def __init__(self, life):
        super().__init__(ConnectorConfig(type="memory"), name="c")
        self.life = life

    async def run(self, inbox: Inbox) -> None:
        await self.life(inbox)

    async def publish(self, message: Message) -> str | None:
        return message.topic


class Lives:
    """Plays one function per life, the last one again and again."""

    def __init__(self, *lives: Callable):
        self.lives, self.made = list(lives), []

    def __call__(self):
        connector = Scripted(self.lives[min(len(self.made), len(self.lives) - 1)])
        self.made.append(connector)
        return connector


async def for_ever(inbox):
    inbox.ready()
    await asyncio.Event().wait()


def raises(error):
    async def life(inbox):
        raise error

    return life


def supervisor(lives, **options):
    return Supervisor("c", lives, lambda ready: Recorder(on_ready=ready), longest_pause=0.02, **options)


@asynccontextmanager
async def running(s) -> AsyncIterator[None]:
    task = asyncio.create_task(s.run())
    try:
        yield
    finally:
        task.cancel()
        assert [type(e) for e in await asyncio.gather(task, return_exceptions=True)] == [asyncio.CancelledError]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: min(high, 0.001))


@pytest.mark.parametrize(
    "error",
    [
        Disconnected("gone"),
        ValueError("bug"),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("g", [SystemExit()]),
    ],
)
async def test_whatever_ends_a_life_another_one_begins(error):
    lives = Lives(raises(error), for_ever)
    s = supervisor(lives)
    async with running(s):
        await until(lambda: s.state is ConnectorState.CONNECTED)
    assert len(lives.made) == 2
    assert lives.made[0] is not lives.made[1]


async def test_a_connector_that_ends_by_itself_is_failed_and_run_again():
    async def ends(inbox):
        inbox.ready()

    states = []
    lives = Lives(ends, for_ever)
    s = supervisor(lives)
    with subscribed(lambda event, fields: states.append((event, fields["state"], fields["reason"]))):
        async with running(s):
            await until(lambda: len(lives.made) == 2 and s.state is ConnectorState.CONNECTED)
    assert [state for _, state, _ in states] == ["connecting", "connected", "failed", "connected", "stopped"]
    assert "ended by itself" in states[2][2]
    assert {event for event, _, _ in states} == {"connector.state"}


async def test_a_constructor_that_raises_is_a_failed_life():
    made = []

    def make():
        made.append(1)
        if len(made) < 3:
            raise ImportError("no such library")
        return Scripted(for_ever)

    s = supervisor(make)
    async with running(s):
        await until(lambda: s.state is ConnectorState.CONNECTED)
    assert len(made) == 3


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Disconnected("the broker is away"), ConnectorState.DEGRADED, "the broker is away"),
        (ConfigError(["wrong password"]), ConnectorState.FAILED, "ConfigError: wrong password"),
    ],
)
async def test_the_state_says_whether_time_heals_it(error, state, reason):
    s = supervisor(Lives(raises(error)))
    await s.once()
    assert (s.state, s.reason) == (state, reason)


async def test_the_same_trouble_is_told_once():
    told = []
    s = supervisor(Lives(raises(Disconnected("away"))))
    with subscribed(lambda event, fields: told.append(fields["state"])):
        for _ in range(5):
            await s.once()
    assert told == ["connecting", "degraded"]
    since = s.since
    await s.once()
    assert s.since == since


async def test_publish_is_there_only_while_connected():
    gone = asyncio.Event()

    async def life(inbox):
        inbox.ready()
        await gone.wait()
        raise Disconnected("gone")

    async def never_ready(inbox):
        await asyncio.Event().wait()

    lives = Lives(life, never_ready)
    s = supervisor(lives)
    assert s.publish is None
    async with running(s):
        await until(lambda: s.publish is not None)
        assert await s.publish(Message(topic="t")) == "t"
        gone.set()
        await until(lambda: len(lives.made) == 2)
        assert s.publish is None
        assert s.state is ConnectorState.DEGRADED
    assert s.publish is None
    assert s.state is ConnectorState.STOPPED


async def test_a_late_ready_of_an_earlier_life_changes_nothing():
    inboxes = []

    async def first(inbox):
        inboxes.append(inbox)
        raise Disconnected("gone")

    async def never_ready(inbox):
        await asyncio.Event().wait()

    lives = Lives(first, never_ready)
    s = supervisor(lives)
    async with running(s):
        await until(lambda: len(lives.made) == 2)
        inboxes[0].ready()
        assert s.publish is None
        assert s.state is ConnectorState.DEGRADED


async def test_a_connector_that_ignores_its_cancellation_does_not_hold_up_the_stop():
    freed = asyncio.Event()

    async def stubborn(inbox):
        inbox.ready()
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                continue

    reasons = []
    s = supervisor(Lives(stubborn), stop_time=0.02)
    with subscribed(lambda event, fields: reasons.append(fields["reason"])):
        async with running(s):
            await until(lambda: s.state is ConnectorState.CONNECTED)
    assert "did not stop" in reasons[-2]
    freed.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_cancelled_at_any_moment_nothing_is_left():
    for turns in range(30):
        s = supervisor(Lives(raises(Disconnected("x")), for_ever))
        task = asyncio.create_task(s.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1


async def test_the_pauses_grow_and_start_again_after_a_life_that_lasted(monkeypatch):
    asked = []
    monkeypatch.setattr("random.uniform", lambda low, high: asked.append(round(high, 3)) or 0)

    async def lasts(inbox):
        inbox.ready()
        await asyncio.sleep(0.03)
        raise Disconnected("x")

    lives = Lives(*[raises(Disconnected("x"))] * 8, lasts, raises(ValueError()))
    s = Supervisor("c", lives, lambda ready: Recorder(on_ready=ready), longest_pause=0.02)
    s._longest_pause = 4.0
    for _ in range(8):
        await s.once()
    assert asked == [0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0, 4.0]
    s._longest_pause = 0.02
    await s.once()
    s._longest_pause = 4.0
    asked.clear()
    for _ in range(10):
        await s.once()
    assert asked[0] == 0.2
    assert max(asked) == 30.0  # what time hardly heals is tried less often


async def test_a_broker_that_drops_every_connection_at_once_is_not_hammered(monkeypatch):
    asked = []
    monkeypatch.setattr("random.uniform", lambda low, high: asked.append(round(high, 3)) or 0)

    async def dropped(inbox):
        inbox.ready()
        raise Disconnected("dropped")

    s = Supervisor("c", Lives(dropped), lambda ready: Recorder(on_ready=ready))
    for _ in range(8):
        await s.once()
    assert asked[-1] == 4.0


async def test_the_clock_ticks_while_a_life_lasts(monkeypatch):
    monkeypatch.setattr("gateway.supervisor.BEAT", 0.005)
    s = supervisor(Lives(for_ever))
    async with running(s):
        await until(lambda: s.state is ConnectorState.CONNECTED)
        beat = s.beat
        await until(lambda: s.beat > beat)


async def test_a_connector_that_does_not_get_ready_is_shown_as_degraded(monkeypatch):
    monkeypatch.setattr("gateway.supervisor.BEAT", 0.005)
    monkeypatch.setattr("gateway.supervisor.PATIENCE", 0.02)

    async def hangs(inbox):
        await asyncio.Event().wait()

    s = supervisor(Lives(hangs))
    async with running(s):
        await until(lambda: s.state is ConnectorState.DEGRADED)
        assert "still not connected" in s.reason


async def test_a_pause_ends_the_life_and_a_resume_begins_a_fresh_one():
    ended = []

    async def life(inbox):
        inbox.ready()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    lives, states = Lives(life), []
    s = supervisor(lives)
    with subscribed(lambda event, fields: states.append((fields["state"], fields["reason"]))):
        async with running(s):
            await until(lambda: s.state is ConnectorState.CONNECTED)
            since = s.since
            s.pause("maintenance")
            assert (s.state, s.reason, s.publish) == (ConnectorState.PAUSED, "maintenance", None)
            assert s.since > since
            await until(lambda: ended)
            s.pause("longer maintenance")
            for _ in range(20):
                await asyncio.sleep(0)
            assert (s.reason, len(lives.made)) == ("longer maintenance", 1)

            s.resume()
            await until(lambda: s.publish is not None)
            s.resume()
            assert (s.state, s.reason, len(lives.made)) == (ConnectorState.CONNECTED, None, 2)
    assert [state for state, _ in states] == [
        "connecting", "connected", "paused", "paused", "connecting", "connected", "stopped"
    ]  # fmt: skip


async def test_a_pause_and_a_resume_at_once_are_a_new_life():
    lives = Lives(for_ever)
    s = supervisor(lives)
    async with running(s):
        await until(lambda: s.state is ConnectorState.CONNECTED)
        s.pause("a moment")
        s.resume()
        await until(lambda: len(lives.made) == 2 and s.state is ConnectorState.CONNECTED)


async def test_a_pause_holds_between_two_lives_and_before_the_first(monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: 3600)
    lives = Lives(raises(Disconnected("gone")), for_ever)
    s = supervisor(lives)
    s.pause("from the beginning")
    async with running(s):
        await asyncio.sleep(0.01)
        assert lives.made == []
        s.resume()
        await until(lambda: s.state is ConnectorState.DEGRADED)
        s.pause("while it waits")
        await asyncio.sleep(0.01)
        assert (s.state, s.reason, len(lives.made)) == (ConnectorState.PAUSED, "while it waits", 1)
        s.resume()
        await until(lambda: s.state is ConnectorState.CONNECTED)  # it does not wait any longer


async def test_a_life_that_ignores_the_pause_is_told_and_can_do_nothing_any_more():
    freed, ready = asyncio.Event(), []

    async def stubborn(inbox):
        ready.append(inbox)
        inbox.ready()
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                continue

    s = supervisor(Lives(stubborn), stop_time=0.02)
    async with running(s):
        await until(lambda: s.state is ConnectorState.CONNECTED)
        s.pause("now")
        await until(lambda: "did not stop" in s.reason)
        ready[0].ready()
        assert (s.state, s.publish) == (ConnectorState.PAUSED, None)
        assert s.reason.startswith("now; ")
        freed.set()
        await until(lambda: len(asyncio.all_tasks()) == 2)


async def test_a_paused_connector_s_clock_ticks_and_it_stops_at_once(monkeypatch):
    monkeypatch.setattr("gateway.supervisor.BEAT", 0.005)
    s = supervisor(Lives(for_ever))
    async with running(s):
        s.pause("now")
        beat = s.beat
        await until(lambda: s.beat > beat + 0.01)
