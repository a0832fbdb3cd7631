"""At each named point something goes wrong inside a living process; it must go on by itself."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
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


async def face(scenario: Scenario, group: str, point: str, act: Callable[[], None], *, stop: bool = False) -> None:
    """Do the work while `act` happens at the point. With `stop` the gateway is stopped then; another one goes on."""
    loop, happened = asyncio.get_running_loop(), asyncio.Event()

    def strike() -> None:
        loop.call_soon_threadsafe(happened.set)
        act()

    work = asyncio.create_task(scenario.work(group))
    try:
        with armed(once(route(point), strike)):
            async with Embedded.from_file(scenario.gateway.config):
                if group == "release":
                    await scenario.hold()
                elif stop:
                    await asyncio.wait_for(happened.wait(), 30)
                else:
                    await work
                    await scenario.database.rest()
            assert happened.is_set(), f"{point} was not reached"
        scenario.let_go()
        if not work.done() or group == "release":
            async with Embedded.from_file(scenario.gateway.config):
                await work
                await scenario.database.rest()
        assert await scenario.verdict() == [], point
    finally:
        work.cancel()


def kind(url: str) -> Kind:
    return "sqlite" if url.startswith("sqlite") else "postgresql"


@pytest.mark.parametrize(("a_url", "group"), cases("sqlite", "postgresql"), indirect=["a_url"])
async def test_errors_at_these_points_are_survived(a_url: str, tmp_path: Path, group: str) -> None:
    async with Scenario(a_url, tmp_path) as scenario:
        for point in points_of(group, kind(a_url)):
            await face(scenario, group, point, fail_at(point))


def cancel() -> None:
    """Cancel the task that is there, if a task is."""
    if threading.current_thread() is threading.main_thread() and (task := asyncio.current_task()):
        task.cancel()


@pytest.mark.parametrize(("a_url", "group"), cases("sqlite", "postgresql"), indirect=["a_url"])
async def test_cancellations_and_stops_at_these_points_lose_nothing(a_url: str, tmp_path: Path, group: str) -> None:
    async with Scenario(a_url, tmp_path) as scenario:
        for point in points_of(group, kind(a_url)):
            await face(scenario, group, point, cancel, stop=True)


@pytest.mark.parametrize(("a_url", "group"), cases("sqlite", "postgresql"), indirect=["a_url"])
async def test_connections_lost_at_these_points_are_survived(a_url: str, tmp_path: Path, group: str) -> None:
    loop = asyncio.get_running_loop()
    async with Scenario(a_url, tmp_path, fragile=True) as scenario:

        def lose() -> None:
            if threading.current_thread() is threading.main_thread():
                scenario.lose_connections()
            else:
                loop.call_soon_threadsafe(scenario.lose_connections)

        for point in points_of(group, kind(a_url)):
            await face(scenario, group, point, lose)
