"""The gateway's own statements use the index they are meant for, and never sort, in the states where planners slip.

A statement is planned when the table is empty and never analysed, and that plan may be kept for weeks; with 100,000
rows; and while an old snapshot keeps every dead entry. Each verb's script runs on the real driver, so with its own
connection settings; each of its statements is explained first, and all is rolled back.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.job import QueueJob
from gateway.outcome import Completed, Discard, Retry
from gateway.store import upkeep
from gateway.store.claim import FRONT, Claim, claim_jobs
from gateway.store.finish import finish_jobs
from gateway.store.migrate import migrate
from gateway.store.opening import open_driver
from gateway.store.script import Result, Sql
from gateway.store.url import engine_url
from gateway.store.values import Finish
from tests.stores.databases import rows

ROWS = 100_000
ME = "plant/1"
KEY = {
    "postgresql": {"queue_jobs_pkey"},
    "sqlite": {"uq_queue_jobs_id", "sqlite_autoindex_queue_jobs_1"},
    "mysql": {"PRIMARY"},
}


@dataclass(frozen=True)
class Verb:
    """A script, the indexes that its statements on `queue_jobs` may use, and what stands in for rows."""

    name: str
    make: Callable[[Any], Any]
    indexes: frozenset[str]
    first: Sequence[Any] = ()
    count: int = 0


def verb(name, make, *indexes, first=(), count=0):
    return Verb(name, make, frozenset(f"ix_queue_jobs_{index}" for index in indexes), first, count)


def running(number):
    return QueueJob(id=f"j{number}", sequence=number, handler="h", claim_token=f"t{number}", claimed_by=ME)


def finishing(outcome, *numbers):
    finishes = [Finish(job=running(n), outcome=outcome) for n in numbers]
    return lambda dialect: finish_jobs(dialect, finishes)


def claiming(lane, handlers, after=FRONT):
    return lambda dialect: claim_jobs(dialect, Claim(lane, 50, handlers, "0" * 16, ME), after)


BATCH = range(19, 1019, 20)
CLAIMS = [(f"j{n}", f"t{n}") for n in BATCH]
VERBS = [
    verb("claim run", claiming("run", ["h", "i"]), "ready", "ordering"),
    verb("claim any", claiming("run", None), "ready", "ordering"),
    verb("claim alone", claiming("alone", ["h", "i"]), "ready", "ordering"),
    verb("claim send", claiming("send:orders", None), "ready", "ordering"),
    verb("claim on", claiming("run", ["h", "i"], (-1, 5000)), "ready", "ordering"),
    verb("finish one", finishing(Completed("{}"), 19), count=1),
    verb("finish one with a retry", finishing(Retry(2.0, "no"), 19), count=1),
    verb("finish one for good", finishing(Discard("no"), 19), count=1),
    verb("finish fifty", finishing(Completed("{}"), *BATCH), count=50),
    verb("release", lambda d: upkeep.release(d, CLAIMS), count=50),
    verb("reclaim", lambda d: upkeep.forgotten(d, ME, [], older_than=5.0), "claimed"),
    verb("owners", upkeep.owners, "claimed"),
    verb("rescue", lambda d: upkeep.rescue(d, ME), "claimed", first=[("j19", "t19", 0, "h", None, 0, ME)]),
    verb("rescue the last", lambda d: upkeep.rescue(d, ME), "claimed", first=[("j19", "t19", 9, "h", None, 0, ME)]),
    verb("promote", lambda d: upkeep.promote(d, 1000), "due", first=[("j17",), ("j37",)], count=2),
    verb("next due", upkeep.next_due, "due"),
    verb("postpone", upkeep.postpone, "ready", first=[("j10",)]),
    verb("prune", lambda d: upkeep.prune(d, timedelta(0), 500), "completed", first=[("j1",)], count=1),
]


class Explained(Exception):  # noqa: N818 - carries what was found, and rolls back what was done
    def __init__(self, plans):
        self.plans = plans


def explained(dialect, verb):
    """Explain each statement of the verb's script; only those that return rows run. Ends by raising what was found."""
    plans = []
    script, sent = verb.make(dialect), None
    while True:
        try:
            sql = script.send(sent)
        except StopIteration:
            raise Explained(plans) from None
        assert isinstance(sql, Sql)
        plans.append((sql.text, (yield from EXPLAIN[dialect.name](sql))))
        found = (yield sql).rows if sql.want == "rows" else []
        count = min(verb.count, 1) if dialect.name == "sqlite" else verb.count  # it finishes one by one
        sent = Result(found or verb.first, count)


