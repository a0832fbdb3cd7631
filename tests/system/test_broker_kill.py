"""Messages from real brokers, while the gateway, a broker or the database goes away: each has exactly one effect.

One gateway serves all brokers, so that each fault hits all of them, and one that is away meets others that are not.
"""

import asyncio
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.databases import fresh_database
from tests.services import Server, make
from tests.system.brokers import KINDS, Broker
from tests.system.database import Database
from tests.system.ledger import judge
from tests.system.process import Gateway, run_for
from tests.system.strangers import Producer, all_there, ledger_of
from tests.system.waiting import until

SOAK = float(os.environ.get("SOAK_SECONDS", "0"))
MESSAGES = 5000 if SOAK else 700
"""To each broker, at least."""
KILLS = max(8, int(SOAK / 100))
AWAY = 30 if SOAK else 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + SOAK)]


class System:
    """A gateway between brokers and a database, and somebody at each broker who produces all the time."""

    def __init__(self, brokers: Mapping[str, Broker], database: Database, folder: Path) -> None:
        self.brokers, self.database = brokers, database
        self.producers = {name: Producer(broker, *kinds(name, broker)) for name, broker in brokers.items()}
        self.over = asyncio.Event()
        connectors = {
            name: broker.connector(
                *(broker.entry(each, handler=f"example.{each}") for each in ("effect", "publish", "deferred"))
            )
            for name, broker in brokers.items()
        }
        self.gateway = Gateway(folder, database.url, others=connectors)

    @classmethod
    @asynccontextmanager
    async def at(cls, servers: Mapping[str, Server], url: str, folder: Path) -> Any:
        async with AsyncExitStack() as stack:
            brokers = {name: await stack.enter_async_context(KINDS[name](each)) for name, each in servers.items()}
            self = cls(brokers, await stack.enter_async_context(Database(url)), folder)
            for broker in brokers.values():
                await broker.prepare("effect", "publish", "deferred")
            await self.gateway.prepare(self.database)
            async with self._running():
                yield self
            ledger = await ledger_of(self.database, self.producers)
        for name, producer in self.producers.items():
            sent = f"{len(producer.confirmed)} messages, {producer.unconfirmed} not confirmed"
            print(f"{name}: {sent}, {len(producer.broker.received)} received")
        assert judge(ledger) == []

    @asynccontextmanager
    async def _running(self) -> Any:
        producers = self.producers.values()
        try:
            self.gateway.start()
            await self.connected()
            async with asyncio.TaskGroup() as group:
                for producer in producers:
                    group.create_task(producer.flow(self.over, least=MESSAGES, pause=0.03))
                yield
                self.over.set()
            await all_there(self.database, producers)
            assert await self.gateway.stop() == 0, self.gateway.tail()
        finally:
            self.gateway.kill()

    async def connected(self) -> float:
        """Return the seconds until all brokers are connected."""
        return max([await self.gateway.connected(name) for name in self.brokers])

    async def more_done(self, *names: str) -> float:
        """Return the seconds until one more message of each of these brokers, or of all, has had its effect."""
        kinds = {self.brokers[name].kind for name in names or self.brokers}
        before = await self._done()

        async def is_done() -> bool:
            done = await self._done()
            return all(done.get(kind, 0) > before.get(kind, 0) for kind in kinds)

        try:
            return await until(is_done, within=60, what=f"messages of {kinds} are being worked on")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.gateway.tail()}") from None

    async def _done(self) -> Mapping[str, int]:
        rows = await self.database.rows(
            "SELECT protocol, count(*) AS n FROM queue_jobs WHERE direction = 'inbound' AND statusid = 3"
            " GROUP BY protocol"
        )
        return {row["protocol"]: row["n"] for row in rows}


def kinds(name: str, broker: Broker) -> list[tuple[str, dict[str, Any]]]:
    """Return what is sent to a broker: topics and bodies; what is sent on goes back to that broker."""
    send = {"connector": name, "topic": broker.topic("sent")}
    return [("effect", {}), ("publish", send), ("deferred", {}), ("publish", {**send, "failures": 1})]


async def test_every_message_has_one_effect_though_the_gateway_is_killed(
    broker_servers: Mapping[str, Server], a_url: str, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with System.at(broker_servers, a_url, tmp_path) as system:
        for _ in range(KILLS):
            if chance.random() < 0.8:
                await system.more_done()
            await run_for(chance.uniform(0, 0.7))
            system.gateway.kill()
            system.gateway.start()


@pytest.mark.database
async def test_every_message_has_one_effect_though_brokers_are_restarted(
    broker_servers: Mapping[str, Server], postgresql_url: str, tmp_path: Path
) -> None:
    async with System.at(broker_servers, postgresql_url, tmp_path) as system:
        for name in [*system.brokers] * 2:
            await system.more_done()
            async with system.brokers[name].away():
                await system.more_done(*(system.brokers.keys() - {name}))
            print(f"{name}: {await system.connected():.1f} s until it is connected again")


@pytest.fixture
def own_postgresql() -> Iterator[Server]:
    server = make("postgresql")
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.mark.database
async def test_every_message_has_one_effect_though_the_database_is_away(
    broker_servers: Mapping[str, Server], own_postgresql: Server, tmp_path: Path
) -> None:
    with fresh_database(own_postgresql.url) as url:
        async with System.at(broker_servers, url, tmp_path) as system:
            await system.more_done()
            await asyncio.to_thread(own_postgresql.stop)
            await run_for(AWAY)
            await asyncio.to_thread(own_postgresql.start)
            print(f"{await system.more_done():.1f} s until messages are worked on again")
