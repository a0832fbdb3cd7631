"""The workers: so many handlers at once, each stopped when its time is up, each replaced when it does not stop."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context as Variables
from contextvars import copy_context
from functools import partial

from gateway.effects import Effects
from gateway.executor.appetite import Appetite
from gateway.executor.attempt import Attempt, Stop
from gateway.executor.guard import TASK_PREFIX
from gateway.executor.progress import Progress
from gateway.executor.settler import Settler
from gateway.executor.threads import Threads
from gateway.handler import Handler, Services
from gateway.job import QueueJob
from gateway.store import Store
from gateway.telemetry import emit


class Workers:
    """Starts accepted jobs in order as workers become free; `freed` is called whenever one does.

    `lost` is called with a job that could not be started, and that nobody here will care for any more.
    """

    def __init__(  # noqa: PLR0913 - one part of the executor, taken out of it to be read by itself
        self,
        store: Store,
        settler: Settler,
        progress: Progress,
        *,
        count: int,
        timeout: float | None,
        max_retries: Callable[[str], int],
        patience: float,
        services: Services,
        name: str,
        freed: Callable[[], None],
        lost: Callable[[QueueJob], None],
    ) -> None:
        self._store = store
        self._settler = settler
        self._progress = progress
        self._count = count
        self._timeout = timeout
        self._max_retries = max_retries
        self._patience = patience
        self._services = services
        self._freed = freed
        self._lost = lost
        self._threads = Threads(count, name=f"{name}-handler")
        self._variables: Variables = copy_context()
        self._running: set[Attempt] = set()
        self._abandoned: set[Attempt] = set()
        self._fresh: list[Attempt] = []
        self.ready: deque[tuple[QueueJob, Handler]] = deque()
        """Accepted jobs for which no worker is free yet."""
        self.appetite = Appetite(count)
        self.given_up = 0
        """How many handlers were abandoned so far."""

    @property
    def free(self) -> int:
        """Workers with nothing to do. Abandoned handlers take none away, up to as many as there are workers."""
        return self._count - len(self._running) - max(0, len(self._abandoned) - self._count)

    @property
    def running(self) -> int:
        """Handlers that run, the abandoned ones not counted."""
        return len(self._running)

    def accept(self, jobs: Sequence[tuple[QueueJob, Handler]]) -> None:
        """Run these jobs after those accepted before."""
        self.ready.extend(jobs)
        self._pump()

    def take_back(self) -> list[QueueJob]:
        """Return the jobs that have not begun; they will not."""
        jobs = [job for job, _ in self.ready]
        self.ready.clear()
        return jobs

    def ahead(self) -> int:
        """Return how many jobs it is good to hold beyond the free workers."""
        return self.appetite.ahead(min((attempt.age for attempt in self._running), default=0.0))

    def stop(self, patience: float) -> None:
        """Stop every running handler without using its attempt; those that do not stop are abandoned."""
        for attempt in tuple(self._running):
            attempt.stop = attempt.stop or Stop.DRAIN
            attempt.push(patience, self._abandon)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.close()

    def _pump(self) -> None:
        while self.ready and self.free > 0:
            job, handler = self.ready.popleft()
            try:
                self._start(job, handler)
            except Exception as error:  # noqa: BLE001 - whatever it is, the jobs behind it must run
                emit("service.error", service="executor", error=error)
                self._lost(job)

    def _start(self, job: QueueJob, handler: Handler) -> None:
        timeout = handler.options.timeout if job.timeout is None else job.timeout
        attempt = Attempt(
            job,
            handler,
            transaction=self._store.transaction(),
            effects=Effects(job, max_retries=self._max_retries),
            timeout=self._timeout if timeout is None else timeout,
        )
        attempt.effects.on_progress = partial(self._progress.note, attempt)
        loop = asyncio.get_running_loop()
        attempt.task = asyncio.Task(
            self._run(attempt), loop=loop, name=TASK_PREFIX + handler.name, context=self._variables.copy()
        )
        self._running.add(attempt)
        emit("job.started", job=job.id, handler=handler.name, attempt=job.attempt)
        if not self._fresh:
            loop.call_soon(self._arm)
        self._fresh.append(attempt)

    def _arm(self) -> None:
        """Set the timers of those that did not end in their first step, as most do not need one."""
        begun = [attempt for attempt in self._fresh if attempt.begun]
        self._fresh = [attempt for attempt in self._fresh if not attempt.begun]
        if self._fresh:
            asyncio.get_running_loop().call_soon(self._arm)
        for attempt in begun:
            if not attempt.ended:
                attempt.arm(self._expire)

    async def _run(self, attempt: Attempt) -> None:
        result, error = await attempt.call(self._threads, self._services)
        self._running.discard(attempt)
        if attempt.abandoned:
            self._abandoned.discard(attempt)
        else:
            self.appetite.ended(attempt.seconds)
            self._settler.conclude(attempt, result, error)
        self._pump()
        self._freed()

    def _expire(self, attempt: Attempt) -> None:
        attempt.stop = attempt.stop or Stop.TIMEOUT
        attempt.push(self._patience, self._abandon)

    def _abandon(self, attempt: Attempt) -> None:
        attempt.abandon()
        self._running.discard(attempt)
        self._abandoned.add(attempt)
        self.given_up += 1
        emit("job.abandoned", job=attempt.job.id, handler=attempt.handler.name)
        self._settler.conclude(attempt, None, attempt.overdue())
        self._pump()
        self._freed()
