"""What handlers and messages must not do hurts only their own job."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.system.database import Database
from tests.system.process import Gateway
from tests.system.strangers import Client
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

FAILING = (
    "swallow", "commit", "rollback", "raw_commit", "ddl", "not_a_number", "unserialisable", "system_exit", "interrupt",
)  # fmt: skip


async def post_raw(gateway: Gateway, path: str, body: bytes) -> str:
    async with aiohttp.ClientSession() as session, session.post(gateway.web + path, data=io.BytesIO(body)) as response:
        assert response.status == 202, await response.text()
        return str((await response.json())["job_id"])


async def test_the_table_of_abuses(database_url: str, tmp_path: Path) -> None:
    async with Database(database_url) as database:
        gateway = Gateway(tmp_path, database_url, max_retries=1)
        await gateway.prepare(database)
        try:
            gateway.start()
            await gateway.ready()
            async with Client(gateway.web) as client:
                abuses = {name: await client.post(f"/{name}") for name in FAILING}
                innocent = [await client.post("/effect") for _ in range(20)]
            abuses["undecodable"] = await post_raw(gateway, "/undecodable", b"\xff\xfe{not json")
            await database.rest()
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
        jobs = {row["id"]: row for row in await database.rows("SELECT * FROM queue_jobs")}
        effects = {row["jobid"] for row in await database.rows("SELECT jobid FROM effects")}
        for name, job_id in abuses.items():
            assert jobs[job_id]["statusid"] == 4, f"{name}: {jobs[job_id]}"
            assert jobs[job_id]["lasterror"], name
        assert effects == set(innocent)
        assert all(jobs[job_id]["statusid"] == 3 and jobs[job_id]["retrycount"] == 0 for job_id in innocent)
        assert not await left_behind(database)


async def left_behind(database: Database) -> list[dict[str, Any]]:
    """Return the table that a handler's forbidden DDL would have made."""
    where = {"sqlite": "sqlite_master WHERE name", "postgresql": "pg_tables WHERE tablename"}
    table = where.get(database.kind, "information_schema.tables WHERE table_schema = database() AND table_name")
    return await database.rows(f"SELECT 1 AS found FROM {table} = 'left_behind'")


BODIES = {
    "empty": b"",
    "nul": b"a\x00b",
    "invalid UTF-8": b"\xff\xfe\x00\x80",
    "four-byte UTF-8": "\U0001f600 \u202e".encode(),
    "not a number": b"NaN",
    "deep": b"[" * 5000 + b"]" * 5000,
    "one MiB": b"x" * 2**20,
}


async def test_a_body_comes_back_byte_for_byte(database_url: str, tmp_path: Path) -> None:
    async with Database(database_url) as database:
        gateway = Gateway(tmp_path, database_url)
        await gateway.prepare(database)
        try:
            gateway.start()
            await gateway.ready()
            sent = {await post_raw(gateway, "/effect", body): body for body in BODIES.values()}
            await database.rest()
            for job_id, body in sent.items():
                job = await gateway.fetch(f"/api/jobs/{job_id}")
                assert job["status"] == "completed", job
                assert stored(job) == body
        finally:
            gateway.kill()


def stored(job: dict[str, Any]) -> bytes:
    """Return the payload as the job's JSON tells it."""
    return base64.b64decode(job["payload"]) if job["payloadencoding"] == "base64" else job["payload"].encode()


async def test_a_body_of_16_mib_is_done_or_set_aside(database_url: str, tmp_path: Path) -> None:
    async with Database(database_url) as database:
        gateway = Gateway(tmp_path, database_url)
        await gateway.prepare(database)
        try:
            gateway.start()
            await gateway.ready()
            job_id = await post_raw(gateway, "/effect", b"x" * 2**24)
            await database.rest()
            (job,) = await database.rows("SELECT statusid, lasterror, length(payload) AS length FROM queue_jobs")
            innocent = await post_raw(gateway, "/effect", b"{}")
            await database.rest()
        finally:
            gateway.kill()
        assert (job["statusid"], job["length"]) == (3, 2**24) or (job["statusid"] == 4 and job["lasterror"]), job_id
        assert await database.value("SELECT statusid FROM queue_jobs WHERE id = :id", id=innocent) == 3


async def test_rows_that_sql_users_insert_run_though_nearly_all_is_null(database_url: str, tmp_path: Path) -> None:
    async with Database(database_url) as database:
        gateway = Gateway(tmp_path, database_url)
        await gateway.prepare(database)
        optional = "metadata, payload, method, protocol, direction, scheduledat, referenceid, createdby, modifiedby"
        await database.execute(
            f"INSERT INTO queue_jobs (id, handler, {optional})"
            " VALUES ('by hand', 'example.effect', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"
        )
        await database.execute("INSERT INTO queue_jobs (id, handler) VALUES ('unknown', 'nobody.knows')")
        await database.execute(
            "INSERT INTO queue_jobs (id, handler, statusid, scheduledat) VALUES ('at once', 'example.effect', 7, NULL)"
        )
        try:
            gateway.start()
            await gateway.ready()

            async def both_done() -> bool:
                done = "SELECT count(*) FROM queue_jobs WHERE statusid = 3 AND id IN ('by hand', 'at once')"
                return int(await database.value(done)) == 2

            await until(both_done, within=20, what="the rows inserted by hand are done")
            statistics = json.dumps(await gateway.fetch("/api/statistics"))
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
        assert await database.value("SELECT statusid FROM queue_jobs WHERE id = 'unknown'") == 0
        assert "nobody.knows" in statistics


async def test_a_job_that_kills_the_process_is_set_aside_and_the_others_are_done(
    database_url: str, tmp_path: Path
) -> None:
    async with Database(database_url) as database:
        gateway = Gateway(tmp_path, database_url)
        await gateway.prepare(database)
        deaths = 0

        async def at_rest() -> bool:
            nonlocal deaths
            if gateway.code is not None:
                assert gateway.code == 7, gateway.tail()
                deaths += 1
                assert deaths <= 5, "the poisonous job is run again and again"
                gateway.start()
            return int(await database.value("SELECT count(*) FROM queue_jobs WHERE statusid NOT IN (3, 4)")) == 0

        try:
            gateway.start()
            await gateway.ready()
            async with Client(gateway.web) as client:
                innocent = [await client.post("/effect") for _ in range(30)]
                poison = await post_raw(gateway, "/poison", b"{}")
            await until(at_rest, within=90, what="every job has come to its end")
        finally:
            gateway.kill()
        jobs = {row["id"]: row for row in await database.rows("SELECT * FROM queue_jobs")}
        assert jobs[poison]["statusid"] == 4
        assert "ran alone" in jobs[poison]["lasterror"]
        assert all(jobs[job_id]["statusid"] == 3 and jobs[job_id]["retrycount"] == 0 for job_id in innocent)
        assert await database.value("SELECT count(*) FROM effects") == len(innocent)
