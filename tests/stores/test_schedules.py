"""Schedules as people write them with plain SQL, and what a check costs when there are very many."""

import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.job import Schedule
from gateway.store import JobFilter, Store, ticks
from gateway.store.definition import DEFINITION
from gateway.store.migrate import migrate
from gateway.store.opening import open_driver
from gateway.store.script import Sql
from gateway.store.url import engine_url
from gateway.testing.store.ticking import Clock, turn
from tests.stores.databases import rows
from tests.stores.test_plans import NUMBERS, nodes

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)


@pytest.fixture
async def store(database_url):
    await migrate(database_url)
    await rows(database_url, "DELETE FROM jobs")
    store = await Store.open(database_url, instance="test", present=False)
    Clock.put(store, SOON)
    yield store
    await store.close()


# --- what the original's users write

COLUMNS = """id, name, description, typeid, handler, cronexpression, intervalseconds, startat, endat, maxexecutions,
 executioncount, enabled, {condition}, priority, maxretries, timeout, metadata, lastrunat, nextrunat, active,
 referenceid, createdby, createdon, modifiedby, modifiedon, rowversionstamp"""
BY_HAND = {
    "postgresql": f"""INSERT INTO jobs ({COLUMNS.format(condition="condition")}) VALUES
 (gen_random_uuid()::text, 'Every Second', NULL, 1, 'every', '* * * * * *', NULL, NULL, NULL, 0, 0, TRUE, NULL, 0, 3,
  300, '{{"report": "daily"}}'::jsonb, NULL, NULL, TRUE, NULL, 'system', CURRENT_TIMESTAMP, NULL, CURRENT_TIMESTAMP, 1),
 (gen_random_uuid()::text, 'Five Minutes', '', 1, 'long', '', 300, NULL, NULL, 10, 0, TRUE, '', 5, 3, 60, NULL,
  NULL, NULL, TRUE, '', 'system', CURRENT_TIMESTAMP, '', CURRENT_TIMESTAMP, 1)
 ON CONFLICT (id) DO UPDATE SET modifiedon = CURRENT_TIMESTAMP""",
    "mysql": f"""INSERT INTO jobs ({COLUMNS.format(condition="`condition`")}) VALUES
 (UUID(), 'Every Second', NULL, 1, 'every', '* * * * * *', NULL, NULL, NULL, 0, 0, TRUE, NULL, 0, 3,
  300, '{{"report": "daily"}}', NULL, NULL, TRUE, NULL, 'system', NOW(), NULL, NOW(), 1),
 (UUID(), 'Five Minutes', '', 1, 'long', '', 300, NULL, NULL, 10, 0, TRUE, '', 5, 3, 60, NULL,
  NULL, NULL, TRUE, '', 'system', NOW(), '', NOW(), 1)
 ON DUPLICATE KEY UPDATE modifiedon = CURRENT_TIMESTAMP""",
}
BY_HAND["sqlite"] = (
    BY_HAND["mysql"]
    .replace("UUID()", "hex(randomblob(8))")
    .replace("NOW()", "CURRENT_TIMESTAMP")
    .replace("ON DUPLICATE KEY UPDATE", "ON CONFLICT (id) DO UPDATE SET")
    .replace("`condition`", "condition")
)


async def test_schedules_of_the_original_are_taken_and_fire(store, database_url):
    await rows(database_url, BY_HAND[engine_url(database_url).get_backend_name()].replace(":", "\\:"))
    await turn(store)
    every, long = await store.schedules()
    Clock.put(store, SOON + timedelta(seconds=1))
    await turn(store)

    assert (every.next_run_at, every.last_error, long.last_error) == (SOON + timedelta(seconds=1), None, None)
    assert SOON < long.next_run_at <= SOON + timedelta(seconds=300)
    (job,) = await store.list(JobFilter(handler="every"))
    assert (job.metadata["report"], job.timeout, job.created_by) == ("daily", 300, "system")
    later = await store.schedule("Every Second")
    assert (later.execution_count, later.last_run_at) == (1, SOON + timedelta(seconds=1))


