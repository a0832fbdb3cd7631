"""Named points before and after every commit, acknowledgement and send, at which tests let things go wrong.

A point costs one comparison unless a test has armed it: in the process with `armed`, or in a process to be started
with the environment variable `GATEWAY_CRASHPOINT=name` (the process kills itself when it gets there;
`GATEWAY_CRASHPOINT_SKIP=n` lets it pass n times first).
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def _kill_at(point: str, skip: int) -> Callable[[str], None]:
    passed = 0

    def kill(name: str) -> None:
        nonlocal passed
        if name == point:
            passed += 1
            if passed > skip:
                os.kill(os.getpid(), signal.SIGKILL)

    return kill


if "GATEWAY_CRASHPOINT" in os.environ:
    _action = _kill_at(os.environ["GATEWAY_CRASHPOINT"], int(os.environ.get("GATEWAY_CRASHPOINT_SKIP", "0")))
