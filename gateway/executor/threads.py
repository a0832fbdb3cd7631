"""Plain `def` handlers: each runs in a thread, on the job's own async transaction, without a second driver.

SQLAlchemy's synchronous session, used inside a greenlet, hands every database call as an awaitable to the greenlet's
parent; the parent here is the thread, which has the event loop await it. The thread itself may block as it likes.
"""

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any

from greenlet import getcurrent, greenlet

from gateway.errors import TransactionRefused


class Bridge(greenlet):
    """A greenlet whose database calls come to its parent as awaitables."""

    __sqlalchemy_greenlet_provider__ = True


class Call:
    """One call of a plain function in some thread. Make it, and await it, on the event loop."""

    def __init__(self, function: Callable[[Any], Any], context: object) -> None:
        self._function = function
        self._context = context
        self._variables = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        self._pending: asyncio.Task[Any] | None = None
        self._over = False

    async def outcome(self) -> tuple[Any, BaseException | None]:
        """Return what the function returned and what it raised; one of them is None. Never raises what it raised.

        A cancellation refuses the function every later database call, stops the one in progress, and is raised
        when the thread has come to its end, which nothing can force: until then further cancellations are in vain.
        """
        try:
            await asyncio.wait([self._ended])
        except asyncio.CancelledError:
            self._over = True
            if self._pending is not None:
                self._pending.cancel()
            await self._to_the_end()
            raise
        return self._ended.result()

    def run(self) -> None:
        """Call the function in this thread. Whatever it raises is an outcome, an exit of the program included."""
        try:
            value, error = self._variables.run(self._bridged), None
        except BaseException as raised:  # noqa: BLE001 - no error of a handler may end its thread
            value, error = None, raised
        try:
            self._loop.call_soon_threadsafe(self._deliver, value, error)
        except RuntimeError:
            return  # the loop was closed meanwhile, nobody waits for this call any more

    def _deliver(self, value: Any, error: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result((value, error))

    async def _to_the_end(self) -> None:
        while not self._ended.done():
            try:
                await asyncio.wait([self._ended])
            except asyncio.CancelledError:
                continue

    def _bridged(self) -> Any:
        inner = Bridge(self._function, getcurrent())
        wanted = inner.switch(self._context)
        while not inner.dead:
            try:
                value = self._awaited(wanted)
            except BaseException as error:  # noqa: BLE001 - it belongs where the function made the call
                wanted = inner.throw(error)
            else:
                wanted = inner.switch(value)
        return wanted

    def _awaited(self, awaitable: Awaitable[Any]) -> Any:
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(self._start, awaitable, answer)
        return answer.result()

    def _start(self, awaitable: Awaitable[Any], answer: concurrent.futures.Future[Any]) -> None:
        if self._over:
            _refuse(awaitable, answer)
            return
        self._pending = self._loop.create_task(_await(awaitable))
        self._pending.add_done_callback(lambda task: self._answer(task, awaitable, answer))

    def _answer(
        self, task: asyncio.Task[Any], awaitable: Awaitable[Any], answer: concurrent.futures.Future[Any]
    ) -> None:
        self._pending = None
        if task.cancelled():
            _refuse(awaitable, answer)
        elif (error := task.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())


class Threads:
    """Daemon threads, made when they are needed: one per call in progress, of which `keep` stay for the next calls.

    So a thread that never comes back costs nothing but itself; whoever submits bounds how many there are.
    """

    def __init__(self, keep: int, *, name: str) -> None:
        self._keep = keep
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._alive = 0
        self._busy = 0
        self._started = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Have `call`, which must not raise, run by a thread at once."""
        with self._lock:
            calls = self._calls
            self._busy += 1
            grow = self._busy > self._alive
            if grow:
                self._alive += 1
                self._started += 1
        calls.put(call)
        if grow:
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._work, args=(calls,), name=name, daemon=True).start()

    def close(self) -> None:
        """Let every thread end, those at work after their call. Does not wait; later calls get new threads."""
        with self._lock:
            calls, self._calls = self._calls, SimpleQueue()
            alive, self._alive, self._busy = self._alive, 0, 0
        for _ in range(alive):
            calls.put(None)

    def _work(self, calls: SimpleQueue[Callable[[], None] | None]) -> None:
        while (call := calls.get()) is not None:
            call()
            del call
            with self._lock:
                if calls is not self._calls:
                    continue
                self._busy -= 1
                if self._alive > self._keep and self._alive > self._busy:
                    self._alive -= 1
                    return


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _refuse(awaitable: Awaitable[Any], answer: concurrent.futures.Future[Any]) -> None:
    """Close what is not awaited (any more), and answer with an error."""
    close = getattr(awaitable.__await__(), "close", None)
    if close is not None:
        close()
    answer.set_exception(TransactionRefused("this attempt is over, its transaction was rolled back"))
