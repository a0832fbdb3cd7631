"""A broker that is down when the gateway starts holds up nothing else, and is used as soon as it is there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services import Server
from tests.system.brokers import KINDS, MqttBroker
from tests.system.conftest import started
from tests.system.database import Database
from tests.system.process import Gateway
from tests.system.strangers import Client, Producer
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def second_server() -> Iterator[Server]:
    """A broker that is always there."""
    yield from started("mosquitto")


async def test_a_broker_that_is_down_at_the_start_holds_up_nothing_else(
    broker_server: Server, second_server: Server, sqlite_url: str, tmp_path: Path, record_property: Any
) -> None:
    async with (
        KINDS[broker_server.name](broker_server) as late,
        MqttBroker(second_server) as there,
        Database(sqlite_url) as database,
    ):
        for broker in (late, there):
            await broker.prepare("effect")
        out, second = (each.connector(each.entry("effect", handler="example.effect")) for each in (late, there))
        gateway = Gateway(tmp_path, sqlite_url, out=out, others={"second": second})
        await gateway.prepare(database)
        try:
            async with late.away():
                gateway.start()
                await gateway.ready()
                await gateway.connected("second")
                await Producer(there, ("effect", {})).send(10)
                async with Client(gateway.web) as client:
                    await client.post("/effect")
                await effects(database, 11)
                states = {each["name"]: each for each in await gateway.fetch("/api/connectors")}
                assert states["out"]["state"] in ("connecting", "degraded")
                assert states["out"]["reason"]
            seconds = await gateway.connected(within=60)
            await Producer(late, ("effect", {})).send(10)
            await effects(database, 21)
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
    print(f"connected {seconds:.2f} s after {late.kind} was there")
    record_property("reconnect_seconds", seconds)


async def effects(database: Database, count: int) -> None:
    """Wait until so many messages have had their effect."""

    async def are_there() -> bool:
        return int(await database.value("SELECT count(*) FROM effects")) == count

    await until(are_there, within=30, what=f"{count} effects")