def explain_sqlite(sql):
    found = (yield Sql(f"EXPLAIN QUERY PLAN {sql.text}", first_of(sql), "rows")).rows
    return [line[3] for line in found]


def explain_postgresql(sql):
    yield Sql(f"PREPARE explained AS {sql.text}")
    nulls = ", ".join(["NULL"] * max([0, *(int(n) for n in re.findall(r"\$(\d+)", sql.text))]))
    found = (yield Sql(f"EXPLAIN (FORMAT JSON) EXECUTE explained{f'({nulls})' if nulls else ''}", (), "rows")).rows
    yield Sql("DEALLOCATE explained")
    return list(nodes(found[0][0][0]["Plan"]))


def explain_mysql(sql):
    found = (yield Sql(f"EXPLAIN {sql.text}", first_of(sql), "rows")).rows
    return [tuple(str(value) for value in line) for line in found]


EXPLAIN = {"sqlite": explain_sqlite, "postgresql": explain_postgresql, "mysql": explain_mysql}


def first_of(sql):
    return sql.args[0] if sql.want == "many" else sql.args


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


# --- what is wrong with a plan


def mistakes(family, verb, text, plan):
    allowed = verb.indexes | KEY[family]
    return [f"{verb.name}: {mistake} in {text}" for mistake in CHECK[family](plan, allowed)]


def check_sqlite(plan, allowed):
    for line in plan:
        if "TEMP B-TREE FOR ORDER BY" in line:
            yield line
        if (
            line.startswith("SCAN")
            and re.search(r"SCAN (queue_jobs|job_histories|j|e|q)\b", line)
            and "USING" not in line
        ):
            yield line
        used = re.search(r"(?:SEARCH|SCAN) (?:queue_jobs|j|e|q) USING .*?INDEX (\w+)", line)
        if used and used[1] not in allowed:
            yield line


def check_postgresql(plan, allowed):
    for node in plan:
        kind, table, index = node["Node Type"], node.get("Relation Name"), node.get("Index Name")
        if kind in ("Sort", "Incremental Sort") and any(child.get("Relation Name") for child in nodes(node)):
            yield f"a sort by {node['Sort Key']}"
        if (
            table in ("queue_jobs", "job_histories")
            and "Scan" in kind
            and kind not in ("Index Scan", "Index Only Scan")
        ):
            yield f"{kind} of {table}"
        if table == "queue_jobs" and index and index not in allowed:
            yield f"{kind} of {table} by {index}"


def check_mysql(plan, allowed):
    for line in plan:
        short = line if len(line) == 10 else (*line[:3], *line[4:10], line[11])  # MySQL's has two columns more
        _, kind, table, access, _, key, _, _, _, extra = short
        if kind == "INSERT" or table not in {"queue_jobs", "job_histories", "j", "e", "q", "o"}:
            continue
        if "filesort" in extra:
            yield f"filesort: {line}"
        if access == "ALL" or (access, key) == ("index", "PRIMARY"):
            yield f"full scan: {line}"
        if key != "None" and key not in allowed | {"ix_job_histories_jobid"}:
            yield f"index {key}: {line}"


CHECK = {"sqlite": check_sqlite, "postgresql": check_postgresql, "mysql": check_mysql}


async def all_mistakes(driver):
    family, found = driver.dialect.name, []
    for each in VERBS:
        with pytest.raises(Explained) as caught:
            await driver.run(lambda each=each: explained(driver.dialect, each))
        for statement, plan in caught.value.plans:
            found += mistakes(family, each, statement, plan)
    return found


# --- the states


NUMBERS = {
    "postgresql": f"SELECT generate_series(1, {ROWS}) AS n",
    "sqlite": f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {ROWS}) SELECT n FROM s",
    "mysql": " CROSS JOIN ".join(
        f"(SELECT 0 AS d UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6"
        f" UNION SELECT 7 UNION SELECT 8 UNION SELECT 9) d{p}"
        for p in range(5)
    ),
}
NUMBERS["mysql"] = f"SELECT d0.d + 10 * d1.d + 100 * d2.d + 1000 * d3.d + 10000 * d4.d + 1 AS n FROM {NUMBERS['mysql']}"
JOIN = {"postgresql": "'{}' || n", "sqlite": "'{}' || n", "mysql": "concat('{}', n)"}
TIME = "'2030-01-01 00:00:00.000000'"
PAST = "'2020-01-01 00:00:00.000000'"


