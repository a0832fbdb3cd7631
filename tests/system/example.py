"""A gateway as a real process that runs one of the examples."""

import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.config import sample
from tests.services import free_port
from tests.system.database import Database
from tests.system.process import GATEWAY, Admin, Gateway
from tests.system.waiting import until


class Example(Gateway):
    """A gateway that runs an example. Nothing is changed in it but the admin port, which other tests use too."""

    def __init__(self, folder: Path, name: str, *, database: str | None = None, **environment: str) -> None:
        port = free_port()
        Admin.__init__(self, f"http://127.0.0.1:{port}")
        self.name = name
        self.config, self.log = folder / f"{name}.yaml", folder / f"{name}.log"
        self.config.write_text(sample(name).replace("127.0.0.1:8090", f"127.0.0.1:{port}"))
        self.database = database or f"sqlite:///{folder / 'gateway.db'}"
        self.environment = {"DATABASE_URL": self.database, **environment}
        self._process = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Database]:
        """Run until the block ends, which begins when all connectors are connected; it must then stop in order."""
        self.start(**self.environment)
        try:
            await self.ready()
            await until(self.is_connected, within=60, what="all connectors are connected")
            async with Database(self.database) as database:
                yield database
            assert await self.stop() == 0, self.tail()
        except BaseException:
            print(self.tail())
            raise
        finally:
            self.kill()

    async def is_connected(self) -> bool:
        assert self.code is None, self.tail()
        return {view["state"] for view in await self.fetch("/api/connectors")} == {"connected"}

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GATEWAY, *arguments, "--config", str(self.config)], cwd=self.config.parent, check=False, timeout=60,
            env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip

    def send(self, connector: str, topic: str, body: str) -> None:
        done = self.command("send", connector, topic, "--body", body, "--wait", "20")
        assert done.returncode == 0, done.stderr

    def check(self) -> dict[str, dict[str, str]]:
        """Return the last finding of each part: of a connector, what its broker says."""
        done = self.command("check", "--json")
        found = {finding["part"]: finding for finding in json.loads(done.stdout)}
        assert done.returncode == any(finding["state"] == "failed" for finding in found.values()), done.stderr
        return found


async def completed(database: Database, handler: str, count: int = 1) -> list[dict[str, Any]]:
    """Return that handler's jobs once so many are completed."""
    rows: list[dict[str, Any]] = []

    async def are_there() -> bool:
        nonlocal rows
        rows = await database.rows(
            "SELECT * FROM queue_jobs WHERE handler = :handler AND statusid = 3", handler=handler
        )
        return len(rows) == count

    await until(are_there, within=30, what=f"{handler} has completed {count} jobs", every=0.05)
    return rows
