"""A gateway as a real process: started from a configuration file, killed, stopped, started again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import yaml

from gateway.store.migrate import migrate
from tests.services import free_port
from tests.system.database import Database
from tests.system.waiting import until

GATEWAY = (sys.executable, "-m", "gateway")

HANDLERS = (
    "effect", "deferred", "plain", "publish", "slow", "flaky", "poison", "swallow", "commit", "rollback", "raw_commit",
    "ddl", "not_a_number", "unserialisable", "system_exit", "interrupt", "stubborn", "blocking", "asleep",
    "undecodable",
)  # fmt: skip


class Admin:
    """A gateway's admin listener."""

    def __init__(self, admin: str) -> None:
        self.admin = admin

    async def answers(self, route: str) -> bool:
        """Whether an admin route answers with 200."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(self.admin + route, timeout=aiohttp.ClientTimeout(5)) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def fetch(self, route: str) -> Any:
        """Return the JSON of an admin route."""
        async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(self.admin + route) as response:
            return await response.json()


class Process(Protocol):
    """What is needed of a `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int | None: ...


class Gateway(Admin):
    """One instance with an HTTP listener that has a path for each example handler: `/effect`, `/slow`, …

    `out` is what the handlers send by: the URL of an HTTP receiver, or the settings of another connector.
    """

    def __init__(
        self,
        folder: Path,
        database: str,
        *,
        name: str = "one",
        out: str | Mapping[str, Any] | None = None,
        others: Mapping[str, Any] | None = None,
        grace: float = 10,
        cache: Mapping[str, Any] | None = None,
        **jobs: Any,
    ) -> None:
        super().__init__(f"http://127.0.0.1:{free_port()}")
        self.name = name
        self.web = f"http://127.0.0.1:{free_port()}"
        self.config = folder / f"{name}.yaml"
        self.log = folder / f"{name}.log"
        self._process: Process | None = None
        if out is not None:
            others = {"out": {"type": "http", "url": out} if isinstance(out, str) else out, **(others or {})}
        settings = self._settings(database, others or {}, grace, jobs) | ({} if cache is None else {"cache": cache})
        self.config.write_text(yaml.safe_dump(settings))

    def _settings(
        self, database: str, others: Mapping[str, Any], grace: float, jobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        web = {
            "type": "http",
            "listen": self.web.removeprefix("http://"),
            "max_body": 32 * 1024 * 1024,
            "inbound": [{"path": f"/{name}", "handler": f"example.{name}"} for name in HANDLERS],
        }
        return {
            "gateway": {
                "name": self.name,
                "grace": grace,
                "admin": {"listen": self.admin.removeprefix("http://")},
            },
            "database": {"url": database},
            "jobs": {"workers": 8, "poll_interval": 1, "retry_delay": 0.05, "lease": 5, **jobs},
            "connectors": {"web": web, **others},
        }

    async def prepare(self, database: Database) -> None:
        """Bring the schema and the example's ledger into an empty database, without what goes by the clock."""
        await migrate(database.url)
        await database.execute("DELETE FROM jobs")
        await database.create_ledger()

    def start(self, **environment: str) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*GATEWAY, "run", "--config", str(self.config)],
                cwd=self.config.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        assert self._process is not None, "not started"
        return self._process.poll()

    async def ready(self, within: float = 30) -> float:
        """Return the seconds until it says that it is ready."""

        async def is_ready() -> bool:
            assert self.code is None, f"the gateway ended with {self.code}\n{self.tail()}"
            return await self.answers("/ready")

        try:
            return await until(is_ready, within=within, what=f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    async def connected(self, connector: str = "out", within: float = 30) -> float:
        """Return the seconds until a connector is connected."""
        state: dict[str, Any] = {}

        async def is_connected() -> bool:
            assert self.code is None, f"the gateway ended with {self.code}"
            with suppress(aiohttp.ClientError, TimeoutError):
                state.update(*(each for each in await self.fetch("/api/connectors") if each["name"] == connector))
            return bool(state.get("state") == "connected")

        try:
            return await until(is_connected, within=within, what=f"{connector} is connected", every=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {state}\n{self.tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all it has started."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it at once, as a power cut would. Does nothing if it is not running."""
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait(10)

    async def ended(self, within: float) -> int:
        """Return the exit code once it has ended."""
        await until(lambda: self.code is not None, within=within, what=f"{self.name} has ended\n{self.tail()}")
        assert self.code is not None
        return self.code

    async def stop(self, within: float = 30) -> int:
        """Ask it to stop and return its exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended(within)

    def tail(self, characters: int = 3000) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


async def run_for(seconds: float) -> None:
    """Let the system run before the next fault."""
    await asyncio.sleep(seconds)
