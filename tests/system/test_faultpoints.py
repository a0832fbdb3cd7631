"""At each named point something goes wrong inside a living process; it must go on by itself."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway import Gateway as Embedded
from gateway.crashpoint import armed, once
from gateway.errors import CommitUnknown, StoreUnavailable
from tests.system.points import Kind, cases, points_of, route
from tests.system.scenario import Scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


DONE = ("committed", "after", "claim.written")
"""Names of points where all may be done already; a claim is one statement, which commits by itself on PostgreSQL."""


def fail_at(point: str) -> Callable[[], None]:
    """Return what raises what would be raised there: after a commit, nobody knows whether it happened."""

    def fail() -> None:
        text = f"injected at {point}"
        if point.startswith("writer."):
            error = sqlite3.OperationalError(text)
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        if point.startswith(("http.", "own.before", "own.after", "pool.")):
            raise ConnectionResetError(text)
        raise CommitUnknown(text) if any(word in point for word in DONE) else StoreUnavailable(text)

    return fail


@contextmanager
def strike(point: str, act: Callable[[], None]) -> Iterator[asyncio.Event]:
    """Let `act` happen at the point, which must be reached before the block ends. Yields what is set then."""
    loop, happened = asyncio.get_running_loop(), asyncio.Event()

    def now() -> None:
        loop.call_soon_threadsafe(happened.set)
        act()

    with armed(once(route(point), now)):
        yield happened
        assert happened.is_set(), f"{point} was not reached"


def running(scenario: Scenario) -> Embedded:
    return Embedded.from_file(scenario.gateway.config)


async def survive(scenario: Scenario, group: str, acts: Mapping[str, Callable[[], None]]) -> None:
    """Do the work once for each point, in one gateway that goes on by itself whatever happens there."""
    async with running(scenario):
        for point, act in acts.items():
            with strike(point, act):
                await scenario.work(group)
                await scenario.database.rest()
            assert await scenario.verdict() == [], point


async def hand_over(scenario: Scenario, group: str, acts: Mapping[str, Callable[[], None]]) -> None:
    """Do the work once for each point, in a gateway that is stopped when it is there, and in the next one."""
    for point, act in acts.items():
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(scenario.work(group))
            with strike(point, act) as happened:
                async with running(scenario):
                    if group == "release":
                        await scenario.hold()
                    else:
                        await asyncio.wait_for(happened.wait(), 30)
            scenario.let_go()
            async with running(scenario):
                await work
                await scenario.database.rest()
        assert await scenario.verdict() == [], point


def kind(url: str) -> Kind:
    return "sqlite" if url.startswith("sqlite") else "postgresql"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the store look often for what is to be postponed."""
    monkeypatch.setattr("gateway.store.store.POSTPONE_SECONDS", 0.05)


@pytest.mark.parametrize(("a_url", "group"), cases("sqlite", "postgresql"), indirect=["a_url"])
async def test_errors_at_these_points_are_survived(a_url: str, tmp_path: Path, group: str) -> None:
    acts = {point: fail_at(point) for point in points_of(group, kind(a_url))}
    async with Scenario(a_url, tmp_path) as scenario:
        await (hand_over if group == "release" else survive)(scenario, group, acts)


def cancel() -> None:
    """Cancel the task that is there, if a task is."""
    if threading.current_thread() is threading.main_thread() and (task := asyncio.current_task()):
        task.cancel()


@pytest.mark.parametrize(("a_url", "group"), cases("sqlite", "postgresql"), indirect=["a_url"])
async def test_cancellations_and_stops_at_these_points_lose_nothing(a_url: str, tmp_path: Path, group: str) -> None:
    async with Scenario(a_url, tmp_path) as scenario:
        await hand_over(scenario, group, dict.fromkeys(points_of(group, kind(a_url)), cancel))


@pytest.mark.parametrize(("a_url", "group"), cases("sqlite", "postgresql"), indirect=["a_url"])
async def test_connections_lost_at_these_points_are_survived(a_url: str, tmp_path: Path, group: str) -> None:
    loop = asyncio.get_running_loop()
    async with Scenario(a_url, tmp_path, fragile=True) as scenario:

        def lose() -> None:
            if threading.current_thread() is threading.main_thread():
                scenario.lose_connections()
            else:
                loop.call_soon_threadsafe(scenario.lose_connections)

        acts = dict.fromkeys(points_of(group, kind(a_url)), lose)
        await (hand_over if group == "release" else survive)(scenario, group, acts)
