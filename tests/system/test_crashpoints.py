"""The process dies at each named point, one after the other; what it leaves is put right by the next one."""

import asyncio
import re
import signal
from pathlib import Path

import pytest

from tests.system.points import ALL, ELSEWHERE, VERBS, cases, points_of, route
from tests.system.scenario import Scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

GATEWAY = Path(__file__).parent.parent.parent / "gateway"


def test_every_commit_acknowledgement_and_send_has_its_points() -> None:
    places = {"finish.start", "finish.committed", "own.start", "own.committed"}
    commits = {f"{where}.{when}_commit" for where in ("inbox", "own", "pool", "single", "writer") for when in ("before", "after")}
    sends = {f"outbox.{when}_{what}" for what in ("publish", "finish") for when in ("before", "after")}
    answers = {"http.before_answer", "http.after_answer"}
    assert places | commits | sends | answers <= ALL
    assert {"ingest", "enqueue", "claim", "release", "rescue", "promote", "prune", "cancel", "retry"} <= VERBS
    assert ELSEWHERE["sqlite"] | ELSEWHERE["postgresql"] < ALL


def test_nothing_is_committed_but_between_points() -> None:
    """Every COMMIT stands between two points, and the store commits nothing but by its verbs and `finish`."""
    store = GATEWAY / "store"
    for path in [store / name for name in ("pool.py", "transaction.py", "writer.py")]:
        (before, after) = re.findall(r"reach\(\"\w+\.before_commit\"\)\n.*(?:commit\(|COMMIT).*\n *(reach\(\"\w+\.after_commit\"\))|$(?!.)()", path.read_text())[0], 1
        assert before, path
    assert (store / "store.py").read_text().count("_driver.run(") == 1


@pytest.mark.parametrize(("a_url", "group"), cases("sqlite", "postgresql"), indirect=["a_url"])
async def test_deaths_at_these_points_lose_and_double_nothing(a_url: str, tmp_path: Path, group: str) -> None:
    database = "sqlite" if a_url.startswith("sqlite") else "postgresql"
    async with Scenario(a_url, tmp_path) as scenario:
        gateway, work = scenario.gateway, []
        for point in points_of(group, database):
            gateway.start(GATEWAY_CRASHPOINT=",".join(route(point)))
            work.append(asyncio.create_task(scenario.work(group)))
            if group == "release":
                await scenario.hold()
                gateway.signal(signal.SIGTERM)
            assert await gateway.ended(within=30) == -signal.SIGKILL, f"{point} was not reached\n{gateway.tail()}"
            scenario.let_go()
        gateway.start()
        await asyncio.gather(*work)
        assert await scenario.verdict() == []
        assert await gateway.stop() == 0, gateway.tail()
