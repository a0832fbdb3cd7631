"""Named points before and after every commit, acknowledgement and send, at which tests let things go wrong.

A point costs one comparison unless a test has armed it: in the process with `armed`, or in a process to be started
with the environment variable `GATEWAY_CRASHPOINT=name,name`: the process kills itself once it has reached these
points in this order.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

_action: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Say that the program got to the point of that name. May raise, or never return, when a test wants so."""
    if _action is not None:
        _action(name)


@contextmanager
def armed(action: Callable[[str], None]) -> Iterator[None]:
    """Call `action` with the name of each point reached while the block runs, in whatever thread reaches it."""
    global _action  # noqa: PLW0603 - the point of it: production code reaches, only tests arm
    before, _action = _action, action
    try:
        yield
    finally:
        _action = before


def once(points: Sequence[str], act: Callable[[], None]) -> Callable[[str], None]:
    """Return an action that calls `act` once: at the last of these points, reached in this order."""
    left, lock = list(points), threading.Lock()

    def action(name: str) -> None:
        with lock:
            if left[:1] != [name]:
                return
            del left[0]
            last = not left
        if last:
            act()

    return action


if "GATEWAY_CRASHPOINT" in os.environ:
    _action = once(os.environ["GATEWAY_CRASHPOINT"].split(","), partial(os.kill, os.getpid(), signal.SIGKILL))
