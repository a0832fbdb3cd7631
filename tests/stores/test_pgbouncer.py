"""PostgreSQL behind PgBouncer in transaction mode."""

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import event, text

from gateway.errors import StoreUnavailable
from gateway.store import Asking, Store
from gateway.store.condition import Conditions
from gateway.store.migrate import migrate
from gateway.store.opening import open_driver
from gateway.store.postgresql import PostgresqlDriver
from gateway.store.script import Script, Sql
from gateway.testing.harness import stays
from gateway.testing.store import StoreConformance
from gateway.testing.store.harness import until
from tests.conftest import pooled
from tests.stores.databases import rows


@pytest.mark.database
class TestPgBouncer(StoreConformance):
    locks = False

    @pytest.fixture
    def url(self, pgbouncer_url: str) -> str:
        return pgbouncer_url

    @pytest.fixture
    def beside(self, postgresql_url: str) -> str:
        return postgresql_url


@pytest.mark.database
async def test_a_pooler_is_noticed_and_its_absence_too(pgbouncer_url: str, postgresql_url: str) -> None:
    for url, behind in ((pgbouncer_url, True), (postgresql_url, False)):
        driver = await open_driver(url)
        assert isinstance(driver, PostgresqlDriver)
        assert await driver.is_pooled() is behind
        await driver.close()


@pytest.mark.database
async def test_each_transaction_of_the_gateway_brings_its_settings_and_leaves_none(pgbouncer_url: str) -> None:
    """One session serves all of them in turn, and then a stranger."""
    driver = await open_driver(pgbouncer_url, statement_timeout=7.0)
    names = ("statement_timeout", "idle_in_transaction_session_timeout", "enable_seqscan", "TimeZone")
    shown = ", ".join(f"current_setting('{name}')" for name in names)

    def look() -> Script[tuple[str, ...]]:
        found = yield Sql(f"SELECT {shown}", (), "rows")
        return tuple(found.rows[0])

    try:
        assert await driver.run(look, single=True) == ("7s", "10s", "off", "UTC")
        assert await driver.read(look) == ("7s", "10s", "on", "UTC")
        async with driver.engine.connect() as connection:
            theirs = (await connection.execute(text(f"SELECT {shown}"))).one()
        assert tuple(theirs) == ("0", "0", "on", "UTC")
    finally:
        await driver.close()


@pytest.mark.database
async def test_a_statement_has_its_deadline_and_leaves_no_transaction(pgbouncer_url: str, postgresql_url: str) -> None:
    driver = await open_driver(pgbouncer_url, statement_timeout=0.5)

    def sleep() -> Script[None]:
        yield Sql("SELECT pg_sleep(20)", (), "rows")

    try:
        for work in (driver.run, driver.read):
            with pytest.raises(StoreUnavailable):
                await work(sleep)
    finally:
        await driver.close()
    watcher = await open_driver(postgresql_url)

    def look() -> Script[int]:
        found = yield Sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state <> 'idle'",
            (),
            "rows",
        )
        return int(found.rows[0][0])

    async def quiet() -> bool:
        return await watcher.read(look) == 0

    try:
        await until(quiet)
    finally:
        await watcher.close()


@pytest.mark.database
async def test_a_condition_of_a_schedule_may_only_look_and_leaves_a_session_that_may_write(pgbouncer_url: str) -> None:
    conditions = Conditions(pgbouncer_url, seconds=5.0)
    text = "current_setting('transaction_read_only') = 'on'"
    asking = Asking(id="s", name="s", condition=text, tick=datetime(2030, 1, 1, tzinfo=UTC))
    driver = await open_driver(pgbouncer_url)

    def write() -> Script[None]:
        yield Sql("CREATE TABLE written (id INTEGER)")

    try:
        for _ in range(3):
            verdict = await conditions.ask(asking)
            assert (verdict.holds, verdict.error) == (True, None)
        await driver.run(write)
    finally:
        await conditions.close()
        await driver.close()


@pytest.mark.database
async def test_a_transaction_waits_for_a_session_that_others_use(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its place in the pooler's queue, instead of taking its connection for dead."""
    monkeypatch.setattr("gateway.store.transaction.PROBE", 0.05)
    with pooled(postgresql_url, size=1) as url:
        driver = await open_driver(url)
        connections: list[object] = []
        event.listen(driver.engine.sync_engine, "connect", lambda raw, _: connections.append(raw))
        first, second = driver.transaction(), driver.transaction()
        try:
            await (await first.connection()).execute(text("SELECT 1"))
            waiting = asyncio.create_task(second.connection())
            assert await stays(lambda: still(waiting), 0.5)
            await first.rollback()
            await (await waiting).execute(text("SELECT 1"))
            assert len(connections) == 2
        finally:
            await first.rollback()
            await second.rollback()
            await driver.close()


async def still(task: asyncio.Task[object]) -> bool:
    return not task.done()


@pytest.mark.database
async def test_those_behind_a_pooler_and_those_beside_it_see_each_other(
    pgbouncer_url: str, postgresql_url: str
) -> None:
    await migrate(pgbouncer_url)
    behind = await Store.open(pgbouncer_url, instance="behind")
    beside = await Store.open(postgresql_url, instance="beside")
    heard = asyncio.Event()

    async def rung() -> bool:
        behind.notify()
        return heard.is_set()

    try:
        assert {row.name for row in await behind.running()} == {"behind", "beside"}
        assert await rows(postgresql_url, "SELECT name, sessionlock FROM gateway_instances ORDER BY name") == [
            {"name": "behind", "sessionlock": False},
            {"name": "beside", "sessionlock": True},
        ]
        beside.listen(heard.set)
        await until(rung)
    finally:
        await behind.close()
        await beside.close()
