"""PostgreSQL's LISTEN and NOTIFY: a bell between processes, never more than a hint that saves a poll."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from uuid import uuid4

from gateway.errors import StoreError
from gateway.store.script import Script, Sql
from gateway.store.wire import Make
from gateway.telemetry import emit

CHANNEL = "gateway_jobs"
QUIET = 0.005
"""Seconds in which all calls of `ring` become one message."""


class Run(Protocol):
    """`Driver.run`."""

    def __call__(self, make: Make[None], *, single: bool = False) -> Awaitable[None]:
        """Run a script as a transaction of its own."""


class Bell:
    """Rings at the other processes, and hears them. Its connection is made again for ever."""

    def __init__(self, connect: Callable[[], Awaitable[Any]], run: Run, *, seconds: float) -> None:
        self._connect, self._run, self._seconds = connect, run, seconds
        self._me = str(uuid4())
        self._hearing: asyncio.Task[None] | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._again = False

    def listen(self, callback: Callable[[], None]) -> None:
        """Call `callback` for every ring of another process, and after each reconnect."""
        self._hearing = asyncio.get_running_loop().create_task(self._hear(callback))

    def ring(self) -> None:
        """Ring soon. Costs nothing while a ring is under way already."""
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.get_running_loop().create_task(self._ring())
        else:
            self._again = True

    async def close(self) -> None:
        """End both tasks."""
        tasks = [task for task in (self._hearing, self._ringing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ring(self) -> None:
        def script() -> Script[None]:
            yield Sql("SELECT pg_notify($1, $2)", (CHANNEL, self._me), "rows")

        while True:
            await asyncio.sleep(QUIET)
            self._again = False
            try:
                await self._run(script, single=True)
            except StoreError as error:  # the others poll
                emit("store.unavailable", error=str(error))
            if not self._again:
                return

    async def _hear(self, callback: Callable[[], None]) -> None:
        def heard(_connection: Any, _pid: int, _channel: str, sender: str) -> None:
            if sender != self._me:
                callback()

        while True:
            try:
                await self._connected(heard, callback)
            except Exception as error:  # noqa: BLE001 - whatever it is, listening goes on
                emit("store.unavailable", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - spreads the processes

    async def _connected(self, heard: Callable[..., None], callback: Callable[[], None]) -> None:
        """Listen until the connection is lost; a silent one is asked now and then."""
        raw = await self._connect()
        try:
            async with asyncio.timeout(self._seconds):
                await raw.add_listener(CHANNEL, heard)
            callback()  # what was rung meanwhile was not heard
            while True:
                await asyncio.sleep(self._seconds)
                async with asyncio.timeout(self._seconds):
                    await raw.fetchval("SELECT 1")
        finally:
            raw.terminate()
