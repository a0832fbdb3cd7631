"""One attempt: one job's handler, called once, contained and stoppable."""

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from gateway.crashpoint import reach
from gateway.effects import Effects
from gateway.errors import HandlerTimeout
from gateway.executor.guard import inside
from gateway.executor.threads import Call, Threads
from gateway.handler import Context, Handler, PlainContext, Services, Transaction
from gateway.job import QueueJob
from gateway.store import JobTransaction

PUSHES = 2
"""How often a handler is cancelled before it is given up."""


class Stop(Enum):
    """Why a handler was asked to stop."""

    TIMEOUT = auto()
    DRAIN = auto()


class Attempt:
    """A claimed job and the one call of its handler. All methods are for the event loop."""

    __slots__ = (
        "_pushes",
        "_started",
        "_timer",
        "abandoned",
        "begun",
        "effects",
        "ended",
        "handler",
        "job",
        "seconds",
        "stop",
        "task",
        "timeout",
        "transaction",
    )

    def __init__(
        self, job: QueueJob, handler: Handler, transaction: JobTransaction, effects: Effects, timeout: float | None
    ) -> None:
        self.job = job
        self.handler = handler
        self.transaction = transaction
        self.effects = effects
        self.timeout = timeout
        self.stop: Stop | None = None
        self.task: asyncio.Task[None] | None = None
        """Calls the handler."""
        self.abandoned = False
        self.ended = False
        self.seconds = 0.0
        self.begun = False
        self._pushes = 0
        self._started = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def age(self) -> float:
        """Seconds since the handler was called."""
        return time.monotonic() - self._started if self.begun else 0.0

    def arm(self, expire: Callable[["Attempt"], None]) -> None:
        """Call `expire` when the handler's time is up."""
        if self.timeout is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self.timeout - self.age), expire, self)

    async def call(self, threads: Threads, services: Services) -> tuple[Any, BaseException | None]:
        """Call the handler and return what it returned and what it raised. Raises nothing, whatever it raised."""
        inside.set(self.handler.name)
        self.begun = True
        self._started = time.monotonic()
        result, error = None, None
        try:
            reach("executor.before_handler")
            if self.stop is not None:
                raise asyncio.CancelledError
            if self.handler.plain:
                context = PlainContext(self.job, _seen(self.transaction), self.effects, services)
                result, error = await self._in_thread(context, threads)
            else:
                result = await self.handler.function(Context(self.job, _seen(self.transaction), self.effects, services))
            reach("executor.after_handler")
        except BaseException as raised:
            if isinstance(raised, GeneratorExit) and not _loop_runs():
                raise  # the loop is gone and this coroutine is being closed
            error = raised
        self.seconds = time.monotonic() - self._started
        if self._timer is not None:
            self._timer.cancel()
        self.ended = True
        self.effects.close("its handler has returned")
        return (result, error) if self.stop is not Stop.TIMEOUT else (None, self.overdue(error))

    def push(self, patience: float, give_up: Callable[["Attempt"], None]) -> None:
        """Cancel the handler; again after `patience` seconds; after as many more call `give_up`."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pushes == PUSHES:
            give_up(self)
            return
        self._pushes += 1
        if self.handler.plain:
            self.effects.close("it was asked to stop")  # its thread cannot be, but what it asks for can be refused
        if self.task is not None and self.begun:
            self.task.cancel()
        self._timer = asyncio.get_running_loop().call_later(patience, self.push, patience, give_up)

    def abandon(self) -> None:
        """Give up a handler that does not end: from now on, nothing it does has an effect."""
        self.abandoned = self.ended = True
        self.seconds = self.age
        self.effects.close("it took too long and ignored its cancellation")

    def overdue(self, error: BaseException | None = None) -> HandlerTimeout:
        """Return the error of an attempt whose time was up."""
        raised = HandlerTimeout(f"{self.handler.name} did not finish within {self.timeout:g} s")
        raised.__cause__ = error
        return raised

    async def _in_thread(self, context: PlainContext, threads: Threads) -> tuple[Any, BaseException | None]:
        call = Call(self.handler.function, context)
        threads.submit(call.run)
        result, error = await call.outcome()
        if asyncio.iscoroutine(result):
            result.close()
            error = TypeError("a plain handler returned a coroutine: declare it with async def")
        return result, error


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _seen(transaction: JobTransaction) -> Transaction:
    """Check that the store's transaction is what handlers are promised."""
    return transaction
