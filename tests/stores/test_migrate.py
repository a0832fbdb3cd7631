"""Every way of making the schema makes the same one, and no other version is worked on."""

import asyncio
import sqlite3
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from gateway.errors import MigrationError, StoreUnavailable
from gateway.store import migrate as migrations
from gateway.store import tables
from gateway.store.migrate import DIALECTS, check_version, current, folder, head, migrate, render
from gateway.store.url import engine_url
from tests.databases import fresh_database
from tests.stores.databases import connected, describe, rows


async def apply_plain_sql(url, script):
    family = engine_url(url).get_backend_name()
    if family == "sqlite":
        await asyncio.to_thread(apply_to_sqlite, engine_url(url).database, script)
    elif family == "postgresql":
        async with connected(url) as connection:
            await (await connection.get_raw_connection()).driver_connection.execute(script)
    else:
        await rows(url, *(part for part in script.split(";\n") if part.strip()))


def apply_to_sqlite(path, script):
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


@pytest.fixture
def three_databases(database_url, tmp_path):
    if database_url.startswith("sqlite"):
        yield [f"sqlite:///{tmp_path}/{n}.db" for n in range(3)]
        return
    with ExitStack() as stack:
        server = database_url.rpartition("/")[0]
        yield [stack.enter_context(fresh_database(server)) for _ in range(3)]


async def test_tables_migrations_and_plain_sql_are_the_same(three_databases):
    by_migration, by_sql, by_tables = three_databases
    await migrate(by_migration)
    await apply_plain_sql(by_sql, render(engine_url(by_sql).get_backend_name()))
    async with connected(by_tables) as connection:
        await connection.run_sync(tables.metadata.create_all)

    expected = await describe(by_migration)
    assert await describe(by_sql) == expected
    of_the_tables = {k: v for k, v in expected.items() if "gateway_version" not in k}
    assert await describe(by_tables) == of_the_tables
    samples = "SELECT id, name, handler, cronexpression, enabled, priority FROM jobs ORDER BY id"
    assert await rows(by_sql, samples) == await rows(by_migration, samples)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_plain_sql_files_are_up_to_date(dialect):
    written = (folder() / "sql" / f"{dialect}.sql").read_text()
    assert written == render(dialect), "run `python -m gateway.store.migrate`"


async def test_migrating_again_changes_nothing(database_url):
    assert await migrate(database_url) == [head()]
    before = await describe(database_url)
    assert await migrate(database_url) == []
    assert await describe(database_url) == before
    assert await current(database_url) == head()


async def test_of_two_migrations_at_once_one_works_and_one_waits(database_url):
    applied = await asyncio.gather(migrate(database_url), migrate(database_url), migrate(database_url))
    assert sorted(applied) == [[], [], [head()]]


async def test_a_database_held_by_another_migration_is_given_up_in_time(database_url):
    holding = {
        "sqlite": "BEGIN IMMEDIATE",
        "postgresql": f"SELECT pg_advisory_xact_lock({migrations._LOCK_NUMBER})",
        "mysql": f"SELECT get_lock({migrations._LOCK_TEXT}, 5)",
    }
    async with connected(database_url) as connection:
        await connection.execute(text(holding[connection.dialect.name]))
        with pytest.raises(MigrationError, match="another migration holds the database"):
            async with asyncio.timeout(10):
                await migrate(database_url, lock_timeout=0.2)
    assert await migrate(database_url) == [head()]


async def test_only_the_programs_own_version_passes(database_url):
    async with connected(database_url) as connection:
        with pytest.raises(MigrationError, match=r"no tables.*run `gateway migrate`"):
            await check_version(connection)
    await migrate(database_url)
    async with connected(database_url) as connection:
        await check_version(connection)

    await rows(database_url, "UPDATE gateway_version SET version_num = '0000'")
    async with connected(database_url) as connection:
        with pytest.raises(MigrationError, match=r"has schema 0000.*run `gateway migrate`"):
            await check_version(connection)


async def test_a_newer_schema_is_refused_and_left_alone(database_url):
    await migrate(database_url)
    await rows(database_url, "UPDATE gateway_version SET version_num = '9999'")
    async with connected(database_url) as connection:
        with pytest.raises(MigrationError, match=r"9999.*newer gateway"):
            await check_version(connection)
    with pytest.raises(MigrationError, match=r"9999.*newer gateway"):
        await migrate(database_url)
    assert await current(database_url) == "9999"


async def test_somebody_elses_queue_jobs_is_not_touched(database_url):
    await rows(database_url, "CREATE TABLE queue_jobs (id VARCHAR(255) PRIMARY KEY)")
    with pytest.raises(MigrationError, match="queue_jobs that is not the gateway's"):
        await migrate(database_url)
    assert await current(database_url) is None


async def test_a_migration_that_failed_leaves_nothing(sqlite_url, postgresql_url):
    for url in (sqlite_url, postgresql_url):
        await rows(url, "CREATE VIEW inbound_dedupe AS SELECT 1 AS one")
        before = await describe(url)
        with pytest.raises(MigrationError, match=r"the migration failed.*inbound_dedupe"):
            await migrate(url)
        assert await describe(url) == before


async def test_a_migration_that_mysql_left_half_done_can_be_repeated(mariadb_url):
    await migrate(mariadb_url)
    whole = await describe(mariadb_url)
    await rows(mariadb_url, "DROP TABLE gateway_version", "DROP TABLE inbound_dedupe", "DROP TABLE source_positions")
    assert await migrate(mariadb_url) == [head()]
    assert await describe(mariadb_url) == whole


async def test_a_database_that_is_away_is_no_wrong_schema(tmp_path):
    for url in (
        f"sqlite:///{tmp_path}/missing/gateway.db",
        "postgresql://u:hunter2@127.0.0.1:9/x",
        "mysql://127.0.0.1:9/x",
    ):
        with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
            await migrate(url)
        assert "hunter2" not in str(caught.value)
