"""SIGTERM and SIGINT as one wish to stop.

Light on purpose: it is imported, and the handlers are installed, before anything heavy, because the first process of
a container ignores a signal that it has no handler for.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

Wake: TypeAlias = Callable[[], object]
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Until `begin`, a signal ends the process at once: with 0 for SIGTERM, since nothing was started yet.

    From `begin` on the first signal sets `requested` and wakes `wait`; the second one ends the process at once with
    128 + its number, whatever the process is doing. What was being written then is rolled back by the database.
    """

    def __init__(self) -> None:
        self.requested = False
        self._begun = False
        self._wake: list[Wake] = []

    def install(self) -> None:
        """Take both signals over. Only in the main thread."""
        for number in SIGNALS:
            signal.signal(number, self._received)

    def uninstall(self) -> None:
        """Give both signals back to their defaults, for commands that are not run as a service."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def begin(self) -> None:
        """Say that from now on there is something to stop in order."""
        self._begun = True

    def request(self) -> None:
        """Ask for a stop without a signal. Safe in any thread and in a signal handler; again has no effect."""
        self.requested = True
        for wake in tuple(self._wake):
            wake()

    async def wait(self) -> None:
        """Return when a stop has been asked for, at once if it was before. Several may wait."""
        import asyncio

        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

        self._wake.append(wake)
        try:
            if not self.requested:
                await event.wait()
        finally:
            self._wake.remove(wake)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if not self._begun:
            _leave(0 if number == signal.SIGTERM else 128 + number)
        if self.requested:
            _leave(128 + number)
        self.request()


def _leave(code: int) -> None:
    """End now: no clean-up of half-imported modules, no waiting for threads."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, RuntimeError):
            continue
    os._exit(code)
