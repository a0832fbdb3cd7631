"""Several instances on one database, each behind a network of its own, and what can befall them."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy.engine import make_url

from tests.brokers.caches import CacheServer
from tests.faults import FaultProxy
from tests.services import Server
from tests.system.database import Database
from tests.system.forked import ForkedGateway
from tests.system.process import run_for
from tests.system.strangers import Client
from tests.system.waiting import until

TICKER = "ticker"
"""The schedule that ticks each second."""
FORGET = {"redis": b"FLUSHALL\r\n", "memcached": b"flush_all\r\n"}
"""What has a cache forget everything."""


class Member:
    """One instance and its way to the database. Each fault lasts until the others have taken over its jobs.

    `rescues` are the seconds that this took, by fault.
    """

    def __init__(self, gateway: ForkedGateway, network: FaultProxy, database: Database) -> None:
        self.gateway, self.network, self._database = gateway, network, database
        self.rescues: list[tuple[str, float]] = []

    async def die(self) -> None:
        """Be killed, and started again once others work on its jobs."""
        await self._rescued("kill", self.gateway.kill)
        self.gateway.start()
        await self.gateway.ready()

    async def freeze(self) -> None:
        """Be stopped for longer than the lease, in the middle of whatever it does, and go on."""
        try:
            await self._rescued("pause", lambda: self.gateway.signal(signal.SIGSTOP))
        finally:
            self.gateway.signal(signal.SIGCONT)
        await self.gateway.ready()

    async def fall_silent(self) -> None:
        """Be cut off without any connection being closed; what it said meanwhile arrives late."""
        try:
            await self._rescued("cut", self.network.stall)
        finally:
            self.network.heal()
        await self.gateway.ready()

    async def lose_connections(self) -> None:
        """Have every connection reset, several times, and none accepted for a while."""
        for _ in range(3):
            self.network.refusing = True
            self.network.reset()
            await run_for(0.2)
            self.network.heal()
            await self.gateway.ready()

    async def _rescued(self, fault: str, strike: Callable[[], None]) -> None:
        """Strike while it works, and wait until nothing is held by the claims it had then."""

        async def works() -> bool:
            return bool(await self._claims())

        await until(works, within=60, what=f"{self.gateway.name} works")
        strike()
        struck = time.monotonic()
        tokens = await self._claims()

        async def taken_over() -> bool:
            return not tokens & await self._claims()

        await until(taken_over, within=60, what=f"{self.gateway.name}'s jobs are rescued")
        if tokens:
            self.rescues.append((fault, time.monotonic() - struck))

    async def _claims(self) -> set[str]:
        rows = await self._database.rows(
            "SELECT claimtoken FROM queue_jobs WHERE statusid = 2 AND claimedby LIKE :name",
            name=f"{self.gateway.name}/%",
        )
        return {row["claimtoken"] for row in rows}


class Balanced(Client):
    """Posts each message, and soon each repetition of one, to the next instance, as behind a load balancer."""

    def __init__(self, *bases: str) -> None:
        super().__init__(bases[0], patience=1)
        self._bases, self._turn = bases, 0

    async def _once(self, path: str, key: str, data: str) -> str | None:
        self._turn += 1
        self.base = self._bases[self._turn % len(self._bases)]
        return await super()._once(path, key, data)


class Fleet:
    """Three instances, started and ready, with a cache or without."""

    def __init__(
        self, server: Server, url: str, folder: Path, *, out: str, lease: float, cache: CacheServer | None
    ) -> None:
        self._server, self._url, self._folder = server, url, folder
        self._out, self._lease, self._cache = out, lease, cache
        self.members: list[Member] = []
        self.database = Database(url)

    async def restart_database(self) -> None:
        """Crash the database under all of them, and wait until jobs are done again."""
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.start)
        before = await self._done()

        async def more_done() -> bool:
            return await self._done() > before

        await until(more_done, within=60, what="jobs are being done again")

    async def lose_cache(self) -> None:
        """Have the cache forget all, hang, die and come back. Does nothing without one."""
        if self._cache is None:
            return
        await self._forget(self._cache)
        with self._cache.paused():
            await run_for(0.5)
        await asyncio.to_thread(self._cache.kill)
        await run_for(0.5)
        await asyncio.to_thread(self._cache.start)

    async def cache_connected(self) -> None:
        """Return once every instance has its cache, if there is one."""

        async def connected() -> bool:
            health = await self._each(lambda gateway: gateway.fetch("/health"))
            return all(each["cache"]["state"] == "connected" for each in health)

        if self._cache is not None:
            await until(connected, within=30, what="all are connected to the cache", every=0.1)

    async def tick(self) -> None:
        """Have the database tick each second, and miss no tick whatever happens."""
        await self.database.execute(
            "INSERT INTO jobs (id, name, handler, cronexpression, misfire, misfirelimit, maxretries)"
            f" VALUES ('{TICKER}', '{TICKER}', 'example.effect', '* * * * * *', 'all', 1000, 0)"
        )

    async def tick_no_more(self) -> None:
        """Stop that once all ticks until now have made their jobs."""
        now = datetime.now(UTC).replace(tzinfo=None)

        async def caught_up() -> bool:
            return bool(await self.database.value(f"SELECT lastrunat FROM jobs WHERE id = '{TICKER}'") > now)

        await until(caught_up, within=60, what="the schedule has caught up")
        await self.database.execute(f"UPDATE jobs SET enabled = FALSE WHERE id = '{TICKER}'")

    async def stop(self) -> None:
        """Stop all in order."""
        for code, member in zip(await self._each(ForkedGateway.stop), self.members, strict=True):
            assert code == 0, member.gateway.tail()

    async def _forget(self, cache: CacheServer) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", cache.port)
        writer.write(FORGET[cache.name])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def client(self) -> Balanced:
        """Return a client of all of them."""
        return Balanced(*(member.gateway.web for member in self.members))

    async def _done(self) -> int:
        return int(await self.database.value("SELECT count(*) FROM queue_jobs WHERE statusid = 3"))

    async def _each(self, work: Callable[[ForkedGateway], Awaitable[Any]]) -> list[Any]:
        return await asyncio.gather(*(work(member.gateway) for member in self.members))

    async def __aenter__(self) -> Self:
        address = make_url(self._url)
        cache = None if self._cache is None else {"url": self._cache.url}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.database)
            for name in ("one", "two", "three"):
                network = FaultProxy("127.0.0.1", address.port or 0)
                await stack.enter_async_context(network)
                seen = address.set(port=network.port).render_as_string(hide_password=False)
                gateway = ForkedGateway(
                    self._folder,
                    seen,
                    name=name,
                    out=self._out,
                    lease=self._lease,
                    scheduler_check_interval=0.5,
                    cache=cache,
                )
                self.members.append(Member(gateway, network, self.database))
                stack.callback(gateway.kill)
            await self.members[0].gateway.prepare(self.database)
            for member in self.members:
                member.gateway.start()
            await self._each(ForkedGateway.ready)
            await self.cache_connected()
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()
