"""What handlers do together with those of other instances: they take turns."""

import asyncio
import random
from time import monotonic

from gateway.coordination import Coordinator, Wakeup
from gateway.effects import Lock
from gateway.errors import LockBusy
from gateway.job import QueueJob
from gateway.store import Lane, Store

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0


class Together:
    """Locks come from the database alone; wake-ups only spare their waiters some time, and the cache paces."""

    def __init__(self, store: Store, wake: Wakeup, coordinator: Coordinator | None) -> None:
        self._store = store
        self._wake = wake
        self._coordinator = coordinator or Coordinator()

    async def lock(self, name: str, job: QueueJob, *, ttl: float | None, wait: float) -> Lock:
        """Take a lock for a job's claim, in no particular order among those who wait.

        Raises `LockBusy` after `wait` seconds. Cancelled, the lock may have been taken: it is free when the claim is
        over.
        """
        until, pause = monotonic() + wait, FIRST_PAUSE
        while (lock := await self._store.lock(name, job, ttl)) is None:
            left = until - monotonic()
            if left <= 0:
                raise LockBusy(f"the lock {name!r} was not free within {wait:g} s")
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            await self._wake.wait(Lane.LOCK, min(left, pause * jitter))
            pause = min(LONGEST_PAUSE, 2 * pause)
        return lock

    async def smooth(self, name: str, rate: float) -> None:
        """Wait until it is this call's turn."""
        await asyncio.sleep(await self._coordinator.pace(name, rate))
