"""How the other processes see that this one is alive.

Two clocks tell of a death: a session lock, which the database frees within milliseconds of a crash, and the row in
`gateway_instances`, whose heartbeat grows old when the network is cut. Both live on one connection in a thread of
their own. SQLite has one process per file, so there a lock on `<file>.lock` is all.
"""

import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import StoreError
from gateway.store.driver import Dialect, Driver, Presence
from gateway.store.script import Script, Sql

MAX_PAUSE = 1.0
"""Seconds between two attempts to connect, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this process is, as `gateway_instances` shows it."""

    incarnation: str
    name: str
    version: str
    host: str
    pid: int

    @classmethod
    def of(cls, incarnation: str, name: str, version: str) -> "Identity":
        """Return the identity of the calling process."""
        return cls(incarnation=incarnation, name=name, version=version, host=socket.gethostname(), pid=os.getpid())


def insert(dialect: Dialect, who: Identity, *, lock: bool) -> Sql:
    """Insert this process's row, or refresh it if it is still there."""
    marks = [dialect.placeholder(n) for n in range(1, 7)]
    return Sql(
        "INSERT INTO gateway_instances (id, name, version, host, pid, sessionlock, startedat, heartbeatat) "  # noqa: S608 - constants only
        f"VALUES ({', '.join(marks)}, {dialect.now}, {dialect.now})"
        + dialect.upsert(("id",), ("heartbeatat", "sessionlock")),
        (who.incarnation, who.name, who.version, who.host, who.pid, lock),
    )


def beat(dialect: Dialect, who: Identity) -> Sql:
    """Refresh the heartbeat; counts zero if somebody has pruned the row."""
    return Sql(
        f"UPDATE gateway_instances SET heartbeatat = {dialect.now} WHERE id = {dialect.placeholder(1)}",  # noqa: S608 - constants only
        (who.incarnation,),
    )


def delete(dialect: Dialect, who: Identity) -> Sql:
    """Delete the row: an orderly end."""
    text = f"DELETE FROM gateway_instances WHERE id = {dialect.placeholder(1)}"  # noqa: S608 - constants only
    return Sql(text, (who.incarnation,))


class FilePresence(Presence):
    """SQLite's: a lock on `<file>.lock` that refuses a second gateway process, and the row once."""

    def __init__(self, driver: Driver, path: Path, who: Identity) -> None:
        self._driver, self._who = driver, who
        self._path = path.with_name(path.name + ".lock")
        self._file: int | None = None
        self._since: float | None = None

    @property
    def alive_since(self) -> float | None:
        """Since `start`."""
        return self._since

    async def start(self) -> None:
        """Take the lock. Raises `StoreError` if another gateway process has it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise StoreError(
                f"another gateway process is running on this SQLite file ({self._path} is locked): stop it first, "
                "or use PostgreSQL or MySQL to run several"
            ) from error
        self._file = file
        await self._run(insert(self._driver.dialect, self._who, lock=True))
        self._since = time.monotonic()

    async def stop(self) -> None:
        """Delete the row and release the lock."""
        if self._file is None:
            return
        try:
            await self._run(delete(self._driver.dialect, self._who))
        finally:
            os.close(self._file)
            self._file, self._since = None, None

    async def _run(self, sql: Sql) -> None:
        def script() -> Script[None]:
            yield sql

        await self._driver.run(script)
