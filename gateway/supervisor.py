"""Keeps one connector running: runs it, and runs a fresh one whenever it ends."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias

from gateway.connector import Connector, Inbox
from gateway.errors import Disconnected
from gateway.message import Message
from gateway.telemetry import emit

Publish: TypeAlias = Callable[[Message], Awaitable[str | None]]
AnyConnector: TypeAlias = Connector[Any]

BEAT = 1.0
"""Seconds between two signs of life while a connector runs."""

PATIENCE = 30.0
"""Seconds after which a connector that is still connecting is shown as degraded."""


class ConnectorState(StrEnum):
    """What a connector is doing.

    `degraded`: its broker is away, it tries again within seconds. `failed`: it ended by something that time alone
    hardly heals (a mistake in its configuration, an error in its code); it is tried again all the same. `paused`: it
    was told to, until it is told to go on.
    """

    STOPPED = "stopped"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    PAUSED = "paused"
    DEGRADED = "degraded"
    FAILED = "failed"


class Supervisor:
    """Runs the connectors that `make` makes, one life after the other, each a fresh object with a fresh inbox.

    `inbox_for` is given what the inbox calls when it is `ready`. Between two lives it pauses for a random time of at
    most 0.1 s, doubled with every life that did not last, up to `longest_pause` (a broker that is back is used
    within seconds), or 30 s if the connector failed. A life has `stop_time` seconds to end when it is cancelled.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], AnyConnector],
        inbox_for: Callable[[Callable[[], None]], Inbox],
        *,
        longest_pause: float = 4.0,
        stop_time: float = 10.0,
    ) -> None:
        self.name = name
        self.state = ConnectorState.STOPPED
        self.reason: str | None = None
        self.since = datetime.now(UTC)
        self.beat = 0.0
        self._make, self._inbox_for = make, inbox_for
        self._longest_pause, self._stop_time = longest_pause, stop_time
        self._connector: AnyConnector | None = None
        self._ready_at: float | None = None
        self._failures = 0
        self._paused = self._interrupted = False
        self._call: asyncio.Future[None] | None = None

    @property
    def publish(self) -> Publish | None:
        """How to send through the connector, while it is connected."""
        ready = self._connector is not None and self._ready_at is not None and not self._paused
        return self._connector.publish if ready and self._connector is not None else None

    def pause(self, reason: str) -> None:
        """End the present life, and begin no other until `resume`; at once nothing more is sent.

        What the life has received and not stored stays unacknowledged. Repeated, it only changes the reason.
        """
        self._paused = self._interrupted = True
        self._enter(ConnectorState.PAUSED, reason)
        self._wake()

    def resume(self) -> None:
        """Begin a life again, at once; nothing happens to a connector that is not paused."""
        if self._paused:
            self._paused = False
            self._failures = 0
            self._enter(ConnectorState.CONNECTING, None)
            self._wake()

    async def run(self) -> None:
        """Keep it running until cancelled; then nothing of it is left."""
        try:
            while True:
                await self.once()
        finally:
            self._enter(ConnectorState.STOPPED, None)

    async def once(self) -> None:
        """Run one life, and pause after it; while it is paused, only wait a moment."""
        if self._paused:
            await self._sleep(BEAT)
            return
        self._interrupted = False
        if self.state in (ConnectorState.STOPPED, ConnectorState.CONNECTED):
            self._enter(ConnectorState.CONNECTING, None)
        self._ready_at = None
        error = await self._live()
        if error is None:
            return
        self._record(error)
        longest = self._longest_pause if self.state is ConnectorState.DEGRADED else max(30.0, self._longest_pause)
        # Jitter over the whole range, so that many instances do not return to a broker in step.
        await self._pause(random.uniform(0, min(longest, 0.1 * 2**self._failures)))  # noqa: S311 - no secret

    async def _live(self) -> BaseException | None:
        """Return why a life ended; None if it was interrupted."""
        life = asyncio.create_task(self._guarded(), name=f"connector {self.name}")
        begun = self._beat()
        try:
            while not life.done() and not self._interrupted:
                await self._sleep(BEAT, life)
                if self._beat() - begun > PATIENCE and self.state is ConnectorState.CONNECTING:
                    self._enter(ConnectorState.DEGRADED, f"still not connected after {PATIENCE:g} seconds")
        finally:
            self._connector = None
            if not life.done():
                await self._end(life)
        return None if self._interrupted else life.result()

    async def _guarded(self) -> BaseException:
        # Returned, never raised: SystemExit and KeyboardInterrupt would otherwise leave the task and end the loop.
        try:
            self._connector = connector = self._make()
            await connector.run(self._inbox_for(lambda: self._ready(connector)))
        except BaseException as error:  # noqa: BLE001 - no connector may end more than itself
            return error
        return RuntimeError("it ended by itself, which no connector may")

    def _ready(self, connector: AnyConnector) -> None:
        if connector is self._connector and not self._interrupted:  # else a call left behind by an earlier life
            self._ready_at = asyncio.get_running_loop().time()
            self._enter(ConnectorState.CONNECTED, None)

    async def _end(self, life: asyncio.Task[BaseException]) -> None:
        life.cancel()
        done, _ = await asyncio.wait({life}, timeout=self._stop_time)
        if not done:
            late = f"it did not stop within {self._stop_time:g} seconds of being cancelled"
            if self._paused:
                self._enter(ConnectorState.PAUSED, f"{self.reason}; {late}")
            else:
                self._enter(ConnectorState.FAILED, late)

    def _record(self, error: BaseException) -> None:
        ready_at, self._ready_at = self._ready_at, None
        lasted = ready_at is not None and asyncio.get_running_loop().time() - ready_at > self._longest_pause
        self._failures = 0 if lasted else min(self._failures + 1, 16)
        if isinstance(error, Disconnected):
            self._enter(ConnectorState.DEGRADED, str(error) or "the connection was lost")
        else:
            self._enter(ConnectorState.FAILED, f"{type(error).__name__}: {error}")

    def _enter(self, state: ConnectorState, reason: str | None) -> None:
        if (state, reason) == (self.state, self.reason):
            return
        if state is not self.state:
            self.since = datetime.now(UTC)
        self.state, self.reason = state, reason
        emit("connector.state", connector=self.name, state=state.value, reason=reason)

    async def _pause(self, seconds: float) -> None:
        while seconds > 0 and not self._paused:
            await self._sleep(min(seconds, BEAT))
            seconds -= BEAT

    async def _sleep(self, seconds: float, life: asyncio.Task[Any] | None = None) -> None:
        """Wait, until the life ends or somebody calls at the latest."""
        self._call = asyncio.get_running_loop().create_future()
        waited: set[asyncio.Future[Any]] = {self._call} if life is None else {self._call, life}
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._beat()

    def _wake(self) -> None:
        if self._call is not None and not self._call.done():
            self._call.set_result(None)

    def _beat(self) -> float:
        self.beat = asyncio.get_running_loop().time()
        return self.beat
