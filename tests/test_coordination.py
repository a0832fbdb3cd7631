import asyncio
from time import monotonic

import pytest

from gateway.coordination import Wakeup


async def test_a_lane_set_before_the_wait_returns_at_once():
    wake = Wakeup()
    wake.set("run")

    started = monotonic()
    await wake.wait("run", timeout=5)

    assert monotonic() - started < 1


async def test_an_edge_wakes_once_and_only_its_lane():
    wake = Wakeup()
    wake.set("run")
    await wake.wait("run", timeout=5)

    waiting = [asyncio.create_task(wake.wait(lane, timeout=5)) for lane in ("run", "send:web")]
    await asyncio.sleep(0)
    wake.set("send:web")
    done, pending = await asyncio.wait(waiting, timeout=0.2)

    assert done == {waiting[1]}
    for task in pending:
        task.cancel()


async def test_a_wait_ends_by_time_without_an_error():
    started = monotonic()
    await Wakeup().wait("run", timeout=0.01)

    assert monotonic() - started < 1


async def test_set_all_reaches_lanes_that_were_never_waited_for():
    wake = Wakeup()
    wake.set("run")
    await wake.wait("run", timeout=5)
    wake.set_all()

    async with asyncio.timeout(1):
        await wake.wait("run", timeout=30)
        await wake.wait("send:new", timeout=30)


async def test_every_waiter_of_a_lane_wakes():
    wake = Wakeup()
    waiting = [asyncio.create_task(wake.wait("run", timeout=30)) for _ in range(3)]
    await asyncio.sleep(0)

    wake.set("run")

    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_that_comes_with_the_edge_is_not_lost(turns):
    wake = Wakeup()

    async def wait_for_ever():
        while True:
            await wake.wait("run", timeout=30)

    task = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    wake.set("run")
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()

    _, stuck = await asyncio.wait([task], timeout=1)

    assert not stuck
