"""A coordinator that knows nothing and answers all the same: for tests that nothing depends on what it says."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from gateway.coordination import CacheState, Coordinator, Remembered
from gateway.job import JobStatus


class ChaosCoordinator(Coordinator):
    """Answers at random, wakes at random, and loses every wake-up."""

    type = "chaos"
    _waking: asyncio.Task[None] | None = None

    @property
    def state(self) -> CacheState:
        """Return what comes to its mind."""
        return random.choice([CacheState("connected"), CacheState("unavailable", "it feels like it")])

    def start(self, secret: str, instance: str, on_wake: Callable[[], None]) -> None:
        """Wake without a reason."""

        async def wake() -> None:
            while True:
                await asyncio.sleep(random.uniform(0, 0.2))
                on_wake()

        self._waking = asyncio.create_task(wake())

    async def close(self) -> None:
        """End it."""
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.wait({self._waking})

    async def recall(self, job_id: str) -> Remembered | None:
        """Make something up."""
        age = timedelta(seconds=random.uniform(-1e6, 1e6))
        made_up = Remembered(random.choice(list(JobStatus)), "nobody", datetime.now(UTC) - age)
        return random.choice([None, made_up])

    async def leads(self, task: str, seconds: float) -> bool:
        """Toss a coin."""
        return random.random() < 0.5

    async def pace(self, name: str, rate: float) -> float:
        """Take some time or other."""
        return random.uniform(0, 0.05)
