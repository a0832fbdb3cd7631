"""Sees from a thread of its own when a handler blocks the event loop, and says which one."""

import asyncio
import logging
import sys
import threading
import time
import traceback

from gateway.executor.guard import TASK_PREFIX
from gateway.telemetry import emit

logger = logging.getLogger(__name__)


class Watchdog:
    """Emits `loop.blocked` once a blockade lasts `warn` seconds, and again, with the stack logged, at `dump`."""

    def __init__(self, *, warn: float = 0.25, dump: float = 5.0) -> None:
        self._warn = warn
        self._dump = dump
        self._interval = min(0.1, warn / 3)
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turned = time.monotonic()
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the running event loop."""
        self._turn()
        threading.Thread(target=self._watch, name="gateway-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread, soon. Does not wait."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._turned = time.monotonic()
        self._timer = self._loop.call_later(self._interval, self._turn)

    def _watch(self) -> None:
        told = 0.0
        looked = time.monotonic()
        while not self._stopped.wait(self._interval):
            before, looked = looked, time.monotonic()
            if looked - before > self._warn:
                self._turned = looked  # the whole process stood still, not only its loop
            blocked = looked - self._turned
            if blocked < self._warn:
                told = 0.0
            elif told < self._warn or told < self._dump <= blocked:
                self._tell(blocked)
                told = blocked

    def _tell(self, seconds: float) -> None:
        task = asyncio.current_task(self._loop)
        name = task.get_name() if task is not None else ""
        handler = name.removeprefix(TASK_PREFIX) if name.startswith(TASK_PREFIX) else None
        emit("loop.blocked", seconds=seconds, handler=handler)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way
        if seconds >= self._dump and frame is not None:
            stack = "".join(traceback.format_stack(frame))
            logger.warning("the event loop has been blocked for %.1f s by handler %s\n%s", seconds, handler, stack)
