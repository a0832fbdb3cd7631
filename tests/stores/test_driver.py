"""What every driver promises to the verbs, on each database in turn."""

import asyncio
import json
import random
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from inspect import isawaitable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import make_url, text

from gateway.errors import CommitUnknown, DataRefused, StoreError, StoreUnavailable, TransactionRefused
from gateway.store.driver import Driver
from gateway.store.link import PLANNER
from gateway.store.opening import open_driver
from gateway.store.presence import Identity, insert
from gateway.store.script import Deferred, Script, Sql
from gateway.store.server import ServerDriver
from gateway.store.sockets import tls
from gateway.store.values import Report
from tests.faults import FaultProxy

CREATE = "CREATE TABLE effects (id INTEGER PRIMARY KEY, note VARCHAR(20) NOT NULL)"
INSTANCES = """CREATE TABLE gateway_instances (id VARCHAR(255) PRIMARY KEY, name VARCHAR(255), version VARCHAR(50),
 host VARCHAR(255), pid INTEGER, startedat {time}, heartbeatat {time}, sessionlock BOOLEAN, reportedat {time},
 running INTEGER, workers INTEGER, connectors {json}, handlers {json})"""
TYPES = {
    "sqlite": {"time": "TEXT", "json": "TEXT"},
    "postgresql": {"time": "TIMESTAMP", "json": "JSONB"},
    "mysql": {"time": "DATETIME(6)", "json": "JSON"},
}


def one(sql: Sql) -> Callable[[], Script[Any]]:
    """Return a script of one statement, whose value is its rows or its count."""

    def script() -> Script[Any]:
        result = yield sql
        return [tuple(row) for row in result.rows] if sql.want == "rows" else result.count

    return script


def add(driver: Driver, number: int, note: str | None = "x") -> Sql:
    marks = driver.dialect.placeholders(2)
    return Sql(f"INSERT INTO effects (id, note) VALUES ({marks})", (number, note))


async def numbers(driver: Driver) -> list[int]:
    rows = await driver.read(one(Sql("SELECT id FROM effects ORDER BY id", (), "rows")))
    return [row[0] for row in rows]


@pytest.fixture
async def driver(database_url: str) -> AsyncIterator[Driver]:
    driver = await open_driver(database_url, statement_timeout=5.0)
    try:
        await driver.run(one(Sql(CREATE)))
        yield driver
        if isinstance(driver, ServerDriver):
            assert driver.own.lent == driver.readers.lent == 0
    finally:
        await driver.close()


