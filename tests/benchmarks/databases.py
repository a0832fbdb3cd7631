"""A fresh database for each measurement."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

from tests.databases import fresh_database
from tests.services import make

Fresh: TypeAlias = Callable[[], AbstractContextManager[str]]


@contextmanager
def server(name: str) -> Iterator[tuple[Fresh, int | None]]:
    """Yield a context manager that gives a fresh database's URL, and the server's pid."""
    if name == "sqlite":
        yield _file, None
        return
    running = make(name).start()
    try:
        yield lambda: fresh_database(running.url), running.pid
    finally:
        running.remove()


@contextmanager
def _file() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        yield f"sqlite:///{Path(folder) / 'gateway.db'}"
