"""Writes how attempts ended: many in one commit, and for as long as it takes.

Two committers take whatever has ended meanwhile, so that one gathers while the other commits; no timer delays
anything. A database that is away costs no attempt: what has ended is kept and tried again until it is written or the
claim is lost.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway.coordination import Wakeup
from gateway.coordination.loop import back_off
from gateway.errors import CommitUnknown, LeaseLost, StoreUnavailable
from gateway.job import JobStatus, QueueJob
from gateway.outcome import Cancel, Completed, Discard, Retry, RetryPolicy, decide
from gateway.store import Finish, Lane, Store
from gateway.telemetry import emit

COMMITTERS = 2
BATCH = 200
BATCH_BYTES = 4 * 1024 * 1024
AWAY = (StoreUnavailable, CommitUnknown)


class Committer:
    """Takes ended attempts and jobs to give back; `forget` is called once a job's claim is over, however it ended."""

    def __init__(self, store: Store, *, policy: RetryPolicy, wake: Wakeup, forget: Callable[[QueueJob], None]) -> None:
        self._store = store
        self._policy = policy
        self._wake = wake
        self._forget = forget
        self._ended: deque[Finish] = deque()
        self._returned: list[QueueJob] = []
        self._work = asyncio.Event()
        self.backlog = 0
        """Ended attempts and returned jobs that are not written yet."""
        self.released = 0
        """How many jobs were given back so far."""

    def put(self, finish: Finish) -> None:
        """Have the end of an attempt written. Never waits, never raises."""
        self.backlog += 1
        self._ended.append(finish)
        self._work.set()

    def give_back(self, job: QueueJob) -> None:
        """Have a job made ready again without using an attempt. Never waits, never raises."""
        self.backlog += 1
        self._returned.append(job)
        self._work.set()

    async def run(self) -> None:
        """Commit until cancelled; several may run at once."""
        while True:
            await self._work.wait()
            if self._returned:
                jobs, self._returned = self._returned, []
                await self._release(jobs)
            elif self._ended:
                await self._commit(self._take())
            else:
                self._work.clear()

    def lost(self, job: QueueJob) -> None:
        """Forget a job whose claim somebody else has by now."""
        emit("job.lost", job=job.id, handler=job.handler)
        self._forget(job)

    def written(self, finish: Finish) -> None:
        """Forget a job whose end has been committed; the next one of its ordering key can be claimed now."""
        self._forget(finish.job)
        if finish.job.ordering_key is not None:
            self._wake.set(Lane.RUN)
        status, error = _told(finish)
        job = finish.job
        emit(
            "job.finished",
            job=job.id,
            handler=job.handler,
            attempt=job.attempt,
            status=status,
            error=error,
            seconds=finish.seconds,
        )

    def _take(self) -> list[Finish]:
        batch: list[Finish] = []
        size = 0
        while self._ended and len(batch) < BATCH and size < BATCH_BYTES:
            finish = self._ended.popleft()
            size += sum(len(job.payload or b"") for job in finish.outgoing)
            batch.append(finish)
        return batch

    async def _commit(self, batch: list[Finish]) -> None:
        """Write these until nothing is left to be written for any of them."""
        failures = 0
        while batch:
            errors = await self._tried(batch)
            pairs = zip(batch, errors, strict=True)
            batch = [left for finish, error in pairs if (left := self._settle(finish, error))]
            away = next((error for error in errors if isinstance(error, AWAY)), None)
            if away is not None:
                failures = await _rest(away, failures)

    async def _tried(self, batch: list[Finish]) -> Sequence[Exception | None]:
        try:
            return await self._store.finish(batch)
        except AWAY as error:
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - one of them did it, which is found out by trying each alone
            if len(batch) == 1:
                return [error]
        return [(await self._tried([finish]))[0] for finish in batch]

    def _settle(self, finish: Finish, error: Exception | None) -> Finish | None:
        """Return what remains to be written for this attempt, None if nothing does."""
        match error:
            case None:
                self.backlog -= 1
                self.written(finish)
                return None
            case LeaseLost():
                self.backlog -= 1
                self.lost(finish.job)
                return None
            case StoreUnavailable() | CommitUnknown():
                return finish
            case _:
                return self._decided_again(finish, error)

    def _decided_again(self, finish: Finish, error: Exception) -> Finish | None:
        """Make it the attempt's failure that a deferred write, a message or the result was refused."""
        if isinstance(finish.outcome, Completed):
            outcome = decide(finish.job, error, policy=self._policy, jitter=random.random())  # noqa: S311 - no secret
            return replace(finish, outcome=outcome)
        self.backlog -= 1
        emit("service.error", service="executor", error=error)
        self._forget(finish.job)  # the janitor makes it ready again
        return None

    async def _release(self, jobs: list[QueueJob]) -> None:
        failures = 0
        while True:
            try:
                count = await self._store.release(jobs)
            except AWAY as error:
                failures = await _rest(error, failures)
            except Exception as error:  # noqa: BLE001 - the janitor makes them ready again
                emit("service.error", service="executor", error=error)
                break
            else:
                self.released += count
                emit("job.released", count=count)
                break
        self.backlog -= len(jobs)
        for job in jobs:
            self._forget(job)


async def _rest(error: BaseException, failures: int) -> int:
    """Wait a little for the database, longer each time, and return how often it failed so far."""
    emit("store.unavailable", error=error)
    await asyncio.sleep(back_off(failures, most=1.0))
    return failures + 1


def _told(finish: Finish) -> tuple[str, str | None]:
    match finish.outcome:
        case Completed():
            return JobStatus.COMPLETED.name.lower(), None
        case Retry(error=error):
            return JobStatus.RETRYING.name.lower(), error
        case Discard(error=error):
            return JobStatus.FAILED.name.lower(), error
        case Cancel(reason=reason):
            return JobStatus.CANCELLED.name.lower(), reason
