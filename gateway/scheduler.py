"""Makes the jobs of schedules at their ticks. Every instance does; the database sees to it that each tick is one."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from gateway.coordination import Wakeup
from gateway.coordination.loop import Loop
from gateway.errors import DataRefused
from gateway.job import Schedule
from gateway.store import Asking, Lane, Store, Turn, Verdict
from gateway.telemetry import emit

HELD = 0.2
"""Seconds until the next look when what is due is held: by another scheduler, or until its condition was asked."""
BREATH = 0.2
"""Seconds in which wake-ups count as one."""
AT_ONCE = 2
"""Conditions that are asked at the same time."""

Ask = Callable[[Asking], Awaitable[Verdict]]


class Scheduler:
    """Two loops: one sleeps until the next tick, by the database's clock; the other asks conditions, which may be slow.

    `interval`: seconds within which a row changed by SQL is seen. `configured`: what is written to the database first,
    each under a digest of its text; see `Store.configure_schedules`. `ask`: answers a condition, and raises nothing.
    """

    def __init__(
        self,
        store: Store,
        *,
        wake: Wakeup,
        ask: Ask,
        interval: float = 60.0,
        configured: Mapping[str, Schedule] | None = None,
    ) -> None:
        self._store = store
        self._wake = wake
        self._ask = ask
        self._interval = interval
        self._configured = dict(configured or {})
        self._due = Wakeup()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._asking = Loop("scheduler.ask", self.ask, pause=self._until_due)
        self.loops = (Loop("scheduler.fire", self.fire, pause=self._until_changed), self._asking)

    async def run(self) -> None:
        """Turn both loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            for loop in self.loops:
                group.create_task(loop.run(), name=loop.name)

    async def once(self) -> None:
        """Do one turn of each."""
        await self.fire()
        await self.ask()

    async def fire(self) -> float:
        """Plan what was changed and fire what is due. Returns the seconds until the next tick, at most the interval."""
        await self._configure()
        seconds = await self._store.next_tick()
        if seconds is None or seconds > 0:
            return self._interval if seconds is None else min(self._interval, seconds)
        self._due.set(Lane.PLAN)
        planned = await self._store.plan(self._interval)
        fired = await self._store.fire()
        _tell(planned)
        _tell(fired)
        return 0.0 if planned or fired else HELD

    async def ask(self) -> float:
        """Ask the conditions of what is due, and fire what may be. Returns the seconds until the next look."""
        found = await self._store.asking()
        ended = await asyncio.gather(*(self._asked(each) for each in found), return_exceptions=True)
        for each in ended:
            if isinstance(each, BaseException):
                raise each
        if any(ended):
            return 0.0
        return HELD if found else self._interval

    async def _asked(self, asking: Asking) -> bool:
        async with self._slots:
            verdict = await self._ask(asking)
            fired = await self._store.fire({asking.id: verdict})
        self._asking.touch()
        _tell(fired, verdict)
        return bool(fired)

    async def _configure(self) -> None:
        if not self._configured:
            return
        try:
            written = await self._store.configure_schedules(self._configured)
        except DataRefused as error:  # told once; the schedules that are there go on
            emit("service.error", service="scheduler.configure", error=error)
            written = []
        self._configured.clear()
        for name in written:
            emit("schedule.configured", schedule=name)

    async def _until_changed(self, seconds: float) -> None:
        breath = min(BREATH, seconds)
        await asyncio.sleep(breath)
        if seconds > breath:
            await self._wake.wait(Lane.PLAN, seconds - breath)

    async def _until_due(self, seconds: float) -> None:
        await self._due.wait(Lane.PLAN, seconds)


def _tell(turns: Sequence[Turn], verdict: Verdict | None = None) -> None:
    for turn in turns:
        name = turn.schedule.name
        if turn.invalid:
            emit("schedule.invalid", schedule=name, error=turn.error)
        if turn.ticks:
            emit("schedule.fired", schedule=name, count=len(turn.ticks), tick=turn.ticks[-1].isoformat())
        if turn.dropped:
            reason = "missed" if verdict is None or verdict.holds else "condition"
            reason = "error" if turn.error is not None else reason
            emit("schedule.skipped", schedule=name, count=turn.dropped, reason=reason, error=turn.error)
