"""At each named point something goes wrong inside a living process; it must go on by itself."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from gateway import Gateway as Embedded
from gateway.crashpoint import armed
from gateway.errors import CommitUnknown, StoreUnavailable
from tests.faults import FaultProxy
from tests.system.database import Database
from tests.system.points import POINTS, SELDOM, verdict, work
from tests.system.process import Gateway
from tests.system.strangers import Client, Receiver
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Once:
    """Does something the second time (where that is seldom the first time) a point is reached, in whatever thread."""

    def __init__(self, point: str, action: Callable[[], None]) -> None:
        self.passed = 0
        self._point = point
        self._time = 1 if point in SELDOM else 2
        self._action = action
        self._lock = threading.Lock()

    @property
    def happened(self) -> bool:
        return self.passed >= self._time

    def __call__(self, name: str) -> None:
        if name != self._point:
            return
        with self._lock:
            self.passed += 1
            now = self.passed == self._time
        if now:
            self._action()


def fail_after(point: str) -> Callable[[], None]:
    """Return what raises what the database's driver would: after a commit, nobody knows whether it happened."""
    error: type[Exception] = CommitUnknown if "committed" in point or "after" in point else StoreUnavailable

    def fail() -> None:
        raise error(f"injected at {point}")

    return fail


async def run_through(
    url: str, seen: str, folder: Path, fault: Once, restart: asyncio.Event | None = None
) -> list[Any]:
    """Do the work with the gateway on the database `seen` (`url` is the undisturbed way); return the verdict."""
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Receiver())
        database = await stack.enter_async_context(Database(url))
        gateway = Gateway(folder, seen, out=receiver.url, grace=0, max_retries=1)
        await gateway.prepare(database)
        client = await stack.enter_async_context(Client(gateway.web))
        working = asyncio.create_task(work(client, gateway))
        stack.callback(working.cancel)
        with armed(fault):
            if restart is not None:
                async with Embedded.from_file(gateway.config):
                    await asyncio.wait_for(restart.wait(), 30)
            async with Embedded.from_file(gateway.config):
                await asyncio.wait_for(working, 60)
                await database.rest()
        await until(lambda: fault.happened, within=1, what="the point was reached")
        return list(await verdict(database, client, receiver))


@pytest.mark.parametrize("point", POINTS)
async def test_an_error_at_this_point_is_survived(sqlite_url: str, tmp_path: Path, point: str) -> None:
    assert await run_through(sqlite_url, sqlite_url, tmp_path, Once(point, fail_after(point))) == []


@pytest.mark.database
@pytest.mark.parametrize("point", POINTS)
async def test_an_error_at_this_point_is_survived_on_postgresql(
    postgresql_url: str, tmp_path: Path, point: str
) -> None:
    assert await run_through(postgresql_url, postgresql_url, tmp_path, Once(point, fail_after(point))) == []


@pytest.mark.parametrize("point", POINTS)
async def test_a_cancellation_and_stop_at_this_point_loses_nothing(sqlite_url: str, tmp_path: Path, point: str) -> None:
    await stop_at(point, sqlite_url, tmp_path)


@pytest.mark.database
@pytest.mark.parametrize("point", POINTS)
async def test_a_cancellation_and_stop_at_this_point_loses_nothing_on_postgresql(
    postgresql_url: str, tmp_path: Path, point: str
) -> None:
    await stop_at(point, postgresql_url, tmp_path)


async def stop_at(point: str, url: str, folder: Path) -> None:
    """Cancel the task that is at the point, then the whole gateway; another one goes on."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def cancel() -> None:
        loop.call_soon_threadsafe(stopped.set)
        if threading.current_thread() is threading.main_thread() and (task := asyncio.current_task()):
            task.cancel()

    assert await run_through(url, url, folder, Once(point, cancel), restart=stopped) == []


@pytest.mark.database
@pytest.mark.parametrize("point", POINTS)
async def test_a_connection_lost_at_this_point_is_survived(postgresql_url: str, tmp_path: Path, point: str) -> None:
    address = make_url(postgresql_url)
    async with FaultProxy(address.host or "", address.port or 0) as proxy:
        seen = address.set(port=proxy.port).render_as_string(hide_password=False)
        assert await run_through(postgresql_url, seen, tmp_path, Once(point, proxy.reset)) == []
