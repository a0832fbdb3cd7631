"""Conditions look and never act: what the parser refuses, and what the database refuses besides."""

import asyncio
import re
from datetime import UTC, datetime

import pytest

from gateway.errors import ConfigError, StoreError
from gateway.store import Asking
from gateway.store import condition as conditions
from gateway.store.condition import Conditions, checked
from gateway.store.migrate import migrate
from gateway.store.url import engine_url
from gateway.testing.store.harness import until
from tests.stores.databases import rows
from tests.stores.test_plans import NUMBERS

TICK = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
async def ask(database_url):
    await migrate(database_url)
    each = Conditions(database_url, seconds=5)

    async def ask(text):
        verdict = await each.ask(Asking(id="s", name="s", condition=text, tick=TICK))
        return verdict.error or verdict.holds

    yield ask
    await each.close()


REFUSED = [
    ("postgresql", "SELECT 1; SELECT 2"),
    ("postgresql", "SELECT 1; DROP TABLE jobs"),
    ("postgresql", "DELETE FROM jobs"),
    ("postgresql", "WITH gone AS (DELETE FROM jobs RETURNING 1) SELECT count(*) FROM gone"),
    ("postgresql", "SELECT 1 INTO copied FROM jobs"),
    ("postgresql", "SELECT 1 FROM jobs FOR UPDATE"),
    ("postgresql", "SELECT (SELECT 1 FROM jobs FOR SHARE)"),
    ("postgresql", "SELECT pg_catalog.pg_terminate_backend(1)"),
    ("postgresql", 'SELECT "pg_notify"(1)'),
    ("postgresql", "SELECT 1 WHERE pg_try_advisory_lock(1)"),
    ("postgresql", "SELECT * FROM dblink('x', 'y') AS t(a int)"),
    ("postgresql", "nextval('s') > 1"),
    ("postgresql", "COPY jobs TO '/tmp/x'"),
    ("postgresql", "EXPLAIN ANALYZE DELETE FROM jobs"),
    ("postgresql", "SET ROLE postgres"),
    ("postgresql", "CREATE TABLE x AS SELECT 1"),
    ("postgresql", ""),
    ("postgresql", "("),
    ("postgresql", "(" * 3000),
    ("mysql", "SELECT 1 INTO OUTFILE '/tmp/x'"),
    ("mysql", "SELECT load_file('/etc/passwd')"),
    ("mysql", "SELECT GET_LOCK('a', 1)"),
    ("mysql", "SELECT 1 FROM jobs LOCK IN SHARE MODE"),
    ("mysql", "CALL p()"),
    ("mysql", "REPLACE INTO jobs (id) VALUES ('x')"),
    ("sqlite", "PRAGMA query_only = OFF"),
    ("sqlite", "ATTACH 'x' AS y"),
    ("sqlite", "SELECT load_extension('x')"),
    ("sqlite", "VACUUM"),
]


@pytest.mark.parametrize(("database", "text"), REFUSED)
def test_what_may_do_more_than_look_is_refused(database, text):
    with pytest.raises(ConfigError, match=r"^condition: "):
        checked(text, database)


def test_a_comment_that_a_server_would_run_is_not_there_any_more():
    assert checked("SELECT 1 /*!50000 INTO OUTFILE '/tmp/x' */ -- x", "mysql") == "SELECT 1 LIMIT 1"
    assert checked("SELECT 1 /*M! , sleep(9) */", "mysql") == "SELECT 1 LIMIT 1"


HOLDS = [
    ("SELECT 1", True),
    ("SELECT 0", False),
    ("1 = 1", True),
    ("1 = 2", False),
    ("TRUE", True),
    ("NULL", False),
    ("0.5", True),
    ("'1'", True),
    ("'0'", False),
    ("SELECT 1 FROM queue_jobs", False),
    ("SELECT count(*) FROM queue_jobs", False),
    ("NOT EXISTS (SELECT 1 FROM queue_jobs WHERE handler LIKE '%x%')", True),
    ("(SELECT count(*) FROM jobs) > 1", True),
    ("SELECT id IS NOT NULL, name, 1 FROM jobs", True),
    ("WITH n AS (SELECT 1 AS one) SELECT one FROM n UNION ALL SELECT 0", True),
]


async def test_what_holds_and_what_does_not(ask):
    assert [(text, await ask(text)) for text, _ in HOLDS] == HOLDS


async def test_an_error_does_not_hold_and_is_told(ask):
    assert "nowhere" in await ask("SELECT 1 FROM nowhere")
    assert (
        await ask("SELECT name FROM jobs")
        == "condition: could not convert string to float: 'Cleanup Old Job Histories'"
    )
    assert "one SELECT" in await ask("DROP TABLE jobs")
    assert await ask("SELECT 1") is True


async def test_the_database_refuses_what_the_parser_lets_through(ask, database_url, monkeypatch):
    monkeypatch.setattr(conditions, "checked", lambda text, _: text)
    for writes in ("DELETE FROM jobs", "UPDATE jobs SET enabled = FALSE", "CREATE TABLE x (a INTEGER)"):
        assert "read" in (await ask(writes)).lower(), writes
    assert len(await rows(database_url, "SELECT id FROM jobs WHERE enabled")) == 2
    assert await ask("SELECT 1") is True


SLOW = {
    "postgresql": "SELECT pg_sleep(60) IS NULL",
    "mysql": f"SELECT count(*) + 60606 FROM ({NUMBERS['mysql']}) AS a CROSS JOIN ({NUMBERS['mysql']}) AS b",
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
}


async def test_a_condition_that_takes_too_long_ends_and_lets_the_others_be(database_url):
    await migrate(database_url)
    family = engine_url(database_url).get_backend_name()
    each = Conditions(database_url, seconds=0.3)
    try:
        async with asyncio.timeout(20):
            slow = Asking(id="s", name="s", condition=SLOW[family], tick=TICK)
            verdicts = await asyncio.gather(*(each.ask(slow) for _ in range(2)))
            quick = await each.ask(Asking(id="q", name="q", condition="SELECT 1", tick=TICK))
    finally:
        await each.close()
    assert all(re.search(SAID[family], verdict.error) and not verdict.holds for verdict in verdicts), verdicts
    assert quick.holds
    if family != "sqlite":

        async def over():
            return (await rows(database_url, STILL[family]))[0]["n"] == 0

        await until(over)


SAID = {
    "postgresql": "statement timeout",
    "mysql": "interrupted",
    "sqlite": "interrupted",
}
STILL = {
    "postgresql": """SELECT count(*) AS n FROM pg_stat_activity WHERE state = 'active' AND query ILIKE '%sleep(60)%'
 AND datname = current_database() AND pid <> pg_backend_pid()""",
    "mysql": """SELECT count(*) AS n FROM information_schema.processlist WHERE info LIKE '%60606%'
 AND db = database() AND id <> connection_id()""",
}


async def test_a_database_that_is_not_there_is_an_error_too(tmp_path):
    each = Conditions(f"sqlite:///{tmp_path}/nowhere/gateway.db", seconds=1)
    verdict = await each.ask(Asking(id="s", name="s", condition="SELECT 1", tick=TICK))
    assert (verdict.holds, verdict.error is not None) == (False, True)
    with pytest.raises(StoreError, match="no database is called"):
        Conditions("oracle://x/y", seconds=1)
