"""Outbound jobs reach their broker: claimed in batches, published at once, finished together once confirmed."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import TypeAlias

from gateway.coordination import Wakeup
from gateway.coordination.loop import Loop, back_off
from gateway.crashpoint import reach
from gateway.errors import DeliveryError, Disconnected, LeaseLost, NotConnected, StoreError, StoreUnavailable
from gateway.job import QueueJob
from gateway.message import Message
from gateway.outcome import Completed, RetryPolicy, decide
from gateway.store import Finish, Lane, Store
from gateway.suspects import Suspects
from gateway.telemetry import emit

Publish: TypeAlias = Callable[[Message], Awaitable[str | None]]
Publishers: TypeAlias = Callable[[], Mapping[str, Publish]]

LANE = "outbox"
"""The wake-up lane of the outbox itself: set it when a connector has connected."""
BATCH = 200
"""Messages of one connector that are on their way at the same time, and rows of one finish."""
ASIDE = 1000
"""Messages of one connector that wait to be sent alone, at most."""

_LOOK = 0.2
"""Seconds between two looks whether one of them has rested."""


@dataclass(frozen=True, slots=True)
class _Surroundings:
    store: Store
    publishers: Publishers
    wake: Wakeup
    poll_interval: float
    policy: RetryPolicy
    timeout: float


class Outbox:
    """Sends what stands in the lane of each connector that is connected right now.

    `publishers` returns these by name. A message is confirmed by the return of its publish, which has `timeout`
    seconds. Rows for a connector that is away, or that this process does not have, stay as they are. The same
    message may be published again after a crash, with the same id. A lost connection costs none of the messages that
    were on their way an attempt, unless one of them is what makes the broker cut it, as `Suspects` finds out.
    """

    def __init__(
        self,
        store: Store,
        publishers: Publishers,
        *,
        wake: Wakeup,
        policy: RetryPolicy,
        poll_interval: float = 5.0,
        timeout: float = 30.0,
    ) -> None:
        self._around = _Surroundings(store, publishers, wake, poll_interval, policy, timeout)
        self._senders: dict[str, _Sender] = {}
        self._suspects: defaultdict[str, Suspects] = defaultdict(Suspects)
        self._draining = False
        self._loop = Loop("outbox", self._steer, pause=lambda seconds: wake.wait(LANE, seconds))

    async def run(self) -> None:
        """Send until cancelled; what is on its way then is given back without using an attempt."""
        try:
            await self._loop.run()
        finally:
            await self.drain(0)

    async def once(self, name: str) -> int:
        """Claim one batch of a connected connector, send and finish it. Returns how many rows that were."""
        sender = _Sender(name, self._around.publishers()[name], self._around, self._suspects[name])
        count = await sender.claim()
        await sender.settled()
        return count

    async def drain(self, grace: float) -> None:
        """Claim nothing more; finish what is on its way within `grace` seconds, and give back the rest."""
        self._draining = True
        await asyncio.gather(*(sender.stop(grace) for sender in self._senders.values()))
        self._senders.clear()

    @property
    def held(self) -> Collection[str]:
        """Claim tokens of the rows that are on their way."""
        return {token for sender in self._senders.values() for token in sender.held}

    @property
    def beat(self) -> float:
        """Event loop time of the last sign of life of the slowest loop."""
        return min([self._loop.beat, *(sender.loop.beat for sender in self._senders.values())])

    async def _steer(self) -> float:
        """Start a sender for each connector that came, stop that of each that went or came back as another one."""
        if self._draining:
            return 0.5
        connected = self._around.publishers()
        gone = [name for name, sender in self._senders.items() if connected.get(name) != sender.publish]
        await asyncio.gather(*(self._senders.pop(name).stop(0) for name in gone))
        for name, publish in connected.items():
            if name not in self._senders:
                sender = _Sender(name, publish, self._around, self._suspects[name])
                self._senders[name] = sender
                sender.start()
        return 0.5


class _Sender:
    """Sends for one life of one connector."""

    def __init__(self, name: str, publish: Publish, around: _Surroundings, suspects: Suspects) -> None:
        self.name = name
        self.publish = publish
        self.loop = Loop(f"outbox {name}", self._turn, pause=self._until_work)
        self.loop.touch()
        self.held: set[str] = set()
        self._around = around
        self._suspects = suspects
        self._aside: dict[str, QueueJob] = {}
        self._alone: QueueJob | None = None
        self._lane = Lane.send(name)
        self._sends: dict[asyncio.Task[None], QueueJob] = {}
        self._finished: list[Finish] = []
        self._unsent: list[QueueJob] = []
        self._flush: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._claim: asyncio.Task[int] | None = None
        self._stopping = False

    def start(self) -> None:
        self._task = asyncio.create_task(self.loop.run(), name=self.loop.name)

    async def stop(self, grace: float) -> None:
        """Claim nothing more, wait up to `grace` seconds for confirmations, then give back what lacks one."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._claim is not None:
            await asyncio.gather(self._claim, return_exceptions=True)
        if self._sends and grace > 0:
            await asyncio.wait(self._sends, timeout=grace)
        for task in self._sends:
            task.cancel()
        try:
            async with asyncio.timeout(5.0):
                await self.settled()
        except TimeoutError:
            emit("service.error", service=self.loop.name, error=TimeoutError("results could not be written in 5 s"))

    async def settled(self) -> None:
        """Return when nothing is on its way any more and every result is written."""
        while self._sends:
            await asyncio.wait(self._sends)
            await asyncio.sleep(0)
        self._unsent.extend(self._aside.values())
        self._aside.clear()
        while self._flush is not None and not self._flush.done():
            await asyncio.shield(self._flush)
        await self._release()

    async def claim(self) -> int:
        """Claim as much as there is room for, and start sending it, but for what has to go alone."""
        jobs = await self._around.store.claim(self._lane, self._room, None)
        self.held.update(job.claim_token for job in jobs if job.claim_token is not None)
        if self._stopping:
            self._unsent.extend(jobs)
            return 0
        for job in jobs:
            if self._suspects.is_suspect(job.id):
                self._aside[job.id] = job
            else:
                self._start(job)
        return len(jobs)

    @property
    def _room(self) -> int:
        return min(BATCH - len(self._sends), ASIDE - len(self._aside))

    def _start(self, job: QueueJob) -> None:
        task = asyncio.create_task(self._send(job), name=f"send {job.id}")
        self._sends[task] = job
        task.add_done_callback(self._sent)

    async def _turn(self) -> float:
        if self._unsent:
            await self._release()
            return back_off(1)
        suspect = self._suspects.next(self._aside, monotonic())
        if suspect is not None and not self._sends:
            self._alone = self._aside.pop(suspect)
            self._start(self._alone)
        room = self._room
        if self._alone is not None or suspect is not None or room == 0:
            return self._around.poll_interval
        self._claim = asyncio.create_task(self.claim(), name=f"outbox claim {self.name}")
        claimed = await asyncio.shield(self._claim)  # or a stop would forget rows it has just claimed
        if claimed == room:
            return 0.0
        return min(_LOOK, self._around.poll_interval) if self._aside else self._around.poll_interval

    def _sent(self, task: asyncio.Task[None]) -> None:
        job = self._sends.pop(task)
        if self._alone is job:
            self._alone = None
        if self._aside and not self._sends:
            self._around.wake.set(self._lane)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            emit("service.error", service=self.loop.name, error=error)
        if error is not None or task.cancelled():
            self._give_back(job)

    def _give_back(self, job: QueueJob) -> None:
        self._unsent.append(job)
        self._around.wake.set(self._lane)

    async def _until_work(self, seconds: float) -> None:
        await self._around.wake.wait(self._lane, seconds)

    async def _send(self, job: QueueJob) -> None:
        started = monotonic()
        response: str | None = None
        failure: Exception | None = None
        try:
            reach("outbox.before_publish")
            async with asyncio.timeout(self._around.timeout):
                response = await self.publish(job.message)
            reach("outbox.after_publish")
        except TimeoutError:
            failure = DeliveryError(f"not confirmed within {self._around.timeout:g} s")
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises is an outcome of this message
            failure = error
        if failure is not None and self._interrupted(failure):
            failure = self._own_failure(job, failure)
            if failure is None:
                self._give_back(job)
                return
        else:
            self._suspects.answered(job.id, delivered=failure is None)
        self._finish(job, failure, response, monotonic() - started)

    def _interrupted(self, failure: Exception) -> bool:
        """Say whether the connection went away, which is hardly ever the fault of the message."""
        if isinstance(failure, DeliveryError) and failure.permanent:
            return False
        return isinstance(failure, Disconnected) or self._around.publishers().get(self.name) != self.publish

    def _own_failure(self, job: QueueJob, failure: Exception) -> DeliveryError | None:
        """Return what a lost connection says about a message that was on its way; None: nothing yet."""
        if not isinstance(failure, Disconnected) or isinstance(failure, NotConnected) or self._stopping:
            return None
        if not self._suspects.cut(job.id, alone=self._alone is job, now=monotonic()):
            return None
        return DeliveryError(f"the connection is cut whenever this message is sent, even alone: {failure}")

    def _finish(self, job: QueueJob, failure: Exception | None, response: str | None, seconds: float) -> None:
        outcome = decide(job, failure, policy=self._around.policy, jitter=random.random())  # noqa: S311 - jitter
        if isinstance(failure, DeliveryError):
            response = failure.response
        if failure is not None:
            permanent = isinstance(failure, DeliveryError) and failure.permanent
            emit("outbox.failed", connector=self.name, job=job.id, error=failure, permanent=permanent)
        self._finished.append(Finish(job=job, outcome=outcome, seconds=seconds, output=response))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._write(), name=f"outbox results {self.name}")

    async def _write(self) -> None:
        """Write what is finished, all that waits at once, until nothing waits."""
        failures = 0
        while self._finished:
            batch = self._finished[:BATCH]
            started = monotonic()
            try:
                reach("outbox.before_finish")
                results = await self._around.store.finish(batch)
                reach("outbox.after_finish")
            except StoreError as error:
                emit("store.unavailable", error=error)
                failures += 1
                await asyncio.sleep(back_off(failures, most=1.0))
                continue
            failures = 0
            del self._finished[: len(batch)]
            self._account(batch, results, monotonic() - started)
            self._around.wake.set(self._lane)
            if self._finished == batch:
                await asyncio.sleep(back_off(1, most=1.0))

    def _account(self, batch: Collection[Finish], results: Collection[Exception | None], seconds: float) -> None:
        delivered = 0
        for finish, error in zip(batch, results, strict=True):
            if isinstance(error, StoreUnavailable):
                self._finished.append(finish)
                continue
            if error is not None and not isinstance(error, LeaseLost) and finish.output is not None:
                self._finished.append(replace(finish, output=None))  # the answer of the receiver is what cannot be kept
                continue
            self.held.discard(finish.job.claim_token or "")
            if isinstance(error, LeaseLost):
                emit("job.lost", job=finish.job.id, handler=finish.job.handler)
            elif error is not None:
                emit("service.error", service=self.loop.name, error=error)
            elif isinstance(finish.outcome, Completed):
                delivered += 1
        if delivered:
            emit("outbox.delivered", connector=self.name, count=delivered, seconds=seconds)

    async def _release(self) -> None:
        """Give back what was claimed and not sent. If that fails, the janitor finds them later."""
        jobs = self._unsent[:]
        if not jobs:
            return
        try:
            count = await self._around.store.release(jobs)
        except StoreError as error:
            emit("store.unavailable", error=error)
        else:
            emit("job.released", count=count)
        del self._unsent[: len(jobs)]  # not before, or a stop in the middle would forget them
        self.held.difference_update(job.claim_token or "" for job in jobs)
