"""The process dies at each named point, one after the other; what it leaves is put right by the next one."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.system.points import ALL, BY_COMMAND, ELSEWHERE, VERBS, cases, points_of, route
from tests.system.scenario import Scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

GATEWAY = Path(__file__).parent.parent.parent / "gateway"
SIDES = ("before", "after")


def test_every_commit_acknowledgement_and_send_has_its_points() -> None:
    commits = {f"{where}.{when}_commit" for where in ("inbox", "own", "pool", "single", "writer") for when in SIDES}
    sends = {f"outbox.{when}_{what}" for what in ("publish", "finish") for when in SIDES}
    answers = {f"http.{when}_answer" for when in SIDES}
    assert commits | sends | answers <= ALL
    assert {"ingest", "enqueue", "claim", "release", "rescue", "promote", "prune", "cancel", "retry"} <= VERBS
    assert {f"{way}.{when}" for way in ("own", "finish") for when in ("start", "committed")} <= ALL
    assert BY_COMMAND | ELSEWHERE["sqlite"] | ELSEWHERE["postgresql"] < ALL


def test_nothing_is_committed_but_between_points() -> None:
    sources = {path.name: path.read_text().splitlines() for path in GATEWAY.rglob("*.py")}
    commits = {
        (name, number)
        for name, lines in sources.items()
        for number, line in enumerate(lines)
        if "wire.commit(" in line or 'connection.execute("COMMIT")' in line
    }
    assert {name for name, _ in commits} == {"pool.py", "transaction.py", "writer.py"}
    for name, number in commits:
        assert "before_commit" in sources[name][number - 1], name
        assert "after_commit" in sources[name][number + 1], name
    running = [name for name, lines in sources.items() for line in lines if "_driver.run(" in line]
    assert sorted(running) == ["presence.py", "signals.py"]


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
