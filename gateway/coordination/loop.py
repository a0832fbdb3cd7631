"""A service's loop: it survives whatever one turn does, and shows that it turns."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from gateway.errors import StoreUnavailable
from gateway.telemetry import emit

SLICE = 5.0
"""Seconds: a sleeping loop still shows a beat this often."""


class Loop:
    """Calls `step` again and again; it returns how many seconds to pause before the next turn.

    `pause` does the waiting, so that a wake-up can cut it short. An error of one turn is told as `service.error`
    (a database that is away as `store.unavailable`) and followed by a jittered pause of at most two seconds.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float]],
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.beat = 0.0
        """Event loop time of the last sign of life."""
        self._step = step
        self._pause = pause

    async def run(self) -> None:
        """Turn until cancelled."""
        failures = 0
        while True:
            self.touch()
            try:
                seconds = await self._step()
                failures = 0
            except StoreUnavailable as error:
                emit("store.unavailable", error=error)
                failures, seconds = failures + 1, back_off(failures)
            except Exception as error:  # noqa: BLE001 - a bad turn must not end the service
                emit("service.error", service=self.name, error=error)
                failures, seconds = failures + 1, back_off(failures)
            await self._wait(seconds)

    def touch(self) -> None:
        """Show a sign of life from within a long step."""
        self.beat = asyncio.get_running_loop().time()

    async def _wait(self, seconds: float) -> None:
        while seconds > SLICE:
            started = asyncio.get_running_loop().time()
            await self._pause(SLICE)
            self.touch()
            if self.beat - started < SLICE * 0.9:
                return
            seconds -= SLICE
        await self._pause(seconds)


def back_off(failures: int, *, most: float = 2.0) -> float:
    """Return a jittered pause in seconds that doubles with each failure, from a tenth of a second to `most`."""
    return min(most, 0.1 * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