async def test_the_samples_are_inserted_again_without_harm(store, database_url):
    insert = """INSERT INTO jobs (id, name, description, typeid, handler, cronexpression, enabled, priority, createdby)
 VALUES ('job-retry-failed-jobs', 'Retry Failed Jobs', 'Retry jobs that failed with retriable errors', 3,
 'system.retry.failed', '*/15 * * * *', TRUE, 5, 'system') {} modifiedon = CURRENT_TIMESTAMP"""
    mysql = engine_url(database_url).get_backend_name() == "mysql"
    again = insert.format("ON DUPLICATE KEY UPDATE" if mysql else "ON CONFLICT (id) DO UPDATE SET")
    await rows(database_url, again)
    await turn(store)
    planned = (await store.schedule("Retry Failed Jobs")).next_run_at
    await rows(database_url, again)

    assert planned is not None
    assert await store.next_tick() > 0


async def test_what_only_sqlite_takes_hurts_no_other_schedule(sqlite_url):
    await migrate(sqlite_url)
    await rows(sqlite_url, "DELETE FROM jobs")
    store = await Store.open(sqlite_url, instance="test", present=False)
    try:
        Clock.put(store, SOON)
        for name, column, value in (("nan", "metadata", '{"a"\\: NaN}'), ("end", "endat", "2030-99-99 00\\:00\\:00")):
            columns, values = f"id, name, handler, intervalseconds, {column}", f"'{name}', '{name}', 'h', 1, '{value}'"
            await rows(sqlite_url, f"INSERT INTO jobs ({columns}) VALUES ({values})")
        await store.put_schedule(Schedule(name="turned", handler="h", cron="* * * * * *"))
        await store.put_schedule(Schedule(name="good", handler="good", cron="* * * * * *"))
        await turn(store)
        await rows(sqlite_url, """UPDATE jobs SET metadata = '{"a"\\: Infinity}' WHERE name = 'turned'""")
        Clock.put(store, SOON + timedelta(seconds=1))
        await turn(store)
        errors = {row.name: row.last_error for row in await store.schedules()}
        assert len(await store.list(JobFilter(handler="good"))) == 1
        assert await store.list(JobFilter(handler="h")) == []
    finally:
        await store.close()
    assert errors["good"] is None
    assert errors["end"] == "endat: '2030-99-99 00:00:00' is not a time"
    assert all(errors[name].startswith("the metadata is not JSON: ") for name in ("nan", "turned"))


# --- transactions that take their time


async def test_a_change_that_commits_late_is_seen_and_holds_up_nobody(server_database_url):
    await migrate(server_database_url)
    await rows(server_database_url, "DELETE FROM jobs")
    store = await Store.open(server_database_url, instance="test", present=False)
    engine = create_async_engine(engine_url(server_database_url))
    try:
        await store.put_schedule(Schedule(name="changed", handler="h", cron="0 0 1 1 *"))
        await turn(store)
        async with engine.begin() as late:
            await late.execute(
                text("INSERT INTO jobs (id, name, handler, cronexpression) VALUES ('n', 'n', 'h', '@hourly')")
            )
            await late.execute(text("UPDATE jobs SET cronexpression = '@hourly' WHERE name = 'changed'"))
            await store.put_schedule(Schedule(name="other", handler="h", cron="@daily"))
            await store.plan(60)
            assert (await store.schedule("other")).next_run_at is not None
            assert await store.schedule("n") is None
        await turn(store)
        planned = {row.name: row.next_run_at for row in await store.schedules()}
    finally:
        await engine.dispose()
        await store.close()
    assert planned["n"] == planned["changed"] <= planned["other"]


# --- very many

FEW, MANY = 500, 50_000
FAR = "'2099-01-01 00:00:00.000000'"


