"""Writes what handlers report of their progress: outside their transactions, and at most once a second."""

import asyncio

from gateway.errors import StoreError
from gateway.executor.attempt import Attempt
from gateway.store import Store
from gateway.telemetry import emit

PAUSE = 1.0


class Progress:
    """Gathers the attempts that have news."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._waiting: dict[str, Attempt] = {}

    def note(self, attempt: Attempt) -> None:
        """Remember that an attempt has news. From any thread; cheap however often it is called."""
        if self._loop is not None and attempt.job.id not in self._waiting:
            self._waiting[attempt.job.id] = attempt
            self._loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> None:
        """Write news until cancelled. What cannot be written is told, and overtaken by the next news."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            waiting, self._waiting = self._waiting, {}
            for attempt in waiting.values():
                await self._write(attempt)
            await asyncio.sleep(PAUSE)

    async def _write(self, attempt: Attempt) -> None:
        if attempt.ended or attempt.effects.reported is None:
            return
        try:
            await self._store.report(attempt.job, attempt.effects.reported)
        except StoreError as error:
            emit("service.error", service="executor.progress", error=error)
