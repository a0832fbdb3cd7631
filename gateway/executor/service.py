"""Runs jobs: claims them, has their handlers called, and their outcomes written."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import NamedTuple

from gateway.coordination import Coordinator, Wakeup
from gateway.coordination.loop import Loop
from gateway.executor.committer import COMMITTERS, Committer
from gateway.executor.guard import guarded
from gateway.executor.progress import Progress
from gateway.executor.settler import Settler
from gateway.executor.together import Together
from gateway.executor.watchdog import Watchdog
from gateway.executor.workers import Workers
from gateway.handler import Handler, Maintenance, Services
from gateway.job import QueueJob
from gateway.outcome import RetryPolicy
from gateway.store import Lane, Store
from gateway.telemetry import emit

MAX_CLAIM = 200
MAX_BACKLOG = 400
"""Ended attempts that may wait for the database; with more, nothing is claimed."""
STALE = 1.0
"""Seconds after which claimed jobs that found no free worker are given back for others to run."""
SUSPECTS = 1.0
"""Seconds between two looks for crash suspects, and how long their turn lasts."""
MAKE_ROOM = 10.0
"""Seconds that a suspect waits for the running handlers to end, before it is left for later."""
LATER = 60.0
LAST_MOMENTS = 1.0
"""Seconds that a drain may take beyond its grace."""


class Drained(NamedTuple):
    """What a drain left: jobs given back without using an attempt, and handlers that ignored their cancellation."""

    released: int
    abandoned: int


class Executor:
    """Runs the jobs of the handlers it knows, `workers` at once; all others are left in the queue.

    `resolve` gives a handler by name. A handler occupies a worker only while it runs. `timeout` (seconds, None for
    none) and `max_retries` are for handlers that do not say. A handler that ignores two cancellations, `patience`
    seconds each, is abandoned: its job fails and its worker is replaced, as often as there are workers.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes what the configuration says
        self,
        store: Store,
        resolve: Callable[[str], Handler | None],
        handlers: Collection[str],
        *,
        wake: Wakeup,
        workers: int = 5,
        poll_interval: float = 5.0,
        policy: RetryPolicy | None = None,
        timeout: float | None = 300.0,
        max_retries: int = 3,
        patience: float = 1.0,
        maintenance: Maintenance | None = None,
        coordinator: Coordinator | None = None,
        instance: str = "gateway",
    ) -> None:
        self._store = store
        self._resolve = resolve
        self._known = tuple(sorted(handlers))
        self._wake = wake
        self._poll_interval = poll_interval
        self._max_retries = max_retries
        policy = policy or RetryPolicy()
        self._committer = Committer(store, policy=policy, wake=wake, forget=self._forget)
        self._settler = Settler(self._committer, policy=policy)
        self._progress = Progress(store)
        self._workers = Workers(
            store,
            self._settler,
            self._progress,
            count=workers,
            timeout=timeout,
            max_retries=self._retries_of,
            patience=patience,
            services=Services(cluster=Together(store, wake, coordinator), maintenance=maintenance),
            name=instance,
            freed=self._nudge,
            lost=self._forget,
        )
        self._held: dict[str, QueueJob] = {}
        self._claiming = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._drained = asyncio.Event()
        self._more = self._nudged = self._draining = self._working = False
        self._low = 0
        self._claimed_at = self._look_at = 0.0
        self._loop = Loop("executor", self._turn, pause=partial(wake.wait, Lane.RUN))

    @property
    def beat(self) -> float:
        """Event loop time of the last sign of life of the claiming loop."""
        return self._loop.beat

    @property
    def held(self) -> Collection[str]:
        """Claim tokens of the jobs in memory: claimed, running, or ended and not written yet."""
        return frozenset(self._held)

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return self._workers.running

    async def run(self) -> None:
        """Run jobs until cancelled; handlers that still run then are stopped without using their attempts."""
        async with self._machinery():
            try:
                await self._loop.run()
            finally:
                await (self._drained.wait() if self._draining else self.drain(0.0))

    async def once(self) -> int:
        """Run the jobs of one claim to their end, or if there are none the crash suspects; return how many."""
        async with self._machinery():
            jobs = await self._claim(Lane.RUN, min(MAX_CLAIM, self._workers.free + self._workers.ahead()))
            if not jobs:
                return await self._run_suspects()
            self._accept(jobs)
            await self._quiet.wait()
            return len(jobs)

    async def drain(self, grace: float) -> Drained:
        """Stop: claim nothing more, let handlers end within `grace` seconds, then roll back and give back the rest.

        Takes at most a second longer than `grace`, and costs no attempt. What could not be written until then, as
        the database is away, is left to the rescue.
        """
        self._draining = True
        for job in self._workers.take_back():
            self._committer.give_back(job)
        self._settler.hasten()
        released, abandoned = self._committer.released, self._workers.given_up
        try:
            if not await self._until_quiet(grace):
                self._workers.stop(LAST_MOMENTS / 4)
                self._settler.hasten()
                await self._until_quiet(LAST_MOMENTS)
        finally:
            self._drained.set()
        return Drained(self._committer.released - released, self._workers.given_up - abandoned)

    async def _turn(self) -> float:
        """Claim what there is room for; return how long to wait for a wake-up at most."""
        self._nudged = False
        if self._draining:
            return self._poll_interval
        looked = time.monotonic() >= self._look_at
        if looked:
            await self._run_suspects()
        wanted = self._wanted()
        if wanted:
            jobs = await self._claim(Lane.RUN, wanted)
            self._more = bool(jobs)
            self._accept(jobs)
            if jobs:
                return 0.0
        elif self._workers.ready:
            self._give_back_stale()
            return STALE
        return self._poll_interval if looked else min(self._poll_interval, SUSPECTS)

    def _wanted(self) -> int:
        if self._settler.backlog >= MAX_BACKLOG:
            return 0
        ahead = self._workers.ahead()
        self._low = ahead // 2
        ready = len(self._workers.ready)
        return 0 if ready > self._low else min(MAX_CLAIM, max(0, self._workers.free) + ahead - ready)

    async def _claim(self, lane: str, limit: int) -> list[QueueJob]:
        if limit < 1 or self._draining:
            return []
        started = time.monotonic()
        self._claiming += 1
        self._quiet.clear()
        try:
            jobs = await self._store.claim(lane, limit, self._known)
            for job in jobs:
                self._held[job.claim_token or ""] = job
        finally:
            self._claiming -= 1
            self._settle_down()
        self._claimed_at = time.monotonic()
        if jobs:
            with self._caring_for(jobs):
                self._workers.appetite.claimed(jobs)
            emit("job.claimed", lane=lane, count=len(jobs), seconds=self._claimed_at - started)
        return jobs

    def _accept(self, jobs: Sequence[QueueJob]) -> None:
        known = []
        with self._caring_for(jobs):
            for job in jobs:
                handler = None if self._draining else self._handler(job.handler)
                if handler is None:
                    self._committer.give_back(job)
                else:
                    known.append((job, handler))
        self._workers.accept(known)

    @contextmanager
    def _caring_for(self, jobs: Sequence[QueueJob]) -> Iterator[None]:
        """Hold these jobs no longer if an error keeps them from their workers: the janitor makes them ready again."""
        try:
            yield
        except BaseException:
            for job in jobs:
                self._forget(job)
            raise

    def _handler(self, name: str) -> Handler | None:
        """Return a handler; one that cannot be loaded is told once, and its jobs are left for other instances."""
        if name not in self._known:
            return None
        try:
            handler = self._resolve(name)
        except Exception as error:  # noqa: BLE001 - an import can raise anything
            emit("service.error", service="executor", error=error)
            handler = None
        if handler is None:
            self._known = tuple(known for known in self._known if known != name)
        return handler

    def _retries_of(self, name: str) -> int:
        handler = self._handler(name)
        wish = None if handler is None else handler.options.max_retries
        return self._max_retries if wish is None else wish

    def _give_back_stale(self) -> None:
        if self._workers.free < 1 and time.monotonic() - self._claimed_at > STALE:
            for job in self._workers.take_back():
                self._committer.give_back(job)

    async def _run_suspects(self) -> int:
        """Run crash suspects, each alone in this instance, for a while; return how many ran."""
        self._look_at = time.monotonic() + min(SUSPECTS, self._poll_interval)
        suspect = await self._claim(Lane.ALONE, 1)
        if suspect and len(self._held) > 1:
            for job in (*suspect, *self._workers.take_back()):
                self._committer.give_back(job)
            if not await self._until_quiet(MAKE_ROOM):
                self._look_at = time.monotonic() + LATER
                return 0
            suspect = await self._claim(Lane.ALONE, 1)
        ran = 0
        until = time.monotonic() + SUSPECTS
        while suspect:
            self._accept(suspect)
            ran += 1
            while not await self._until_quiet(LATER):
                pass
            suspect = await self._claim(Lane.ALONE, 1) if time.monotonic() < until else []
        return ran

    async def _until_quiet(self, seconds: float) -> bool:
        """Wait until nothing is held in memory any more; say whether that came in time."""
        until = time.monotonic() + seconds
        while not self._quiet.is_set() and (left := until - time.monotonic()) > 0:
            self._loop.touch()
            with suppress(TimeoutError):  # wait_for would swallow a cancellation that comes together with the event
                async with asyncio.timeout(min(left, 1.0)):
                    await self._quiet.wait()
        return self._quiet.is_set()

    def _forget(self, job: QueueJob) -> None:
        self._held.pop(job.claim_token or "", None)
        self._settle_down()
        self._nudge()

    def _settle_down(self) -> None:
        if not self._held and not self._claiming:
            self._quiet.set()

    def _nudge(self) -> None:
        """Have the loop claim again, if there is room and the last claim found something."""
        if self._more and not self._nudged and len(self._workers.ready) <= self._low:
            self._nudged = True
            self._wake.set(Lane.RUN)

    @asynccontextmanager
    async def _machinery(self) -> AsyncIterator[None]:
        if self._working:
            yield
            return
        self._working = True
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._committer.run(), name=f"committer {n}") for n in range(COMMITTERS)]
        tasks.append(loop.create_task(self._progress.run(), name="progress"))
        watchdog = Watchdog()
        watchdog.start()
        try:
            with guarded(loop):
                yield
        finally:
            watchdog.stop()
            self._workers.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, self._settler.close(LAST_MOMENTS), return_exceptions=True)
            self._working = False
