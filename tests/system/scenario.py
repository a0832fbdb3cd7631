"""The whole work of a gateway in small, with everybody that has a part in it: it passes every named point."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from sqlalchemy.engine import make_url
from yarl import URL

from tests.faults import FaultProxy
from tests.system.database import Database
from tests.system.forked import ForkedGateway
from tests.system.ledger import Violation, judge, lost_attempts, read
from tests.system.strangers import Client, Receiver
from tests.system.waiting import until

MESSAGES: Final = [
    ("/publish", {"failures": 1}), ("/deferred", {}), ("/effect", {}), ("/plain", {}), ("/deferred", {}),
]  # fmt: skip
LONG_AGO = "2020-01-02 03:04:05.000000"
LATER = "2040-01-02 03:04:05.000000"


class Scenario:
    """A database, a gateway that is still to be started, its clients, its operator, and whom it sends to.

    `fragile`: all connections to and from the gateway, but the operator's, can be lost at once.
    """

    def __init__(self, url: str, folder: Path, *, fragile: bool = False) -> None:
        self.url, self.folder, self.fragile = url, folder, fragile
        self._proxies: list[FaultProxy] = []
        self._gates = 0

    async def work(self, group: str) -> None:
        """Do everything that passes the common points, and what passes those of the group. Bounded."""
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            await self._leave_behind()
            tasks.create_task(self.client.flood(MESSAGES, clients=4, pause=0))
            tasks.create_task(self._fail_and_retry())
            tasks.create_task(self._cancel_and_retry())
            tasks.create_task(self._create("system.cleanup.histories", metadata={"days": 30}))
            if group == "report":
                tasks.create_task(self._report())
            if group == "lock":
                tasks.create_task(self._create("example.locked"))
            if group == "postpone":
                tasks.create_task(self._postpone())
            if group in ("plan", "fire", "schedule"):
                tasks.create_task(self._schedule("* * * * * *" if group != "schedule" else "0 0 1 1 *"))

    async def hold(self) -> None:
        """Have a job run until `let_go`, so that a stop must give it back."""
        reference = await self._create("example.gated", payload={"gate": str(self._gate)})
        await self._until_all(reference, "statusid = 2", "a job runs")

    def let_go(self) -> None:
        """Let the job that is held come to its end."""
        self._gate.touch()
        self._gates += 1

    def lose_connections(self) -> None:
        """Reset every connection to and from the gateway."""
        for proxy in self._proxies:
            proxy.reset()

    async def verdict(self) -> Sequence[Violation]:
        """Return what the judge finds once all has come to rest, and which jobs lost an attempt to what happened."""
        await self.database.rest()
        received, children = self.receiver.received, {"example.publish": 2}
        found = judge(await read(self.database, self.client.accepted, received=received, children=children))
        ticks = await self.database.rows(
            "SELECT s.id, s.executioncount, count(q.id) AS jobs FROM jobs s LEFT JOIN schedule_ticks t ON"
            " t.scheduleid = s.id LEFT JOIN queue_jobs q ON q.id = t.jobid GROUP BY s.id, s.executioncount"
        )
        made = await self.database.value("SELECT count(*) FROM queue_jobs WHERE handler = 'gateway.log'")
        if any(row["executioncount"] != row["jobs"] for row in ticks) or made != sum(row["jobs"] for row in ticks):
            found = [*found, Violation("ticks", "", f"{made} jobs of schedules: {ticks}")]
        return [*found, *await lost_attempts(self.database)]

    # -- what is left behind by others ---------------------------------------------------------------------------------

    async def _leave_behind(self) -> None:
        """Leave a job in the hands of a dead process, and one with its history that ended long ago."""
        gone, old, token = secrets.token_hex(8), secrets.token_hex(8), secrets.token_hex(8)
        await self._insert(gone, statusid=2, claimtoken=token, claimedby=f"gone/{gone}", startedat=LONG_AGO)
        self.client.accepted[gone] = gone
        await self._insert(old, statusid=3)
        await self.database.execute(
            "INSERT INTO job_histories (id, jobid, executionid, statusid, startedat)"
            f" VALUES ('{old}', '{old}', '{old}', 3, '{LONG_AGO}')"
        )
        await self.database.execute(f"UPDATE queue_jobs SET completedat = '{LONG_AGO}' WHERE id = '{old}'")

    async def _postpone(self) -> None:
        """Insert a job by hand that stands first in the queue, but is not due."""
        job_id = secrets.token_hex(8)
        await self._insert(job_id, priority=9, scheduledat=LATER)
        await self._operate(job_id)

    async def _schedule(self, cron: str) -> None:
        """Insert a schedule by hand, enable it, and if its only tick is soon, see it through."""
        name = secrets.token_hex(8)
        await self.database.execute(
            "INSERT INTO jobs (id, name, handler, cronexpression, maxexecutions, enabled)"
            f" VALUES ('{name}', '{name}', 'gateway.log', '{cron}', 1, FALSE)"
        )
        met = "executioncount = 1 AND nextrunat IS NULL" if cron.startswith("*") else "enabled"
        query = f"SELECT count(*) FROM jobs WHERE name = :name AND {met}"

        async def enabled() -> bool:
            return await self._post(f"/api/schedules/{name}/enable") is not None

        await until(enabled, within=60, what="the schedule was enabled", every=0.05)

        async def fired() -> bool:
            return int(await self.database.value(query, name=name)) == 1

        await until(fired, within=60, what="the schedule has fired and ended", every=0.05)

    async def _insert(self, job_id: str, **columns: Any) -> None:
        columns = {"id": job_id, "handler": "example.effect", "payload": "{}", **columns}
        values = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in columns.values())
        await self.database.execute(f"INSERT INTO queue_jobs ({', '.join(columns)}) VALUES ({values})")

    # -- what operators do ---------------------------------------------------------------------------------------------

    async def _fail_and_retry(self) -> None:
        await self._operate(await self.client.post("/flaky", {"failures": 2}))

    async def _cancel_and_retry(self) -> None:
        await self._operate(await self._create("example.effect", delay=3600))

    async def _report(self) -> None:
        """Let a job go on once its progress can be seen."""
        gate = self.folder / secrets.token_hex(8)
        reference = await self._create("example.gated", payload={"gate": str(gate)})
        await self._until_all(reference, "progress IS NOT NULL", "a job told of its progress")
        gate.touch()

    async def _create(self, handler: str, **body: Any) -> str:
        """Create a job, again until that is answered; return the reference of all that were made so."""
        reference = secrets.token_hex(8)

        async def created() -> bool:
            job = await self._post("/api/jobs", {"handler": handler, "referenceid": reference, **body})
            if job is not None:
                self.client.accepted[reference] = job["id"]
            return job is not None

        await until(created, within=60, what=f"a job for {handler} was created", every=0.05)
        return reference

    async def _operate(self, name: str) -> None:
        """See the jobs of that id or reference through: cancel what waits for its time, retry what ended badly."""

        async def completed() -> bool:
            jobs = await self.database.rows(
                "SELECT id, statusid FROM queue_jobs WHERE id = :name OR referenceid = :name", name=name
            )
            for job in jobs:
                if job["statusid"] in (4, 6, 7):
                    await self._post(f"/api/jobs/{job['id']}/{'cancel' if job['statusid'] == 7 else 'retry'}")
            return {job["statusid"] for job in jobs} == {3}

        await until(completed, within=60, what="the operator is content", every=0.05)

    async def _post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the answer, None if there is none or it is no success."""
        try:
            async with self._operator.post(self.gateway.admin + path, json=body) as response:
                return dict(await response.json()) if response.ok else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def _until_all(self, reference: str, condition: str, what: str) -> None:
        query = f"SELECT count(*) FROM queue_jobs WHERE referenceid = :reference AND NOT ({condition} OR statusid = 3)"

        async def met() -> bool:
            return int(await self.database.value(query, reference=reference)) == 0

        await until(met, within=60, what=what, every=0.05)

    # -- who is there --------------------------------------------------------------------------------------------------

    @property
    def _gate(self) -> Path:
        return self.folder / f"gate-{self._gates}"

    async def _through(self, port: int, stack: AsyncExitStack) -> int:
        """Return the port by which another one is reached over a connection that can be lost."""
        if not self.fragile:
            return port
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", port))
        self._proxies.append(proxy)
        return proxy.port

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            self._operator = await enter(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)))
            self.receiver = await enter(Receiver())
            self.database = await enter(Database(self.url))
            address = make_url(self.url)
            if address.port is not None:
                address = address.set(port=await self._through(address.port, stack))
            seen = address.render_as_string(hide_password=False)
            out = f"http://127.0.0.1:{await self._through(self.receiver.port, stack)}"
            self.gateway = ForkedGateway(
                self.folder, seen, out=out, grace=0, max_retries=1, scheduler_check_interval=0.2
            )
            await self.gateway.prepare(self.database)
            port = await self._through(URL(self.gateway.web).port or 0, stack)
            self.client = await enter(Client(f"http://127.0.0.1:{port}"))
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gateway.kill()
        await self._open.aclose()
