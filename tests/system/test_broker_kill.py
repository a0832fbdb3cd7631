"""Messages from real brokers, while the gateway, the broker or the database goes away: each has exactly one effect."""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.databases import fresh_database
from tests.services import Server, make
from tests.system.brokers import KINDS, Broker
from tests.system.database import Database
from tests.system.ledger import judge
from tests.system.process import Gateway, run_for
from tests.system.strangers import Producer
from tests.system.waiting import until

SOAK = float(os.environ.get("SOAK_SECONDS", "0"))
MESSAGES = 5000 if SOAK else 1500
KILLS = max(8, int(SOAK / 100))
AWAY = 30 if SOAK else 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + SOAK)]


class System:
    """A gateway between a broker and a database, and somebody who produces all the time."""

    def __init__(self, broker: Broker, database: Database, folder: Path) -> None:
        send = {"topic": broker.topic("sent")}
        kinds = ("effect", {}), ("publish", send), ("deferred", {}), ("publish", {**send, "failures": 1})
        self.broker, self.database = broker, database
        self.producer = Producer(broker, *kinds)
        self.over = asyncio.Event()
        entries = [broker.entry(name, handler=f"example.{name}") for name in ("effect", "publish", "deferred")]
        self.gateway = Gateway(folder, database.url, out=broker.connector(*entries))

    @classmethod
    @asynccontextmanager
    async def at(cls, server: Server, url: str, folder: Path) -> Any:
        async with KINDS[server.name](server) as broker, Database(url) as database:
            self = cls(broker, database, folder)
            await broker.prepare("effect", "publish", "deferred")
            await self.gateway.prepare(database)
            try:
                self.gateway.start()
                await self.gateway.connected()
                flow = asyncio.create_task(self.producer.flow(self.over, least=MESSAGES, pause=0.01))
                yield self
                self.over.set()
                await asyncio.wait_for(flow, 90)
                await self.producer.all_there(database)
                assert await self.gateway.stop() == 0, self.gateway.tail()
            finally:
                self.gateway.kill()
            ledger = await self.producer.ledger(database)
        print(
            f"{len(self.producer.confirmed)} messages, {self.producer.unconfirmed} not confirmed,"
            f" {len(ledger.received)} received"
        )
        assert judge(ledger) == []

    async def more_done(self) -> float:
        """Return the seconds until one more message has its effect."""
        done = "SELECT count(*) FROM effects"
        before = int(await self.database.value(done))

        async def is_done() -> bool:
            return int(await self.database.value(done)) > before

        try:
            return await until(is_done, within=60, what="messages are being worked on")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.gateway.tail()}") from None


async def test_every_message_has_one_effect_though_the_gateway_is_killed(
    broker_server: Server, a_url: str, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with System.at(broker_server, a_url, tmp_path) as system:
        for _ in range(KILLS):
            if chance.random() < 0.8:
                await system.more_done()
            await run_for(chance.uniform(0, 0.7))
            system.gateway.kill()
            system.gateway.start()


@pytest.mark.database
async def test_every_message_has_one_effect_though_the_broker_is_restarted(
    broker_server: Server, postgresql_url: str, tmp_path: Path
) -> None:
    async with System.at(broker_server, postgresql_url, tmp_path) as system:
        for _ in range(2):
            await system.more_done()
            async with system.broker.away():
                pass
            print(f"{await system.gateway.connected():.1f} s until it is connected again")


@pytest.fixture
def own_postgresql() -> Iterator[Server]:
    server = make("postgresql")
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.mark.database
async def test_every_message_has_one_effect_though_the_database_is_away(
    broker_server: Server, own_postgresql: Server, tmp_path: Path
) -> None:
    with fresh_database(own_postgresql.url) as url:
        async with System.at(broker_server, url, tmp_path) as system:
            await system.more_done()
            await asyncio.to_thread(own_postgresql.stop)
            await run_for(AWAY)
            await asyncio.to_thread(own_postgresql.start)
            print(f"{await system.more_done():.1f} s until messages are worked on again")
