"""Schedules over REST: by the names of their columns, strictly, and with an answer for every mistake."""

import aiohttp
import pytest
from sqlalchemy import text

from gateway.admin import Admin
from gateway.job import JobType, Schedule
from tests.admin_tools import Client, Running
from tests.faulty import sqlite_store

CRON = {"handler": "h", "cronexpression": "30 2 * * *", "timezone": "Europe/Berlin"}


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        yield store


@pytest.fixture
async def client(store):
    async with (
        aiohttp.ClientSession() as session,
        Admin(Running(store), ("127.0.0.1", 0), token=None, metrics=None) as admin,
    ):
        yield Client(session, admin.port)


async def test_a_schedule_is_created_shown_and_listed_by_its_columns(client, store):
    body = {"name": "nightly é/1", "priority": 5, "metadata": {"a": [1]}, "startat": "2030-01-01T00:00:00", **CRON}

    status, made = await client("POST", "/api/schedules", json=body)

    assert (status, made["startat"], made["createdby"]) == (201, "2029-12-31T23:00:00Z", "api")
    assert {key: made[key] for key in body if key != "startat"} == {k: v for k, v in body.items() if k != "startat"}
    for key in ("nightly%20%C3%A9%2F1", made["id"]):
        assert await client("GET", f"/api/schedules/{key}") == (200, made)
    async with store.engine.connect() as connection:
        columns = {row[1] for row in await connection.execute(text("PRAGMA table_xinfo(jobs)"))}
    assert made.keys() == columns - {"configured", "planned", "wakeat"}
    _, page = await client("GET", "/api/schedules?handler=h&enabled=true")
    assert page == {"schedules": [made], "next_after": None}
    _, first = await client("GET", "/api/schedules?limit=1")
    assert [row["name"] for row in first["schedules"]] == [first["next_after"]] == ["Cleanup Old Job Histories"]


@pytest.mark.parametrize(
    ("call", "code", "says"),
    [
        (("POST", "", {"json": {"name": "there", **CRON}}), 409, "already"),
        (("POST", "", {"json": CRON}), 422, "name: Field required"),
        (("POST", "", {"json": {"name": " x", **CRON}}), 422, "name: "),
        (("POST", "", {"json": {"name": "x", "handler": "h", "cronexpression": "R"}}), 422, "cron: the expression has"),
        (("POST", "", {"json": {"name": "x", **CRON, "enabled": "yes"}}), 422, "enabled: "),
        (("POST", "", {"json": {"name": "x", **CRON, "retries": 3}}), 422, "retries: Extra inputs"),
        (("POST", "", {"data": b"{"}), 400, "application/json"),
        (("PUT", "/there", {"json": {"name": "other", **CRON}}), 422, "cannot be renamed"),
        (("PUT", "/new", {"json": {"name": "other", **CRON}}), 422, "cannot be renamed"),
        (("PATCH", "/there", {"json": {"intervalseconds": 5}}), 422, "not both"),
        (("GET", "/there/next?count=1000", {}), 400, "count"),
        (("GET", "?enabled=maybe", {}), 400, "enabled"),
        *(((method, f"/nobody{path}", {}), 404, "no such schedule") for method, path in (
            ("GET", ""), ("DELETE", ""), ("POST", "/run"), ("POST", "/enable"), ("POST", "/disable"), ("GET", "/next"),
        )),
        (("PATCH", "/nobody", {"json": {}}), 404, "no such schedule"),
        (("DELETE", "", {}), 405, "not allowed"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_with_its_reason(client, store, call, code, says):
    await store.put_schedule(Schedule(name="there", handler="h", cron="@daily"))
    before = await store.schedules()

    method, path, options = call
    status, answer = await client(method, f"/api/schedules{path}", **options)

    assert status == code
    assert says in answer["error"]["message"]
    assert await store.schedules() == before


async def test_put_writes_the_whole_definition_and_patch_some_of_it(client, store):
    status, made = await client("PUT", "/api/schedules/new", json={**CRON, "priority": 7})
    assert (status, made["priority"]) == (201, 7)

    status, changed = await client("PATCH", "/api/schedules/new", json={"priority": 8, "timezone": None})
    assert (status, changed["priority"], changed["timezone"], changed["cronexpression"]) == (200, 8, None, "30 2 * * *")
    assert (changed["id"], changed["createdby"], changed["modifiedby"]) == (made["id"], "api", "api")

    status, replaced = await client("PUT", f"/api/schedules/{made['id']}", json={"handler": "i", "intervalseconds": 9})
    assert (status, replaced["name"], replaced["priority"], replaced["cronexpression"]) == (200, "new", 0, None)


async def test_a_changed_sample_schedule_is_still_the_systems(client, store):
    _, changed = await client("PATCH", "/api/schedules/job-retry-failed-jobs", json={"cronexpression": "@hourly"})

    assert (changed["typeid"], changed["name"], changed["createdby"]) == (JobType.SYSTEM, "Retry Failed Jobs", "system")


async def test_a_schedule_is_switched_run_and_deleted(client, store):
    await store.put_schedule(Schedule(name="s", handler="h", interval=60, metadata={"a": 1}))

    assert (await client("POST", "/api/schedules/s/disable"))[1]["enabled"] is False
    status, job = await client("POST", "/api/schedules/s/run")
    assert (status, job["handler"], job["typeid"], job["createdby"]) == (201, "h", JobType.MANUAL, "api")
    assert job["metadata"]["a"] == 1
    assert job["metadata"]["schedule"]["name"] == "s"
    row = (await client("POST", "/api/schedules/s/enable"))[1]
    assert (row["enabled"], row["executioncount"]) == (True, 0), "a job by hand counts as no tick"
    assert (await client("DELETE", "/api/schedules/s"))[1]["name"] == "s"
    assert await store.schedule("s") is None
    assert (await client("GET", f"/api/jobs/{job['id']}"))[0] == 200


async def test_the_next_ticks_are_told_or_why_there_are_none(client, store):
    await client("PUT", "/api/schedules/s", json={**CRON, "startat": "2030-03-30T12:00:00", "enabled": False})

    _, told = await client("GET", "/api/schedules/s/next?count=2")

    assert told == {
        "name": "s", "enabled": False, "timezone": "Europe/Berlin",
        "ticks": [
            {"utc": "2030-03-31T01:00:00Z", "local": "2030-03-31T03:00:00+02:00"},
            {"utc": "2030-04-01T00:30:00Z", "local": "2030-04-01T02:30:00+02:00"},
        ],
    }  # fmt: skip
    async with store.engine.begin() as connection:
        await connection.execute(text("UPDATE jobs SET cronexpression = 'by hand' WHERE name = 's'"))
    status, answer = await client("GET", "/api/schedules/s/next")
    assert (status, answer["error"]["message"][:5]) == (422, "cron:")
