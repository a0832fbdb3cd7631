"""What follows when a handler has ended: its own transaction commits or rolls back, and the outcome is written."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from gateway.errors import LeaseLost, LockBusy
from gateway.executor.attempt import Attempt, Stop
from gateway.executor.committer import AWAY, Committer
from gateway.job import QueueJob
from gateway.outcome import Completed, Outcome, RetryPolicy, decide
from gateway.store import Deferred, Finish
from gateway.telemetry import emit

SETBACKS = 5
"""How many times in a row the database may go away under one job before that counts as the job's own failure."""
REST = 0.5
"""Seconds before a job is given back whose transaction the database did not keep, or whose lock was not free."""
ROLLBACK_DEADLINE = 10.0


class Settler:
    """Decides what becomes of an ended attempt, and hands it to the committer unless it has its own transaction."""

    def __init__(self, committer: Committer, *, policy: RetryPolicy) -> None:
        self._committer = committer
        self._policy = policy
        self._setbacks: dict[str, int] = {}
        self._tasks: dict[asyncio.Task[None], Attempt] = {}
        self._resting: dict[asyncio.TimerHandle, QueueJob] = {}

    @property
    def backlog(self) -> int:
        """Ended attempts that are not written yet."""
        return self._committer.backlog + len(self._tasks) + len(self._resting)

    def conclude(self, attempt: Attempt, result: Any, error: BaseException | None) -> None:
        """Bring an attempt to its end. Never waits, never raises."""
        if error is None:
            outcome = decide(attempt.job, None, result, policy=self._policy, jitter=0.0)
            if isinstance(outcome, Completed):
                self._complete(attempt, outcome)
            else:
                self._fail(attempt, outcome)
        elif attempt.stop is Stop.DRAIN:
            self._undo(attempt, lambda: self._committer.give_back(attempt.job))
        else:
            self._failed(attempt, error)

    def hasten(self) -> None:
        """Give back at once what is resting."""
        for timer, job in self._resting.items():
            timer.cancel()
            self._committer.give_back(job)
        self._resting.clear()

    async def close(self, seconds: float) -> None:
        """Stop whatever is still being settled; the leases of those jobs are left to run out.

        Their transactions are rolled back, also those that nobody had begun to roll back. Takes `seconds` at most.
        """
        unsettled = dict(self._tasks)
        for task in unsettled:
            task.cancel()
        over = [attempt.transaction.rollback() for attempt in unsettled.values()]
        with suppress(TimeoutError):  # what is not over by then is dropped by the transaction's own deadline
            async with asyncio.timeout(seconds):
                await asyncio.gather(*unsettled, *over, return_exceptions=True)

    def _complete(self, attempt: Attempt, outcome: Completed) -> None:
        effects = attempt.effects
        finish = Finish(
            job=attempt.job,
            outcome=outcome,
            seconds=attempt.seconds,
            outgoing=effects.outgoing,
            deferred=[Deferred(statement, (values,)) for statement, values in effects.deferred],
            locks=(*effects.locks.values(),),
        )
        if attempt.transaction.opened:
            self._start(attempt, self._commit(attempt, finish))
        else:
            self._committer.put(finish)

    async def _commit(self, attempt: Attempt, finish: Finish) -> None:
        try:
            await attempt.transaction.finish(finish)
        except LeaseLost:
            self._undo(attempt, lambda: self._committer.lost(attempt.job))
        except Exception as error:  # noqa: BLE001 - whatever refused the commit is the attempt's failure
            self._failed(attempt, error)
        else:
            self._setbacks.pop(attempt.job.id, None)
            self._committer.written(finish)

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        if isinstance(error, LockBusy):
            self._undo(attempt, lambda: self._rest(attempt.job))
            return
        away = attempt.transaction.outage is not None or isinstance(error, AWAY)
        if away and self._setback(attempt.job):
            self._undo(attempt, lambda: self._rest(attempt.job))
        else:
            jitter = random.random()  # noqa: S311 - no secret
            self._fail(attempt, decide(attempt.job, error, policy=self._policy, jitter=jitter))

    def _fail(self, attempt: Attempt, outcome: Outcome) -> None:
        self._setbacks.pop(attempt.job.id, None)
        held = (*attempt.effects.locks.values(),)
        finish = Finish(job=attempt.job, outcome=outcome, seconds=attempt.seconds, locks=held)
        self._undo(attempt, lambda: self._committer.put(finish))

    def _setback(self, job: QueueJob) -> bool:
        """Count that the database went away under a job; say whether it is still the database's fault."""
        count = self._setbacks.get(job.id, 0) + 1
        self._setbacks[job.id] = count
        return count < SETBACKS

    def _rest(self, job: QueueJob) -> None:
        def over() -> None:
            del self._resting[timer]
            self._committer.give_back(job)

        timer = asyncio.get_running_loop().call_later(REST, over)
        self._resting[timer] = job

    def _undo(self, attempt: Attempt, then: Callable[[], None]) -> None:
        """Roll the attempt's own transaction back, if it has one, and go on with `then`."""
        if attempt.transaction.opened:
            self._start(attempt, self._roll_back(attempt, then))
        else:
            then()

    async def _roll_back(self, attempt: Attempt, then: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(ROLLBACK_DEADLINE):
                await attempt.transaction.rollback()
        except Exception as error:  # noqa: BLE001 - the connection is gone then, and with it what it wrote
            emit("service.error", service="executor", error=error)
        then()

    def _start(self, attempt: Attempt, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = attempt
        task.add_done_callback(self._tasks.pop)