def fill(family, first, last):
    """Insert schedules that are planned, and not due."""
    n = {"postgresql": "'s' || n", "sqlite": "'s' || n", "mysql": "concat('s', n)"}[family]
    numbers = NUMBERS[family]
    far = f"TIMESTAMP {FAR}" if family == "postgresql" else FAR
    names = f"id, name, handler, cronexpression, nextrunat, {CONDITION[family]}"
    values = f"{n}, {n}, 'h', '@yearly', {far}, CASE WHEN n % 3 = 0 THEN '1 = 1' END"
    source = f"({numbers}) AS numbers WHERE n > {first} AND n <= {last}"
    return [
        f"INSERT INTO jobs ({names}) SELECT {values} FROM {source}",
        f"UPDATE jobs SET planned = {DEFINITION[family]}",
    ]


CONDITION = {"postgresql": "condition", "sqlite": "condition", "mysql": "`condition`"}
CHECK = (ticks.next_wake, lambda d: ticks.plan_changed(d, 60), ticks.fire, ticks.asking)


async def test_a_check_costs_the_same_with_fifty_thousand_schedules_that_are_not_due(database_url):
    await migrate(database_url)
    await rows(database_url, "DELETE FROM jobs")
    family = engine_url(database_url).get_backend_name()
    costs = []
    for first, last in ((0, FEW), (FEW, MANY)):
        await rows(database_url, *(statement.replace(":", "\\:") for statement in fill(family, first, last)))
        costs.append([await COST[family](database_url, script) for script in CHECK])
    few, many = costs
    assert await rows(database_url, "SELECT count(*) AS n FROM jobs WHERE wakeat > '2098-01-01'") == [{"n": MANY}]
    assert all(b <= a + SLACK[family] for a, b in zip(few, many, strict=True)), costs


def vacuum():
    yield Sql("VACUUM jobs")


async def pages_read(url, script):
    """PostgreSQL: on the gateway's own connection, by the index that is meant, with nothing dead in it."""
    driver = await open_driver(url)
    try:
        sql = script(driver.dialect).send(None)

        def explain():
            found = yield Sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql.text}", sql.args, "rows")
            return found.rows[0][0][0]["Plan"]

        await driver.run(vacuum, single=True)
        plan = await driver.run(explain)
    finally:
        await driver.close()
    assert {node["Index Name"] for node in nodes(plan) if "Index Name" in node} == {"ix_jobs_wakeat"}, plan
    assert not [node for node in nodes(plan) if "Seq Scan" in node["Node Type"] or "Sort" in node["Node Type"]], plan
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def rows_read(url, script):
    """MySQL: rows that the storage engine was asked for."""
    driver = await open_driver(url)
    try:

        def counted():
            before = (yield Sql("SHOW SESSION STATUS LIKE 'Handler_read%%'", (), "rows")).rows
            yield script(driver.dialect).send(None)
            after = (yield Sql("SHOW SESSION STATUS LIKE 'Handler_read%%'", (), "rows")).rows
            return sum(int(row[1]) for row in after) - sum(int(row[1]) for row in before)

        return await driver.run(counted)
    finally:
        await driver.close()


async def steps_taken(url, script):
    """SQLite: steps of its virtual machine."""
    driver = await open_driver(url)
    try:
        sql = script(driver.dialect).send(None)
    finally:
        await driver.close()
    steps = []
    with closing(sqlite3.connect(engine_url(url).database)) as connection:
        connection.set_progress_handler(lambda: steps.append(1), 1)
        assert connection.execute(sql.text, sql.args).fetchall() == [] or "ORDER BY wakeat LIMIT 1" in sql.text
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql.text}", sql.args).fetchall()
    assert all(re.search(r"USING (COVERING )?INDEX ix_jobs_wakeat", line[3]) for line in plan), plan
    return len(steps)


COST = {"postgresql": pages_read, "mysql": rows_read, "sqlite": steps_taken}
SLACK = {"postgresql": 3, "mysql": 0, "sqlite": 0}
"""PostgreSQL's index grows by a level."""
