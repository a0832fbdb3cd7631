"""How the parts of one process tell each other that there is work."""

import asyncio
import contextlib


class Wakeup:
    """Edges per lane: a hint that its rows are worth a look now. Losing one costs a poll interval, never a job.

    Not thread-safe: other threads go through `loop.call_soon_threadsafe`.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, asyncio.Event] = {}
        self._broadcast = False

    def set(self, lane: str) -> None:
        """Wake who waits for `lane`, or the next one who will."""
        self._lane(lane).set()

    def set_all(self) -> None:
        """Wake every lane, those included that nobody has waited for so far."""
        self._broadcast = True
        for event in self._lanes.values():
            event.set()

    async def wait(self, lane: str, timeout: float) -> None:  # noqa: ASYNC109 - a wait that ends by time is no failure
        """Return when `lane` is set, at once if it was since the last wait, and after `timeout` seconds at most."""
        event = self._lane(lane)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):  # not wait_for, which loses a cancellation that comes with the event
                await event.wait()
        event.clear()

    def _lane(self, lane: str) -> asyncio.Event:
        event = self._lanes.get(lane)
        if event is None:
            event = self._lanes[lane] = asyncio.Event()
            if self._broadcast:
                event.set()
        return event
