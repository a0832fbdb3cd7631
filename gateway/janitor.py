"""Keeps the queue in order: due jobs become ready, the dead's jobs run again, old ones go."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import timedelta

from gateway.coordination import Wakeup
from gateway.coordination.loop import Loop
from gateway.job import JobStatus
from gateway.store import Lane, Store
from gateway.telemetry import emit

PASSES = 9
"""Turns that a loop leaves to another instance at most, before it takes one itself."""
BATCH = 500
"""Rows that one transaction of the upkeep touches at most."""
RETRIES = 10_000
"""Failed jobs that get another attempt at once, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Seconds between two turns of each loop; `promote` is the longest sleep when nothing is due sooner."""

    promote: float = 1.0
    rescue: float = 0.4
    reclaim: float = 5.0
    prune: float = 60.0


class Janitor:
    """Four loops, each alive by itself, so that a failing or slow one never holds up another.

    `held` returns the claim tokens of the jobs that this process works on: a row that is claimed by this process
    and not among them was forgotten, and is given back. `retention_days` 0 keeps everything. `eager` says whether
    this instance deletes old jobs at every turn or, as others do, at one in ten: a hint that may be wrong.
    """

    def __init__(
        self,
        store: Store,
        *,
        held: Callable[[], Collection[str]],
        wake: Wakeup,
        retention_days: float = 90,
        intervals: Intervals | None = None,
        eager: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._store = store
        self._held = held
        self._wake = wake
        self._retention = timedelta(days=retention_days)
        self._intervals = intervals or Intervals()
        self._eager = eager
        self._passed = 0
        self.loops = (
            Loop("janitor.promote", self.promote, pause=self._until_due),
            Loop("janitor.rescue", self.rescue),
            Loop("janitor.reclaim", self.reclaim),
            Loop("janitor.prune", self.prune),
        )

    async def run(self) -> None:
        """Turn all loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            for loop in self.loops:
                group.create_task(loop.run(), name=loop.name)

    async def once(self) -> None:
        """Do one turn of each."""
        for step in (self.promote, self.rescue, self.reclaim, self.prune):
            await step()

    async def promote(self) -> float:
        """Make ready what is due. Returns the seconds until the next job is due, at most the interval."""
        promotion = await self._store.promote()
        if promotion.count:
            emit("janitor.promoted", count=promotion.count)
            return 0.0
        longest = self._intervals.promote
        return longest if promotion.next_due is None else min(longest, max(0.001, promotion.next_due))

    async def rescue(self) -> float:
        """Give back the jobs of instances that died; set aside what keeps killing them."""
        rescue = await self._store.rescue()
        if rescue.rescued or rescue.failed:
            emit("job.rescued", count=rescue.rescued, failed=rescue.failed)
        return self._intervals.rescue

    async def reclaim(self) -> float:
        """Give back the jobs that this process claimed and forgot (an answer was lost on the way)."""
        count = await self._store.reclaim(self._held())
        if count:
            emit("job.released", count=count)
        return self._intervals.reclaim

    async def prune(self) -> float:
        """Delete a small batch of what is older than the retention; at once again while there is more."""
        if not self._retention or await self._passes():
            return self._intervals.prune
        count = await self._store.prune(self._retention, BATCH)
        if count:
            emit("janitor.pruned", count=count)
        return 0.05 if count >= BATCH else self._intervals.prune

    async def _passes(self) -> bool:
        """Say whether this turn is left to another instance."""
        if self._eager is None or await self._eager() or self._passed >= PASSES:
            self._passed = 0
            return False
        self._passed += 1
        return True

    async def _until_due(self, seconds: float) -> None:
        await self._wake.wait(Lane.DUE, seconds)


class Upkeep:
    """Upkeep on demand, for the handlers `system.*`. Each call works in small transactions of its own."""

    def __init__(self, store: Store, retention_days: float) -> None:
        self._store = store
        self._retention_days = retention_days

    async def prune(self, days: int | None = None) -> int:
        """Delete what ended more than `days` days ago (None: as configured) and return how many rows went."""
        if days is None and not self._retention_days:
            return 0
        age = timedelta(days=self._retention_days if days is None else days)
        total = 0
        while count := await self._store.prune(age, BATCH):
            total += count
        return total

    async def retry_failed(self, *, hours: float, attempts: int) -> int:
        """Give jobs that failed in the last `hours` hours, by errors that are tried again, one more attempt each.

        Only those that failed fewer than `attempts` times, so that none goes on for ever. Returns how many; of more
        than `RETRIES` the rest is left to the next call.
        """
        failed = await self._store.retriable(seconds=hours * 3600, attempts=attempts, limit=RETRIES)
        retried = 0
        for job_id in failed:
            again = await self._store.retry(job_id)
            retried += again is not None and again.status is JobStatus.PENDING
        return retried
