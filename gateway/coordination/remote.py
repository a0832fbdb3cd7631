"""What all caches have in common: deadlines, a breaker, sealed values, and tasks that tell and listen."""

import asyncio
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, ClassVar, TypeVar

from gateway.coordination.breaker import Breaker
from gateway.coordination.coordinator import CacheState, Coordinator, Remembered
from gateway.coordination.loop import back_off
from gateway.coordination.pacing import MOST
from gateway.coordination.seal import Seal
from gateway.coordination.settings import CacheConfig
from gateway.errors import Disconnected
from gateway.job import JobStatus
from gateway.outcome import describe
from gateway.telemetry import emit

T = TypeVar("T")
QUIET = 0.01
"""Seconds in which wake-ups, told or heard, become one."""
GATHER = 0.1
"""Seconds in which statuses become one call."""
STATUSES = 100
"""Statuses of one such call; more are left out: each takes some 40 µs, half as much as a small job."""
STALE = 1.0
"""Seconds after which a status is not told any more: this process may have been paused meanwhile."""
FRESH = 10
"""Seconds for which a status counts that may change."""
KEPT = 3600
"""Seconds for which Completed is kept."""
CALLS = 16
"""Calls that may be under way; beyond, the cache is done without."""
CONNECT = 2.0
"""Seconds to connect, log in and answer."""
WATCH = 2.0
"""Seconds between two looks whether the cache is there."""


