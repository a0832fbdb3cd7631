"""The process dies at each named point, one after the other; what it leaves is put right by the next one."""

import asyncio
from pathlib import Path

import pytest

from tests.system.database import Database
from tests.system.points import ALL, ELSEWHERE, POINTS, SELDOM, verdict, work
from tests.system.process import Gateway
from tests.system.strangers import Client, Receiver
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def test_every_commit_acknowledgement_and_send_has_its_points() -> None:
    assert ELSEWHERE < ALL
    for name in ("ingest", "claim", "finish"):
        assert {f"{name}.start", f"{name}.committed"} <= ALL
    assert {"inbox.before_commit", "inbox.after_commit", "outbox.before_publish", "outbox.after_publish"} <= ALL


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def a_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.mark.parametrize("point", POINTS)
async def test_a_death_at_this_point_loses_and_doubles_nothing(a_url: str, tmp_path: Path, point: str) -> None:
    async with Receiver() as receiver, Database(a_url) as database:
        gateway = Gateway(tmp_path, a_url, out=receiver.url, max_retries=1)
        await gateway.prepare(database)
        deaths = 0

        async def revived() -> bool:
            nonlocal deaths
            if gateway.code is not None:
                deaths += 1
                assert deaths < 2 or gateway.code == 0, gateway.tail()
                gateway.start()
            return await gateway.answers("/ready")

        try:
            gateway.start(GATEWAY_CRASHPOINT=point, GATEWAY_CRASHPOINT_SKIP="0" if point in SELDOM else "1")
            await until(revived, within=30, what="it starts")
            async with Client(gateway.web) as client:
                working = asyncio.create_task(work(client, gateway))

                async def done() -> bool:
                    return await revived() and working.done()

                await until(done, within=60, what="every message was accepted and the failed job was retried")
                await working
                await database.rest()
            assert deaths == 1, "the point was not reached"
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
        assert await verdict(database, client, receiver) == []