def fill(family):
    """Of twenty: ten completed, six ready (one outbound, one a suspect, one in order), four due or running."""
    past = f"TIMESTAMP {PAST}" if family == "postgresql" else PAST
    json_text = (
        'CAST(\'{"connector": "orders"}\' AS jsonb)' if family == "postgresql" else '\'{"connector": "orders"}\''
    )
    join = JOIN[family].format
    return f"""INSERT INTO queue_jobs (id, handler, statusid, priority, metadata, payload, crashcount, orderingkey,
        claimtoken, claimedby, startedat, scheduledat, completedat)
        SELECT {join("j")}, CASE WHEN n % 20 = 11 THEN 'gateway.publish' ELSE 'h' END,
        CASE WHEN n % 20 < 10 THEN 3 WHEN n % 20 < 16 THEN 0 WHEN n % 20 = 16 THEN 1 WHEN n % 20 = 17 THEN 5
        WHEN n % 20 = 18 THEN 7 ELSE 2 END, n % 3, {json_text}, 'payload',
        CASE WHEN n % 20 = 12 THEN 2 ELSE 0 END, CASE WHEN n % 20 = 13 THEN {join("k")} END,
        CASE WHEN n % 20 = 19 THEN {join("t")} END, CASE WHEN n % 20 = 19 THEN '{ME}' END,
        CASE WHEN n % 20 = 19 THEN {past} END, CASE WHEN n % 20 IN (17, 18) THEN {past} END,
        CASE WHEN n % 20 < 10 THEN {past} END FROM ({NUMBERS[family]}) AS numbers""".replace(":", "\\:")


@asynccontextmanager
async def old_snapshot(url):
    """Read once and never end the transaction, as a backup does."""
    engine = create_async_engine(engine_url(url), isolation_level=ISOLATION[engine_url(url).get_backend_name()])
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT count(*) FROM queue_jobs"))
            yield
            await connection.rollback()
    finally:
        await engine.dispose()


ISOLATION = {"postgresql": "REPEATABLE READ", "mysql": "REPEATABLE READ", "sqlite": "SERIALIZABLE"}
CHURN = (
    "UPDATE queue_jobs SET statusid = 2, claimedby = 'x', claimtoken = 'x' WHERE readylane = 'run' AND seq < 50000",
    "UPDATE queue_jobs SET statusid = 3, claimtoken = NULL WHERE claimedby = 'x' AND statusid = 2",
)


async def test_every_statement_uses_its_index(database_url):
    await migrate(database_url)
    driver = await open_driver(database_url)
    try:
        found = {"empty, never analysed": await all_mistakes(driver)}
        await rows(database_url, fill(driver.dialect.name))
        found["100,000 rows"] = await all_mistakes(driver)
        async with old_snapshot(database_url):
            for statement in CHURN:
                await rows(database_url, statement)
            found["under an old snapshot"] = await all_mistakes(driver)
        lines = [f"{state}: {mistake}" for state, mistakes in found.items() for mistake in mistakes]
        assert not lines, "\n".join(lines)
    finally:
        await driver.close()


@pytest.mark.database
async def test_a_claim_that_goes_on_reads_none_of_what_is_dead(postgresql_url):
    await migrate(postgresql_url)
    driver = await open_driver(postgresql_url)
    try:
        await rows(postgresql_url, fill("postgresql"))
        async with old_snapshot(postgresql_url):
            for statement in CHURN:
                await rows(postgresql_url, statement)
            at_the_front = await pages_read(driver, FRONT)
            going_on = await pages_read(driver, (-2, 50_000))
    finally:
        await driver.close()
    assert going_on * 5 < at_the_front


async def pages_read(driver, after):
    sql = claiming("run", ["h"], after)(driver.dialect).send(None)

    def script():
        found = yield Sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql.text}", sql.args, "rows")
        raise Explained(list(nodes(found.rows[0][0][0]["Plan"])))

    with pytest.raises(Explained) as caught:
        await driver.run(script)
    (index_scan,) = (node for node in caught.value.plans if node.get("Index Name") == "ix_queue_jobs_ready")
    return index_scan["Shared Hit Blocks"] + index_scan["Shared Read Blocks"]