class RemoteCoordinator(Coordinator, ABC):
    """A coordinator on a cache. Subclasses bring its few calls, which raise whatever they like.

    A call that has been made is never cancelled: its reply would be taken for the next one's. Who asked goes on
    without it after the deadline, and the call ends by its socket's own.
    """

    default_port: ClassVar[int]

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self._place = f"{config.host}:{config.port or self.default_port}"
        self._prefix, self._timeout = config.prefix, config.timeout
        self._seal: Seal | None = None
        self._me = ""
        self._breaker = Breaker()
        self._state = CacheState("connecting")
        self._calls: set[asyncio.Task[Any]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._news, self._changes = asyncio.Event(), asyncio.Event()
        self._statuses: dict[str, tuple[JobStatus, float]] = {}
        self._on_wake: Callable[[], None] | None = None
        self._heard_soon: asyncio.TimerHandle | None = None

    # -- what a cache must be able to do -------------------------------------------------------------------------------

    @abstractmethod
    async def _get(self, key: str) -> bytes | None: ...

    @abstractmethod
    async def _put(self, values: Mapping[str, bytes], seconds: int) -> None: ...

    @abstractmethod
    async def _add(self, key: str, value: bytes, seconds: int) -> bool:
        """Put a value where there is none; say whether there was none."""

    @abstractmethod
    async def _turn(self, key: str, rate: float) -> float:
        """Take the next turn at `rate` per second; return the seconds until it comes."""

    @abstractmethod
    async def _tell(self) -> None:
        """Tell the others that there is work."""

    @abstractmethod
    async def _hear(self) -> None:
        """Call `_heard` for what others tell, and once when it listens; until the connection is lost."""

    @abstractmethod
    async def _ping(self) -> str:
        """Return which server answers."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Drop every connection, with whatever is under way on it."""

    # -- the coordinator -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> CacheState:
        """How the cache is, by the last calls."""
        return self._state

    def start(self, secret: str, instance: str, on_wake: Callable[[], None]) -> None:
        """Begin to tell, to listen and to watch."""
        self._seal, self._me, self._on_wake = Seal(secret), instance, on_wake
        for work in (self._watch, self._tell_news, self._tell_statuses, self._listen):
            self._tasks.append(asyncio.create_task(work(), name=f"cache {work.__name__}"))

    async def close(self) -> None:
        """End the tasks, and drop the connections with what is under way."""
        if self._heard_soon is not None:
            self._heard_soon.cancel()
        for task in (*self._tasks, *self._calls):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._calls, return_exceptions=True)
        await self._disconnect()

    async def check(self) -> str:
        """Connect, log in, and say which server answered."""
        try:
            async with asyncio.timeout(CONNECT):
                answer = await self._ping()
        except Exception as error:
            raise Disconnected(f"{self.type} at {self._place}: {describe(error)}") from error
        finally:
            await self._disconnect()
        return f"connected: {answer}"

    def wake(self) -> None:
        """Tell the other instances soon."""
        self._news.set()

    def remember(self, job_id: str, status: JobStatus) -> None:
        """Tell a status soon."""
        if self._breaker.open or (len(self._statuses) >= STATUSES and job_id not in self._statuses):
            return
        self._statuses[job_id] = status, monotonic()
        self._changes.set()

    async def recall(self, job_id: str) -> Remembered | None:
        """Return what was told of a job, if that still counts."""
        key = self._key("job:status", job_id)
        value = self._opened(key, await self._ask(lambda: self._get(key), None))
        try:
            found = Remembered(
                JobStatus(value["status"]),
                str(value["instance_id"]),
                datetime.fromtimestamp(value["updated_at"], UTC),
            )
        except (TypeError, ValueError, KeyError, OverflowError):
            return None
        fresh = abs(datetime.now(UTC).timestamp() - found.at.timestamp()) <= FRESH
        return found if fresh or found.status is JobStatus.COMPLETED else None

    async def leads(self, task: str, seconds: float) -> bool:
        """Say whether to be the eager one: who said so first, and says so again in time, stays it."""
        key, lasting = self._key("leader", task), max(5, round(seconds))
        return await self._ask(lambda: self._lead(key, lasting), default=True)

    async def pace(self, name: str, rate: float) -> float:
        """Take a turn among all instances; while the cache is away, among this process's own."""
        turn = await self._ask(lambda: self._turn(self._key("pace", name), rate), None)
        return await super().pace(name, rate) if turn is None else min(MOST, max(0.0, turn))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _key(self, kind: str, name: str) -> str:
        """Return a key that every cache takes; a name that has anything unusual about it goes in as its hash."""
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", name):
            name = "#" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._prefix}:{kind}:{name}"

    def _opened(self, key: str, sealed: bytes | None) -> Any:
        return None if self._seal is None else self._seal.open(key, sealed)

    def _sealed(self, key: str, value: Any) -> bytes:
        assert self._seal is not None, "started"
        return self._seal.close(key, value)

    async def _lead(self, key: str, seconds: int) -> bool:
        leader = self._opened(key, await self._get(key))
        if leader is None:
            return await self._add(key, self._sealed(key, self._me), seconds)
        if leader == self._me:
            await self._put({key: self._sealed(key, self._me)}, seconds)
        return bool(leader == self._me)

    async def _ask(self, make: Callable[[], Awaitable[T]], default: T) -> T:
        """Return what a call brings within the deadline, else the default."""
        if self._seal is None or len(self._calls) >= CALLS or not self._breaker.allows(monotonic()):
            return default
        call = asyncio.create_task(self._called(make, default))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        done, _ = await asyncio.wait({call}, timeout=self._timeout)
        if not done:
            self._failed(f"no answer within {self._timeout:g} s")
        return call.result() if done else default

    async def _called(self, make: Callable[[], Awaitable[T]], default: T) -> T:
        started = monotonic()
        try:
            value = await make()
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the cache is done without
            if monotonic() - started <= self._timeout:
                self._failed(describe(error))
            return default
        if monotonic() - started <= self._timeout:
            self._breaker.succeeded()
            self._become(CacheState("connected"))
        return value

    def _failed(self, reason: str) -> None:
        self._breaker.failed(monotonic())
        emit("cache.failed", type=self.type, error=reason)
        if self._breaker.open or self._state.state == "connecting":
            self._become(CacheState("unavailable", f"{self.type} at {self._place}: {reason}"))

    def _become(self, state: CacheState) -> None:
        if state.state != self._state.state:
            emit("cache.state", type=self.type, state=state.state, reason=state.reason)
        self._state = state

    async def _watch(self) -> None:
        while True:
            await self._ask(self._ping, "")
            await asyncio.sleep(WATCH if self._state.state == "connected" else WATCH / 8)

    async def _tell_news(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(QUIET)
            self._news.clear()
            await self._ask(self._tell, None)

    async def _tell_statuses(self) -> None:
        while True:
            await self._changes.wait()
            await asyncio.sleep(GATHER)
            self._changes.clear()
            told, self._statuses = self._statuses, {}
            since = monotonic() - STALE
            fresh = {job_id: status for job_id, (status, at) in told.items() if at >= since}
            for seconds, final in ((KEPT, True), (FRESH, False)):
                values = dict(
                    self._status(job_id, status)
                    for job_id, status in fresh.items()
                    if (status is JobStatus.COMPLETED) == final
                )
                if values:
                    await self._ask(lambda values=values, s=seconds: self._put(values, s), None)  # type: ignore[misc]

    def _status(self, job_id: str, status: JobStatus) -> tuple[str, bytes]:
        key = self._key("job:status", job_id)
        value = {"status": int(status), "instance_id": self._me[:300], "updated_at": round(time(), 3)}
        return key, self._sealed(key, value)

    async def _listen(self) -> None:
        failures = 0
        while True:
            started = monotonic()
            try:
                await self._hear()
            except Exception as error:  # noqa: BLE001 - whatever it is, listening goes on
                emit("cache.failed", type=self.type, error=describe(error))
            failures = 0 if monotonic() - started > WATCH else failures + 1
            await asyncio.sleep(back_off(failures))

    def _heard(self) -> None:
        """Note that another instance has told, or may have."""
        if self._heard_soon is None:
            self._heard_soon = asyncio.get_running_loop().call_later(QUIET, self._wake_now)

    def _wake_now(self) -> None:
        self._heard_soon = None
        if self._on_wake is not None:
            self._on_wake()
