"""The process dies at each named point, one after the other; what it leaves is put right by the next one."""

import asyncio
import re
from pathlib import Path

import pytest

from tests.system.database import Database
from tests.system.ledger import judge, read
from tests.system.process import Gateway
from tests.system.strangers import Client, Receiver
from tests.system.waiting import until

ROOT = Path(__file__).parent.parent.parent
POINTS = sorted(
    {
        name
        for folder in ("gateway", "connectors")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\breach\(\"([\w.]+)\"\)", path.read_text())
    }
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def a_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("point", POINTS)
async def test_a_death_at_this_point_loses_and_doubles_nothing(
    a_url: str, tmp_path: Path, point: str, skip: int
) -> None:
    async with Receiver() as receiver, Database(a_url) as database:
        gateway = Gateway(tmp_path, a_url, out=receiver.url)
        await gateway.prepare(database)
        try:
            gateway.start(GATEWAY_CRASHPOINT=point, GATEWAY_CRASHPOINT_SKIP=str(skip))
            async with Client(gateway.web) as client:
                messages = [("/publish", {"failures": 1}), ("/deferred", {}), ("/effect", {}), ("/plain", {})] * 2

                async def revive() -> bool:
                    if gateway.code is not None:
                        gateway.start()
                    return await gateway.answers("/ready")

                await until(revive, within=30, what="it starts")
                flood = asyncio.create_task(client.flood(messages, clients=4))

                async def all_done() -> bool:
                    await revive()
                    unfinished = "SELECT count(*) FROM queue_jobs WHERE statusid NOT IN (3, 4, 6)"
                    return flood.done() and int(await database.value(unfinished)) == 0

                await until(all_done, within=60, what="every message was accepted and every job is done")
                await flood
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
        ledger = await read(database, client.accepted, received=receiver.received, children={"example.publish": 2})
    assert judge(ledger) == []
