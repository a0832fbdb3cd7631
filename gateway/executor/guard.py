"""Keeps an exit of the program, raised in a task that a handler started, from ending the event loop.

asyncio lets `SystemExit` and `KeyboardInterrupt` of any task pass through the loop, which cancels every other job.
The attempt's own task catches them; this is for the tasks that handlers make, `asyncio.wait_for` and `gather` included.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

inside: ContextVar[str | None] = ContextVar("gateway_handler", default=None)
"""The name of the handler on whose behalf this code runs."""

TASK_PREFIX = "handler "
"""Begins the names of the tasks that run a handler; its own name follows."""


class Contained(Coroutine[Any, Any, Any]):
    """A coroutine that raises `RuntimeError` where it would have ended the program."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self._inner = inner

    def __await__(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine does."""
        try:
            return self._inner.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _contained(error) from error

    def throw(self, *error: Any) -> Any:
        """Raise inside, as a coroutine does."""
        try:
            return self._inner.throw(*error)
        except (SystemExit, KeyboardInterrupt) as raised:
            raise _contained(raised) from raised

    def close(self) -> None:
        """End it, as a coroutine does."""
        self._inner.close()


@contextmanager
def guarded(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Contain the tasks of handlers while the block runs. A task factory that was there before goes on working."""
    before = loop.get_task_factory()

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        handler = _handler_of(options.get("context"))
        if handler is not None:
            coroutine = Contained(coroutine)
            options.setdefault("name", None)
            if options["name"] is None:
                options["name"] = TASK_PREFIX + handler
        if before is not None:
            return before(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)

    factory: Callable[..., Any] = make
    loop.set_task_factory(factory)
    try:
        yield
    finally:
        loop.set_task_factory(before)


def _handler_of(context: Any) -> str | None:
    return inside.get() if context is None else context.get(inside)


def _contained(error: BaseException) -> RuntimeError:
    return RuntimeError(f"a task of the handler tried to end the program with {type(error).__name__}: {error}")