def through(url: str, proxy: FaultProxy) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{proxy.port}"))


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 3306


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    """Wait for a condition, which may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if await met if isawaitable(met) else met:
                return
            await asyncio.sleep(0.01)


async def test_a_script_commits_as_a_whole(driver: Driver) -> None:
    def script() -> Script[int]:
        yield add(driver, 1)
        yield Sql(
            f"INSERT INTO effects (id, note) VALUES ({driver.dialect.placeholders(2)})", [(2, "a"), (3, "b")], "many"
        )
        changed = yield Sql("UPDATE effects SET note = 'y' WHERE id < 3")
        return changed.count

    assert await driver.run(script) == 2
    assert await numbers(driver) == [1, 2, 3]


async def test_a_script_that_raises_leaves_nothing(driver: Driver) -> None:
    def script() -> Script[None]:
        yield add(driver, 1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await driver.run(script)
    assert await numbers(driver) == []


async def test_an_update_that_changes_nothing_still_counts_its_row(driver: Driver) -> None:
    await driver.run(one(add(driver, 1, "same")))
    assert await driver.run(one(Sql("UPDATE effects SET note = 'same' WHERE id = 1"))) == 1


@pytest.mark.parametrize("note", [None, "much longer than twenty characters", "x\x00y", "\ud800"], ids=repr)
async def test_refused_data_is_told_from_an_outage(driver: Driver, note: str | None) -> None:
    if driver.dialect.name == "sqlite" and note is not None and note != "\ud800":
        pytest.skip("SQLite takes it")
    if driver.dialect.name == "mysql" and note == "x\x00y":
        pytest.skip("MySQL takes it")
    with pytest.raises(DataRefused):
        await driver.run(one(add(driver, 1, note)))
    with pytest.raises(DataRefused):
        await driver.run(one(add(driver, 1, note)), single=True)
    assert await driver.run(one(add(driver, 2))) == 1


async def test_a_collision_is_refused_data(driver: Driver) -> None:
    await driver.run(one(add(driver, 1)))
    with pytest.raises(DataRefused):
        await driver.run(one(add(driver, 1)))


async def test_a_wrong_statement_is_neither(driver: Driver) -> None:
    with pytest.raises(StoreError) as caught:
        await driver.run(one(Sql("SELECT nothing FROM nowhere")))
    assert type(caught.value) is StoreError


async def test_a_deferred_write_joins_the_transaction(driver: Driver) -> None:
    statement = text("INSERT INTO effects (id, note) VALUES (:id, :note)")

    def script(*, fail: bool) -> Script[None]:
        yield Deferred(statement, [{"id": 1, "note": "a"}, {"id": 2, "note": "b"}])
        yield add(driver, 3)
        if fail:
            raise ValueError

    with pytest.raises(ValueError):
        await driver.run(lambda: script(fail=True))
    assert await numbers(driver) == []
    await driver.run(lambda: script(fail=False))
    assert await numbers(driver) == [1, 2, 3]


async def test_a_deferred_write_cannot_end_the_shared_transaction(driver: Driver) -> None:
    def script() -> Script[None]:
        yield add(driver, 1)
        yield Deferred(text("COMMIT"), [])

    with pytest.raises(TransactionRefused):
        await driver.run(script)
    assert await numbers(driver) == []


async def test_many_at_once_each_fail_alone(driver: Driver) -> None:
    results = await asyncio.gather(*(driver.run(one(add(driver, n // 2))) for n in range(60)), return_exceptions=True)
    assert sum(isinstance(result, DataRefused) for result in results) == 30
    assert await numbers(driver) == list(range(30))


async def test_the_dialects_clock_is_utc_to_the_microsecond(driver: Driver) -> None:
    dialect = driver.dialect
    moment = datetime(2031, 2, 3, 4, 5, 6, 789012, UTC)
    await driver.run(one(Sql(f"CREATE TABLE times (at {TYPES[dialect.name]['time']})")))
    await driver.run(one(Sql(f"INSERT INTO times VALUES ({dialect.placeholder(1)})", (dialect.moment(moment),))))
    query = f"SELECT at, {dialect.now}, {dialect.later(dialect.placeholder(1))}, {dialect.age('at')} FROM times"
    ((at, now, later, age),) = await driver.read(one(Sql(query, (90.5,), "rows")))
    assert dialect.instant(at) == moment
    now, later = dialect.instant(now), dialect.instant(later)
    assert now is not None
    assert later is not None
    assert abs(later - now - timedelta(seconds=90.5)) < timedelta(milliseconds=5)
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)
    assert abs(float(age) - (now - moment).total_seconds()) < 0.1


async def test_a_row_that_is_there_is_left_or_replaced(driver: Driver) -> None:
    await driver.run(one(add(driver, 1, "old")))
    again = add(driver, 1, "new")
    read = one(Sql("SELECT note FROM effects", (), "rows"))
    await driver.run(one(Sql(again.text + driver.dialect.ignore("id"), again.args)))
    assert await driver.read(read) == [("old",)]
    await driver.run(one(Sql(again.text + driver.dialect.upsert(["id"], ["note"]), again.args)))
    assert await driver.read(read) == [("new",)]


async def test_readers_do_not_write_on_sqlite(sqlite_url: str) -> None:
    driver = await open_driver(sqlite_url)
    await driver.run(one(Sql(CREATE)))
    with pytest.raises(StoreError):
        await driver.read(one(add(driver, 1)))
    await driver.close()


async def test_callers_cancelled_anywhere_leave_no_transaction_open(driver: Driver) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)

    def script(number: int) -> Script[None]:
        yield add(driver, number)
        yield Sql("UPDATE effects SET note = 'z' WHERE id = -1")
        yield add(driver, number + 1000)

    async def cancelled(number: int) -> None:
        task = asyncio.ensure_future(driver.run(lambda: script(number)))
        await asyncio.sleep(chance.uniform(0, 0.006))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for start in range(0, 100, 5):
        await asyncio.gather(*(cancelled(n) for n in range(start, start + 5)))
    await driver.run(one(Sql("UPDATE effects SET note = 'end'")))  # waits for no lock
    found = await numbers(driver)
    assert [n for n in found if n < 1000] == [n - 1000 for n in found if n >= 1000], seed


async def test_a_connection_cancelled_while_it_begins_is_not_lent_again(server_database_url: str) -> None:
    async with FaultProxy(*address(server_database_url)) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=5.0)
        await driver.run(one(Sql(CREATE)))
        assert isinstance(driver, ServerDriver)
        (lane,) = driver.own._free
        proxy.stall()
        task = asyncio.ensure_future(driver.run(one(add(driver, 1))))
        await until(lambda: driver.own.lent)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        proxy.heal()
        await driver.run(one(add(driver, 2)))
        assert lane not in driver.own._free
        assert await numbers(driver) == [2]
        await driver.close()


async def test_a_connection_whose_caller_goes_away_while_it_is_made_is_closed(server_database_url: str) -> None:
    chance = random.Random(seed := random.randrange(10**6))
    async with FaultProxy(*address(server_database_url)) as proxy:

        async def cancelled(work: Awaitable[Any]) -> None:
            task = asyncio.ensure_future(work)
            await asyncio.sleep(chance.uniform(0, 0.03))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(8):
            driver = await open_driver(through(server_database_url, proxy), statement_timeout=5.0)
            transactions = [driver.transaction() for _ in range(4)]
            works = [driver.run(one(Sql("SELECT 1", (), "rows"))) for _ in range(4)]
            await asyncio.gather(*map(cancelled, [*works, *(each.connection() for each in transactions)]))
            await asyncio.gather(*(each.rollback() for each in transactions))
            await driver.close()
        print(f"seed {seed}, {proxy.accepted} connections")
        await until(lambda: not proxy.connections)


async def test_a_connection_that_fails_under_a_cancelled_commit_is_not_lent_again(server_database_url: str) -> None:
    async with FaultProxy(*address(server_database_url)) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=1.0)
        await driver.run(one(Sql(CREATE)))
        assert isinstance(driver, ServerDriver)
        (lane,) = driver.own._free

        def script() -> Script[None]:
            yield add(driver, 1)
            proxy.stall(["down"])

        task = asyncio.ensure_future(driver.run(script))
        await until(lambda: proxy.stalled)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert lane.broken
        assert lane not in driver.own._free
        proxy.heal()
        await driver.close()


async def test_a_deadlock_is_run_again(server_database_url: str) -> None:
    driver = await open_driver(server_database_url, statement_timeout=8.0)
    await driver.run(one(Sql(CREATE)))
    for n in (1, 2):
        await driver.run(one(add(driver, n)))

    def script(*order: int) -> Script[None]:
        for n in order:
            yield Sql(f"UPDATE effects SET note = note WHERE id = {n}")
            yield Sql(
                "SELECT pg_sleep(0.02)" if driver.dialect.name == "postgresql" else "SELECT SLEEP(0.02)", (), "rows"
            )

    await asyncio.gather(*(driver.run(lambda o=o: script(*o)) for o in [(1, 2), (2, 1)] * 2))
    await driver.close()


async def test_a_silent_server_costs_no_more_than_the_deadline(server_database_url: str) -> None:
    async with FaultProxy(*address(server_database_url)) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=1.0)
        await driver.run(one(Sql(CREATE)))
        proxy.stall()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await driver.run(one(add(driver, 1)))
        with pytest.raises(StoreUnavailable):
            await driver.ping()
        assert time.monotonic() - started < 5
        proxy.heal()
        proxy.reset()
        assert await driver.run(one(add(driver, 2)), retry=True) == 1
        await driver.close()


async def test_a_lost_answer_to_commit_is_unknown(server_database_url: str) -> None:
    async with FaultProxy(*address(server_database_url)) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=1.0)
        await driver.run(one(Sql(CREATE)))

        def script() -> Script[None]:
            yield add(driver, 1)
            proxy.stall(["down"])

        with pytest.raises(CommitUnknown):
            await driver.run(script)
        proxy.heal()
        await driver.run(one(add(driver, 2)))
        proxy.stall(["down"])
        with pytest.raises(CommitUnknown):
            await driver.run(one(add(driver, 3)), single=True)
        proxy.heal()
        proxy.reset()
        await driver.run(one(Sql("UPDATE effects SET note = note")), retry=True)
        await driver.close()


async def test_a_restarted_server_is_found_again(server_database_url: str) -> None:
    async with FaultProxy(*address(server_database_url)) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=2.0)
        await driver.run(one(Sql(CREATE)))
        proxy.refusing = True
        proxy.reset()
        with pytest.raises(StoreUnavailable):
            await driver.run(one(add(driver, 1)), retry=True)
        proxy.heal()
        assert await driver.run(one(add(driver, 1)), retry=True) == 1
        await driver.close()


async def test_the_gateways_own_sessions_are_set_up(postgresql_url: str) -> None:
    driver = await open_driver(postgresql_url)
    show = one(Sql("SELECT name, setting FROM pg_settings", (), "rows"))
    own, plain = dict(await driver.run(show)), dict(await driver.read(show))
    assert all(own[name] == "off" for name in PLANNER if name.startswith("enable_"))
    assert plain["enable_seqscan"] == "on"
    assert 0 < int(own["idle_in_transaction_session_timeout"]) <= 10_000
    async with driver.engine.connect() as connection:
        rows = (await connection.execute(text("SELECT name, setting FROM pg_settings"))).all()
        handlers = {row[0]: row[1] for row in rows}
    assert handlers["enable_seqscan"] == "on"
    assert handlers["idle_in_transaction_session_timeout"] == "0"
    await driver.close()


async def test_mysql_sessions_are_strict_and_in_utc(mariadb_url: str) -> None:
    driver = await open_driver(mariadb_url)
    query = "SELECT @@time_zone, @@tx_isolation, @@character_set_client, @@sql_mode, @@idle_transaction_timeout"
    ((zone, isolation, characters, mode, idle),) = await driver.run(one(Sql(query, (), "rows")))
    assert (zone, isolation, characters) == ("+00:00", "READ-COMMITTED", "utf8mb4")
    assert "STRICT_TRANS_TABLES" in mode
    assert 0 < idle <= 10
    with pytest.raises(StoreError):
        await driver.run(one(Sql("SELECT 1; SELECT 2", (), "rows")))
    await driver.close()


async def test_a_value_larger_than_a_packet_is_refused_data(mariadb_url: str) -> None:
    driver = await open_driver(mariadb_url)
    await driver.run(one(Sql(CREATE)))
    with pytest.raises(DataRefused):
        await driver.run(one(add(driver, 1, "x" * (17 << 20))))
    await driver.close()


async def test_processes_ring_at_each_other_but_not_at_themselves(postgresql_url: str) -> None:
    here, there = [await open_driver(postgresql_url) for _ in range(2)]
    rings: dict[str, int] = {"here": 0, "there": 0}
    for name, driver in (("here", here), ("there", there)):
        driver.listen(lambda name=name: rings.update({name: rings[name] + 1}))
    await until(lambda: rings == {"here": 1, "there": 1})  # each rings itself when it begins to listen
    for _ in range(1000):
        here.notify()
    await until(lambda: rings["there"] > 1)
    assert rings["there"] <= 3
    assert rings["here"] == 1
    await here.close()
    await there.close()


@pytest.fixture
async def instances(database_url: str) -> AsyncIterator[Driver]:
    driver = await open_driver(database_url)
    await driver.run(one(Sql(INSTANCES.format(**TYPES[driver.dialect.name]))))
    yield driver
    await driver.close()


def alive(driver: Driver) -> Callable[[], Script[Any]]:
    return one(Sql(f"SELECT id, sessionlock, {driver.dialect.lock_held('id')} FROM gateway_instances", (), "rows"))


async def test_presence_comes_beats_and_goes(instances: Driver) -> None:
    presence = instances.presence(incarnation="plant/1", name="plant", version="1", lease=0.6)
    assert presence.alive_since is None
    await presence.start()
    server = instances.dialect.name != "sqlite"
    try:
        assert presence.alive_since is not None
        ((who, lock, held),) = await instances.read(alive(instances))
        assert (who, bool(lock), bool(held)) == ("plant/1", True, server)
        if server:  # pruned by mistake, it comes back
            await instances.run(one(Sql("DELETE FROM gateway_instances")))
            await until(lambda: instances.read(alive(instances)))
    finally:
        await presence.stop()
    assert await instances.read(alive(instances)) == []
    assert presence.alive_since is None


async def test_a_presence_tells_news_at_once_and_the_load_with_its_heartbeat(instances: Driver) -> None:
    told = Sql("SELECT running, workers, connectors, handlers FROM gateway_instances", (), "rows")

    async def tells(expected: list[object]) -> None:
        async def is_told() -> bool:
            rows = await instances.read(one(told))
            found = [json.loads(each) if isinstance(each, str | bytes) else each for each in rows[0]]
            return found == expected

        await until(is_told)

    lists: Any = {"connectors": {"web": {"state": "connected"}}, "handlers": ("a", "b é")}
    slow = instances.presence(incarnation="plant/1", name="plant", version="1", lease=3000)
    await slow.start()
    slow.tell(Report(running=1, workers=2, **lists))
    await tells([1, 2, lists["connectors"], ["a", "b é"]])
    await slow.stop()
    quick = instances.presence(incarnation="plant/2", name="plant", version="1", lease=0.3)
    await quick.start()
    quick.tell(Report(running=1, workers=2, **lists))
    await tells([1, 2, lists["connectors"], ["a", "b é"]])
    quick.tell(Report(running=2, workers=2, **lists))
    await tells([2, 2, lists["connectors"], ["a", "b é"]])
    if instances.dialect.name != "sqlite":  # pruned by mistake, it tells all anew
        await instances.run(one(Sql("DELETE FROM gateway_instances")))
        await until(lambda: instances.read(alive(instances)))
        await tells([2, 2, lists["connectors"], ["a", "b é"]])
    await quick.stop()


async def test_a_blocked_loop_does_not_stop_the_heartbeat(server_database_url: str) -> None:
    driver = await open_driver(server_database_url)
    await driver.run(one(Sql(INSTANCES.format(**TYPES[driver.dialect.name]))))
    presence = driver.presence(incarnation="plant/1", name="plant", version="1", lease=0.6)
    await presence.start()
    presence.tell(Report(running=1, workers=2, connectors={}, handlers=()))
    time.sleep(2)  # noqa: ASYNC251 - blocks the loop on purpose
    columns = ", ".join(driver.dialect.age(name) for name in ("heartbeatat", "reportedat"))
    ((age, reported),) = await driver.read(one(Sql(f"SELECT {columns} FROM gateway_instances", (), "rows")))
    assert float(age) < 1
    assert float(reported) > 1.5, "the report of a stuck loop looks fresh"
    await presence.stop()
    await driver.close()


async def test_a_lost_presence_frees_its_lock_and_returns(server_database_url: str) -> None:
    direct = await open_driver(server_database_url)
    await direct.run(one(Sql(INSTANCES.format(**TYPES[direct.dialect.name]))))
    async with FaultProxy(*address(server_database_url)) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=2.0)
        presence = driver.presence(incarnation="plant/1", name="plant", version="1", lease=0.6)
        await presence.start()
        since = presence.alive_since
        proxy.refusing = True
        proxy.reset()

        async def freed() -> bool:
            return not (await direct.read(alive(direct)))[0][2]

        await until(freed)
        await until(lambda: presence.alive_since is None)
        proxy.heal()
        await until(lambda: presence.alive_since not in (None, since))
        assert (await direct.read(alive(direct)))[0][2]
        await presence.stop()
        await driver.close()
    await direct.close()


async def test_a_second_gateway_on_one_file_is_refused(sqlite_url: str) -> None:
    first, second = [await open_driver(sqlite_url) for _ in range(2)]
    await first.run(one(Sql(INSTANCES.format(**TYPES["sqlite"]))))
    presence = first.presence(incarnation="a", name="a", version="1", lease=10)
    await presence.start()
    rival = second.presence(incarnation="b", name="b", version="1", lease=10)
    with pytest.raises(StoreError, match="another gateway process"):
        await rival.start()
    assert (
        await second.run(one(insert(second.dialect, Identity.of("c", "c", "1"), lock=False))) == 1
    )  # commands may write
    await presence.stop()
    await rival.start()
    await rival.stop()
    await first.close()
    await second.close()


async def test_a_file_that_was_replaced_is_not_written_to(sqlite_url: str) -> None:
    driver = await open_driver(sqlite_url)
    await driver.run(one(Sql(CREATE)))
    path = Path(urlsplit(sqlite_url).path[1:])
    other = path.with_suffix(".new")
    sqlite3.connect(other).close()
    other.replace(path)
    with pytest.raises(StoreUnavailable, match="replaced"):
        await driver.run(one(add(driver, 1)))
    with pytest.raises(StoreUnavailable, match="replaced"):
        await driver.ping()
    await driver.close()


async def test_a_gateway_ends_though_its_file_was_replaced(sqlite_url: str) -> None:
    driver = await open_driver(sqlite_url)
    await driver.run(one(Sql(INSTANCES.format(**TYPES["sqlite"]))))
    presence = driver.presence(incarnation="a", name="a", version="1", lease=10)
    await presence.start()
    path = Path(urlsplit(sqlite_url).path[1:])
    other = path.with_suffix(".new")
    sqlite3.connect(other).close()
    other.replace(path)
    await presence.stop()
    assert presence.alive_since is None
    await driver.close()


async def test_a_damaged_file_is_refused(sqlite_url: str) -> None:
    Path(urlsplit(sqlite_url).path[1:]).write_bytes(b"this is no database" * 1000)  # noqa: ASYNC240 - a test may wait
    with pytest.raises(StoreError, match="database"):
        await open_driver(sqlite_url)


async def test_durable_settings_need_no_warning(driver: Driver) -> None:
    warnings = await driver.durability()
    if driver.dialect.name != "mysql":
        assert warnings == []
    await driver.ping()


async def test_weak_settings_are_told(postgresql_url: str) -> None:
    name = urlsplit(postgresql_url).path[1:]
    driver = await open_driver(postgresql_url)
    await driver.run(one(Sql(f"ALTER DATABASE {name} SET synchronous_commit = off")), single=True)
    await driver.close()
    driver = await open_driver(postgresql_url)
    assert any("synchronous_commit" in warning for warning in await driver.durability())
    await driver.close()


async def test_a_table_without_transactions_is_told(mariadb_url: str) -> None:
    driver = await open_driver(mariadb_url)
    await driver.run(one(Sql("CREATE TABLE weak (a INTEGER) ENGINE = MyISAM")))
    assert any("weak is not InnoDB" in warning for warning in await driver.durability())
    await driver.close()


async def test_an_unreachable_server_is_unavailable(unused_tcp_port: int) -> None:
    for scheme in ("postgresql", "mysql"):
        with pytest.raises(StoreUnavailable):
            await open_driver(f"{scheme}://nobody@127.0.0.1:{unused_tcp_port}/none", statement_timeout=2.0)


async def test_sslmode_is_what_libpq_makes_of_it(postgresql_url: str) -> None:
    assert tls(make_url(postgresql_url)) is None
    assert tls(make_url(postgresql_url + "?sslmode=require")) == "require"
    full, weak = (tls(make_url(f"{postgresql_url}?sslmode=verify-{mode}")) for mode in ("full", "ca"))
    assert isinstance(full, ssl.SSLContext)
    assert isinstance(weak, ssl.SSLContext)
    assert (full.verify_mode, full.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (weak.verify_mode, weak.check_hostname) == (ssl.CERT_REQUIRED, False)
    driver = await open_driver(postgresql_url + "?sslmode=disable")
    driver.listen(lambda: None)
    await driver.close()
    with pytest.raises(StoreUnavailable):
        await open_driver(postgresql_url + "?sslmode=verify-full", statement_timeout=2.0)
