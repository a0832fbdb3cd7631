"""A fleet of mixed versions and configurations on one database, and its rolling restart."""

import asyncio
import json
import os
import subprocess
import uuid
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.database import Database
from tests.system.ledger import judge, read
from tests.system.process import GATEWAY, Gateway
from tests.system.strangers import Client, Load
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.timeout(180)]

NEW = "99.1.0"
KINDS = (("/effect", {}), ("/deferred", {}), ("/plain", {}), ("/slow", {"seconds": 0.3}))


def a_new_version(folder: Path) -> str:
    """Return a folder that makes a process believe that a newer version of the program is installed."""
    installed = distribution("ingestion-gateway")
    found = folder / "new" / f"ingestion_gateway-{NEW}.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ingestion-gateway\nVersion: {NEW}\n")
    (found / "entry_points.txt").write_text(installed.read_text("entry_points.txt") or "")
    return str(found.parent)


def teach(gateway: Gateway, handler: str) -> None:
    """Give its configuration one handler that the examples do not have."""
    module = gateway.config.parent / "fleet_handlers.py"
    module.write_text("async def note(context):\n    return context.job.handler\n")
    settings = yaml.safe_load(gateway.config.read_text()) | {"handlers": {handler: "fleet_handlers:note"}}
    gateway.config.write_text(yaml.safe_dump(settings))


async def insert(database: Database, handler: str, count: int) -> None:
    rows = [{"id": str(uuid.uuid4()), "handler": handler} for _ in range(count)]
    await database.execute("INSERT INTO queue_jobs (id, handler) VALUES (:id, :handler)", rows)


class Fleet:
    """Two processes, and what each tells of both."""

    def __init__(self, folder: Path, url: str) -> None:
        self.one, self.two = Gateway(folder, url, name="one"), Gateway(folder, url, name="two")

    async def shown(self) -> dict[str, dict[str, Any]]:
        """Return the instances by name, as the second one lists them."""
        return {row["name"]: row for row in await self.two.fetch("/api/instances")}

    async def until_told(self) -> dict[str, dict[str, Any]]:
        """Return the instances by name once both have told of connectors that are connected."""

        async def are_told() -> bool:
            rows = (await self.shown()).values()
            states = [row["alive"] and (row["connectors"] or {}).get("web", {}).get("state") for row in rows]
            return states == ["connected", "connected"]

        await until(are_told, within=20, what="both instances tell of themselves", every=0.05)
        return await self.shown()

    async def orphaned(self) -> dict[str, int]:
        return dict((await self.two.fetch("/api/statistics"))["orphaned_handlers"])

    def kill(self) -> None:
        self.one.kill()
        self.two.kill()


async def finished(database: Database, handler: str) -> dict[str, int]:
    """Return how many jobs of a handler each instance has completed."""
    rows = await database.rows(
        "SELECT h.executedby FROM job_histories h JOIN queue_jobs q ON q.id = h.jobid"
        " WHERE q.handler = :handler AND h.statusid = 3",
        handler=handler,
    )
    names = [str(row["executedby"]).split("/")[0] for row in rows]
    return {name: names.count(name) for name in names}


async def test_a_rolling_restart_to_another_version_loses_nothing_and_costs_no_attempt(
    postgresql_url: str, tmp_path: Path
) -> None:
    fleet, new = Fleet(tmp_path, postgresql_url), a_new_version(tmp_path)
    one, two = fleet.one, fleet.two
    for each in (one, two):
        teach(each, "fleet.old")
    async with Database(postgresql_url) as database, Client(one.web) as first, Client(two.web) as second:
        await one.prepare(database)
        await insert(database, "fleet.new", 20)
        await insert(database, "fleet.nobodys", 3)
        load = Load(*KINDS)
        floods = [asyncio.create_task(client.flood(load, clients=6)) for client in (first, second)]
        try:
            one.start()
            two.start()
            await asyncio.gather(one.ready(), two.ready())
            await fleet.until_told()
            assert await fleet.orphaned() == {"fleet.new": 20, "fleet.nobodys": 3}

            await restart(one, "fleet.new", new)
            rows = await fleet.until_told()
            assert (rows["one"]["version"], rows["two"]["version"] != NEW) == (NEW, True)
            await insert(database, "fleet.old", 20)
            for handler, runner in (("fleet.new", "one"), ("fleet.old", "two")):
                await until(lambda h=handler: all_done(database, h), within=20, what=f"{handler} is done")  # type: ignore[misc]
                assert await finished(database, handler) == {runner: 20}
            assert await fleet.orphaned() == {"fleet.nobodys": 3}

            await restart(two, "fleet.new", new)
            rows = await fleet.until_told()
            assert {row["version"] for row in rows.values()} == {NEW}
            assert len(await database.rows("SELECT id FROM gateway_instances")) == 2, "a stopped one left its row"
            seen = len(second.accepted)
            await until(lambda: len(second.accepted) > seen + 50, within=20, what="messages come in again")
            load.stop()
            await asyncio.gather(*floods)
            await database.execute("DELETE FROM queue_jobs WHERE handler = 'fleet.nobodys'")
            await database.rest()
            await told_dead_when_killed(fleet)
        finally:
            fleet.kill()
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
        ledger = await read(database, {**first.accepted, **second.accepted})
        used = await database.value("SELECT sum(retrycount) + sum(crashcount) FROM queue_jobs")
    assert judge(ledger) == []
    assert len(ledger.accepted) > 200
    assert used == 0, "a restart used up an attempt, or looked like a crash"


async def restart(gateway: Gateway, handler: str, version: str) -> None:
    """Stop it in order, and start it anew in another version with another handler."""
    assert await gateway.stop() == 0, gateway.tail()
    teach(gateway, handler)
    gateway.start(PYTHONPATH=version)
    await gateway.ready()


async def all_done(database: Database, handler: str) -> bool:
    return sum((await finished(database, handler)).values()) == 20


async def told_dead_when_killed(fleet: Fleet) -> None:
    """One that is killed is shown as dead at once, by the other one and by the command."""
    fleet.one.kill()

    async def is_dead() -> bool:
        return not (await fleet.shown())["one"]["alive"]

    await until(is_dead, within=3, what="the killed one is shown as dead")
    printed = await asyncio.to_thread(
        subprocess.run, [*GATEWAY, "status", "--json", "--config", str(fleet.two.config)], cwd=fleet.two.config.parent,
        stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60, env=dict(os.environ),
    )  # fmt: skip
    states = {row["name"]: row["alive"] for row in json.loads(printed.stdout)["instances"]}
    assert states == {"one": False, "two": True}
