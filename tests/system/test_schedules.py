"""Real processes fire every tick once, over deaths and restarts; what a configuration and its operators say is kept."""

import asyncio
import os
import signal
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import Gateway as Embedded
from gateway.config import parse_config
from tests.system.database import Database
from tests.system.forked import ForkedGateway
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

INSTANCES = 5 if "SOAK_SECONDS" in os.environ else 3
SECOND = timedelta(seconds=1)
EVERY_SECOND = {"handler": "gateway.log", "cron": "* * * * * *"}


def scheduling(folder: Path, url: str, name: str, schedules: Mapping[str, Any]) -> ForkedGateway:
    gateway = ForkedGateway(folder, url, name=name)
    settings = yaml.safe_load(gateway.config.read_text())
    gateway.config.write_text(yaml.safe_dump({**settings, "schedules": dict(schedules)}))
    return gateway


@pytest.mark.database
async def test_every_second_has_its_one_job_though_instances_die_and_all_are_away(
    server_database_url: str, tmp_path: Path
) -> None:
    schedules = {f"every {n}": EVERY_SECOND for n in range(5)}
    gateways = [scheduling(tmp_path, server_database_url, f"g{n}", schedules) for n in range(INSTANCES)]
    async with Database(server_database_url) as database:
        await gateways[0].prepare(database)

        async def fired(count: int) -> None:
            before = int(await database.value("SELECT count(*) FROM schedule_ticks"))

            async def enough() -> bool:
                return int(await database.value("SELECT count(*) FROM schedule_ticks")) >= before + count

            await until(enough, within=60, what=f"{count} ticks have fired", every=0.1)

        try:
            for gateway in gateways:
                gateway.start()
            await asyncio.gather(*(gateway.ready() for gateway in gateways))
            await fired(10)
            gateways[0].kill()
            gateways[1].signal(signal.SIGSTOP)
            await fired(15)
            gateways[1].signal(signal.SIGCONT)
            for gateway in gateways[1:]:
                assert await gateway.stop() == 0, gateway.tail()
            left = await ticks(database)
            back = left[-1][1].replace(tzinfo=UTC) + 3 * SECOND
            await until(lambda: datetime.now(UTC) > back, within=30, what="ticks were missed by all")
            assert await ticks(database) == left
            gateways[0].start()
            await fired(15)
            assert await gateways[0].stop() == 0, gateways[0].tail()
            await database.rest()
        finally:
            for gateway in gateways:
                gateway.kill()
        found = await ticks(database)
        rows = await database.rows("SELECT id, executioncount, lastrunat FROM jobs")
        jobs = await database.rows("SELECT id, scheduledat, statusid, typeid FROM queue_jobs")
    for row in rows:
        moments = sorted(tick for schedule, tick, _ in found if schedule == row["id"])
        assert moments == [moments[0] + n * SECOND for n in range(len(moments))], "a second is missing, or came twice"
        assert (row["executioncount"], row["lastrunat"]) == (len(moments), moments[-1])
    assert {(job["id"], job["scheduledat"]) for job in jobs} == {(job, tick) for _, tick, job in found}
    assert (len(jobs), {(job["statusid"], job["typeid"]) for job in jobs}) == (len(found), {(3, 1)})


async def ticks(database: Database) -> list[tuple[str, datetime, str]]:
    """Return all ticks that have fired: schedule, moment, job."""
    rows = await database.rows("SELECT scheduleid, tick, jobid FROM schedule_ticks ORDER BY tick")
    return [(row["scheduleid"], row["tick"], row["jobid"]) for row in rows]


async def test_what_operators_change_stays_until_the_configuration_says_something_new(sqlite_url: str) -> None:
    said: dict[str, Any] = {"handler": "gateway.log", "interval": 3600}
    row: dict[str, Any] = {}

    async def started(schedules: Mapping[str, Any], *, disable: bool = False) -> None:
        document = {"gateway": {"admin": None}, "database": {"url": sqlite_url}, "schedules": dict(schedules)}
        async with Embedded(parse_config(yaml.safe_dump(document))) as gateway, Database(sqlite_url) as database:

            async def written() -> bool:
                rows = await database.rows("SELECT * FROM jobs WHERE name = 'mine' AND wakeat > '2000'")
                ended = await database.rows("SELECT * FROM jobs WHERE name = 'mine' AND wakeat IS NULL")
                row.clear()
                row.update(*rows, *ended)
                return bool(row) and (row["priority"] == schedules.get("mine", said).get("priority", 0))

            await until(written, within=20, what="the schedule is planned as it is said")
            if disable:
                await gateway.store.enable_schedule("mine", False)

    await started({"mine": said}, disable=True)
    planned = dict(row)
    await started({"mine": said})
    assert (planned["enabled"], row["enabled"], row["id"]) == (1, 0, planned["id"])
    await started({"mine": {**said, "priority": 3}})
    assert (row["enabled"], row["id"], row["createdby"]) == (1, planned["id"], "configuration")
    said["priority"] = 3
    await started({})
    assert (row["enabled"], row["priority"]) == (1, 3)


@pytest.mark.parametrize("moment", ["start", "written", "committed"])
async def test_a_death_while_the_configuration_is_written_leaves_it_to_the_next_start(
    sqlite_url: str, tmp_path: Path, moment: str
) -> None:
    gateway = scheduling(tmp_path, sqlite_url, "one", {"mine": {**EVERY_SECOND, "max_executions": 1}})
    async with Database(sqlite_url) as database:
        await gateway.prepare(database)
        try:
            gateway.start(GATEWAY_CRASHPOINT=f"schedule.{moment}")
            assert await gateway.ended(within=30) == -signal.SIGKILL, gateway.tail()
            gateway.start()

            async def fired() -> bool:
                return await database.rows("SELECT executioncount FROM jobs") == [{"executioncount": 1}]

            await until(fired, within=30, what="the schedule has fired once", every=0.05)
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
        assert len(await ticks(database)) == 1
