"""What a handler can and cannot do in its job's transaction, the same on each database."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gateway.crashpoint import armed, once
from gateway.errors import (
    CommitUnknown,
    DataRefused,
    StoreError,
    StoreUnavailable,
    TransactionPoisoned,
    TransactionRefused,
)
from gateway.store.driver import Driver
from gateway.store.guard import refusal
from gateway.store.opening import open_driver
from gateway.store.script import Deferred, Script, Sql
from gateway.store.transaction import JobTransaction
from tests.faults import FaultProxy


class Base(DeclarativeBase):
    """The handlers' own tables."""


class Effect(Base):
    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]


CREATE = "CREATE TABLE effects (id INTEGER PRIMARY KEY, note VARCHAR(20))"
OUTCOME = text("INSERT INTO effects (id, note) VALUES (1000, 'outcome')")
FIRST = text("INSERT INTO effects (id, note) VALUES (1, 'a')")
SECOND = text("INSERT INTO effects (id, note) VALUES (2, 'b')")


def script(sql: str, *args: Any) -> Callable[[], Script[Any]]:
    def make() -> Script[Any]:
        result = yield Sql(sql, args, "rows" if sql.startswith("SELECT") else "count")
        return [tuple(row) for row in result.rows] if sql.startswith("SELECT") else result.count

    return make


def outcome() -> Script[str]:
    """The gateway's own last words in a handler's transaction."""
    yield Sql("INSERT INTO effects (id, note) VALUES (1000, 'outcome')")
    return "finished"


@pytest.fixture
async def driver(database_url: str) -> AsyncIterator[Driver]:
    driver = await open_driver(database_url, statement_timeout=5.0, pool_size=3)
    try:
        await driver.run(script(CREATE))
        yield driver
        assert driver.engine.pool.checkedout() == 0
    finally:
        await driver.close()


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def numbers(driver: Driver) -> list[int]:
    return [row[0] for row in await driver.read(script("SELECT id FROM effects ORDER BY id"))]


async def refused(driver: Driver, transaction: JobTransaction, error: type[StoreError]) -> None:
    """Whatever the handler swallowed: nothing of it may be committed."""
    with pytest.raises(error):
        await transaction.finish(outcome, resolve=None)
    assert await numbers(driver) == []
    assert driver.engine.pool.checkedout() == 0


async def test_effect_and_outcome_commit_together(driver: Driver) -> None:
    transaction = driver.transaction()
    assert not transaction.opened
    transaction.session.add(Effect(id=1, note="orm"))
    await (await transaction.connection()).execute(SECOND)
    assert transaction.opened
    assert await transaction.finish(outcome, resolve=None) == "finished"
    assert await numbers(driver) == [1, 2, 1000]


async def test_an_unused_transaction_opens_nothing(driver: Driver) -> None:
    transaction = driver.transaction()
    _ = transaction.session
    assert not transaction.opened
    await transaction.rollback()
    await transaction.rollback()
    with pytest.raises(TransactionRefused):
        await transaction.session.execute(FIRST)


async def test_deferred_writes_may_join_it(driver: Driver) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)

    def make() -> Script[None]:
        yield Deferred(text("INSERT INTO effects (id) VALUES (:id)"), [{"id": 2}, {"id": 3}])

    await transaction.finish(make, resolve=None)
    assert await numbers(driver) == [1, 2, 3]


async def test_a_lost_lease_rolls_the_effect_back(driver: Driver) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)

    def make() -> Script[None]:
        yield Sql("INSERT INTO effects (id) VALUES (5)")
        raise LookupError

    with pytest.raises(LookupError):
        await transaction.finish(make, resolve=None)
    assert await numbers(driver) == []


async def test_a_swallowed_error_refuses_the_commit(driver: Driver) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)
    with pytest.raises(IntegrityError):
        await transaction.session.execute(FIRST)
    await refused(driver, transaction, TransactionPoisoned)


async def test_a_swallowed_error_on_the_connection_refuses_the_commit(driver: Driver) -> None:
    transaction = driver.transaction()
    connection = await transaction.connection()
    await connection.execute(FIRST)
    with pytest.raises(DBAPIError):
        await connection.execute(text("SELECT nothing FROM nowhere"))
    await refused(driver, transaction, TransactionPoisoned)


async def test_a_failed_flush_shows_its_own_error_and_refuses_the_commit(driver: Driver) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)
    transaction.session.add(Effect(id=1))
    with pytest.raises(IntegrityError):
        await transaction.session.flush()
    await refused(driver, transaction, StoreError)


async def test_what_the_last_flush_refuses_is_refused_data(driver: Driver) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)
    transaction.session.add(Effect(id=1))
    await refused(driver, transaction, DataRefused)


async def test_a_savepoint_survives_an_error(driver: Driver) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)
    with pytest.raises(IntegrityError):  # noqa: PT012 - the block is what is tested
        async with transaction.savepoint():
            await transaction.session.execute(SECOND)
            await transaction.session.execute(SECOND)
    async with transaction.savepoint():
        await transaction.session.execute(text("INSERT INTO effects (id) VALUES (3)"))
    await transaction.finish(outcome, resolve=None)
    assert await numbers(driver) == [1, 3, 1000]


async def test_a_savepoint_on_the_connection_survives_an_error(driver: Driver) -> None:
    transaction = driver.transaction()
    connection = await transaction.connection()
    await connection.execute(FIRST)
    with pytest.raises(IntegrityError):  # noqa: PT012 - the block is what is tested
        async with transaction.savepoint():
            async with transaction.savepoint():
                await connection.execute(SECOND)
            await connection.execute(FIRST)
    await transaction.finish(outcome, resolve=None)
    assert await numbers(driver) == [1, 1000]


async def test_an_error_swallowed_inside_a_savepoint_refuses_the_commit(driver: Driver) -> None:
    transaction = driver.transaction()
    connection = await transaction.connection()
    await connection.execute(FIRST)
    with suppress(DBAPIError):  # PostgreSQL cannot release it
        async with transaction.savepoint():
            with suppress(IntegrityError):
                await connection.execute(FIRST)
    assert await numbers(driver) == []
    if driver.dialect.name != "postgresql":
        await refused(driver, transaction, TransactionPoisoned)
    await transaction.rollback()


ENDS: dict[str, Callable[[JobTransaction], Any]] = {
    "session.commit": lambda t: t.session.commit(),
    "session.rollback": lambda t: t.session.rollback(),
    "session.close": lambda t: t.session.close(),
    "session.begin": lambda t: t.session.begin().__aenter__(),
    "session.invalidate": lambda t: t.session.invalidate(),
    "session.reset": lambda t: t.session.reset(),
    "sync_session.commit": lambda t: t.session.run_sync(lambda s: s.commit()),
    "sync_session.begin": lambda t: t.session.run_sync(lambda s: s.begin()),
    "session transaction": lambda t: t.session.run_sync(lambda s: s.connection().get_transaction().commit()),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_the_session_cannot_end_it(driver: Driver, end: Callable[[JobTransaction], Any]) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)
    with pytest.raises(TransactionRefused):
        await end(transaction)
    await refused(driver, transaction, TransactionRefused)


@pytest.mark.parametrize("name", ["commit", "rollback", "close", "invalidate"])
async def test_the_connection_cannot_end_it(driver: Driver, name: str) -> None:
    transaction = driver.transaction()
    connection = await transaction.connection()
    await connection.execute(FIRST)
    with pytest.raises(TransactionRefused):
        await getattr(connection, name)()
    await refused(driver, transaction, TransactionRefused)


async def test_a_rollback_below_the_guard_ends_it_without_effect(driver: Driver) -> None:
    transaction = driver.transaction()
    connection = await transaction.connection()
    await connection.execute(FIRST)
    await connection.run_sync(lambda sync: sync.rollback())
    with pytest.raises(TransactionRefused):
        await connection.execute(SECOND)
    await refused(driver, transaction, TransactionRefused)


STATEMENTS = [
    "COMMIT",
    "  -- a word\n commit",
    "/* so */ROLLBACK",
    "BEGIN",
    "SAVEPOINT mine",
    "RELEASE SAVEPOINT mine",
    "CREATE TABLE other (a INTEGER)",
    "DROP TABLE effects",
    "ALTER TABLE effects ADD COLUMN b INTEGER",
    "TRUNCATE effects",
]


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_raw_text_that_would_leave_it_never_reaches_the_server(driver: Driver, statement: str) -> None:
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)
    with pytest.raises(TransactionRefused):
        await transaction.session.execute(text(statement))
    await refused(driver, transaction, TransactionRefused)


@pytest.mark.parametrize(
    "statement",
    ["SET autocommit = 1", "set session x = 1", "SET search_path TO x", "/*!50000 COMMIT*/", "LOCK TABLES a WRITE",
     "PREPARE TRANSACTION 'x'", "; COMMIT", "PRAGMA journal_mode = DELETE", "ATTACH 'x' AS y", "START TRANSACTION",
     "XA END 'x'", "# a word\nCOMMIT", "RESET ALL", "SET @@session.autocommit = 1"],
)  # fmt: skip
def test_these_would_leave_it(statement: str) -> None:
    assert refusal(statement) is not None


@pytest.mark.parametrize(
    "statement",
    ["SELECT 'COMMIT'", "INSERT INTO committed VALUES (1)", "WITH a AS (SELECT 1) SELECT * FROM a", "SET LOCAL x = 1",
     "SET CONSTRAINTS ALL DEFERRED", "SET @x = 1", "(SELECT 1) UNION (SELECT 2)", "LOCK TABLE a IN SHARE MODE",
     "PRAGMA table_info(effects)", "UPDATE t SET a = 1", "/* COMMIT */ DELETE FROM t", "CALL me()", "", "  "],
)  # fmt: skip
def test_these_may_run(statement: str) -> None:
    assert refusal(statement) is None


async def test_a_commit_on_the_drivers_own_connection_is_noticed(driver: Driver) -> None:
    transaction = driver.transaction()
    connection = await transaction.connection()
    raw: Any = (await connection.get_raw_connection()).driver_connection
    if driver.dialect.name == "postgresql":
        await raw.execute("COMMIT")
    else:
        await raw.commit()
    await connection.execute(FIRST)
    with pytest.raises(TransactionRefused, match="left"):
        await transaction.finish(outcome, resolve=None)
    assert 1000 not in await numbers(driver)


async def test_a_deadlock_is_never_forgiven(mariadb_url: str) -> None:
    driver = await open_driver(mariadb_url)
    await driver.run(script(CREATE))
    for n in (1, 2):
        await driver.run(script("INSERT INTO effects (id) VALUES (%s)", n))
    swallowed = 0

    async def handler(*order: int) -> JobTransaction:
        nonlocal swallowed
        transaction = driver.transaction()
        await transaction.session.execute(text(f"INSERT INTO effects (id) VALUES ({order[0] + 10})"))
        for n in order:
            try:
                async with transaction.savepoint():
                    await transaction.session.execute(text(f"UPDATE effects SET note = 'x' WHERE id = {n}"))
            except (DBAPIError, TransactionPoisoned):
                swallowed += 1
                with pytest.raises(TransactionPoisoned):
                    await transaction.session.execute(text("INSERT INTO effects (id) VALUES (50)"))
            await asyncio.sleep(0.05)
        try:
            await transaction.finish(script("UPDATE effects SET note = 'y' WHERE id = 3"), resolve=None)
        except TransactionPoisoned:
            swallowed += 100
        return transaction

    await asyncio.gather(handler(1, 2), handler(2, 1))
    assert swallowed > 100
    assert len([n for n in await numbers(driver) if n > 10]) == 1
    await driver.close()


async def test_a_plain_session_works_in_the_same_transaction(driver: Driver) -> None:
    transaction = driver.transaction()

    def plain(session: Any) -> int:
        session.add(Effect(id=1))
        session.flush()
        with session.begin_nested():
            session.execute(SECOND)
        return int(session.execute(text("SELECT count(*) FROM effects")).scalar_one())

    assert await transaction.session.run_sync(plain) == 2
    await transaction.finish(outcome, resolve=None)
    assert await numbers(driver) == [1, 2, 1000]


async def test_a_handler_cancelled_anywhere_leaves_the_pool_whole(driver: Driver) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)

    async def handler(transaction: JobTransaction, number: int) -> None:
        try:
            await transaction.session.execute(text(f"INSERT INTO effects (id) VALUES ({number})"))
            async with transaction.savepoint():
                await transaction.session.execute(text(f"INSERT INTO effects (id) VALUES ({number + 1000})"))
            await transaction.finish(script(f"INSERT INTO effects (id) VALUES ({number + 2000})"), resolve=None)
        finally:
            await transaction.rollback()

    async def cancelled(number: int) -> None:
        task = asyncio.ensure_future(handler(driver.transaction(), number))
        await asyncio.sleep(chance.uniform(0, 0.012))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for start in range(1, 100, 3):
        await asyncio.gather(*(cancelled(n) for n in range(start, start + 3)))
    await until(lambda: not driver.engine.pool.checkedout())
    found = await numbers(driver)
    assert [n for n in found if n < 1000] == [n - 2000 for n in found if n > 2000], seed
    await handler(driver.transaction(), 500)


@pytest.mark.parametrize("point", ["own.before_commit", "own.after_commit"])
async def test_a_finish_that_is_cancelled_itself_gives_its_connection_back(driver: Driver, point: str) -> None:
    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    transaction = driver.transaction()
    await (await transaction.connection()).execute(FIRST)
    with armed(once([point], cancel)), suppress(asyncio.CancelledError):
        await transaction.finish(outcome, resolve=None)
    async with asyncio.timeout(2):
        assert driver.engine.pool.checkedout() == 0
        await driver.run(script("UPDATE effects SET note = note"))
    assert await numbers(driver) in ([], [1, 1000])


async def test_a_query_that_still_runs_is_dropped_by_rollback(server_database_url: str) -> None:
    driver = await open_driver(server_database_url, statement_timeout=2.0)
    await driver.run(script(CREATE))
    transaction = driver.transaction()
    await transaction.session.execute(FIRST)
    sleep = "SELECT pg_sleep(30)" if driver.dialect.name == "postgresql" else "SELECT SLEEP(30)"
    running = asyncio.ensure_future(transaction.session.execute(text(sleep)))
    await until(lambda: transaction.guard.running)
    async with asyncio.timeout(5):
        await transaction.rollback()
    with pytest.raises(Exception):  # noqa: B017 - whatever the driver says of a connection that is gone
        await running
    assert driver.engine.pool.checkedout() == 0
    assert await numbers(driver) == []
    await driver.close()


async def test_two_handlers_on_sqlite_wait_for_each_other(sqlite_url: str) -> None:
    driver = await open_driver(sqlite_url)
    await driver.run(script(CREATE))

    async def handler(number: int) -> None:
        transaction = driver.transaction()
        await transaction.session.execute(text(f"INSERT INTO effects (id) VALUES ({number})"))
        await asyncio.sleep(0.01)
        await transaction.finish(script("UPDATE effects SET note = 'x' WHERE id = 1"), resolve=None)

    others = [driver.run(script("INSERT INTO effects (id) VALUES (?)", n)) for n in range(100, 120)]
    await asyncio.gather(*(handler(n) for n in range(20)), *others)
    assert await numbers(driver) == [*range(20), *range(100, 120)]
    await driver.close()


def through(url: str, proxy: FaultProxy) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{proxy.port}"))


def upstream(url: str) -> FaultProxy:
    parts = urlsplit(url)
    return FaultProxy(parts.hostname or "127.0.0.1", parts.port or 3306)


@pytest.mark.parametrize("lost", ["up", "down"])
async def test_a_lost_commit_is_read_back(server_database_url: str, lost: Any) -> None:
    direct = await open_driver(server_database_url)
    await direct.run(script(CREATE))
    async with upstream(server_database_url) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=1.0)
        transaction = driver.transaction()
        await transaction.session.execute(FIRST)

        def make() -> Script[str]:
            yield Sql("UPDATE effects SET note = 'z' WHERE id = 1")
            proxy.stall([lost])
            return "value"

        def resolve() -> Script[bool]:
            found = yield Sql("SELECT id FROM effects WHERE id = 1", (), "rows")
            return bool(found.rows)

        asyncio.get_running_loop().call_later(1.5, lambda: (proxy.heal(), proxy.reset()))
        if lost == "down":
            assert await transaction.finish(make, resolve=resolve) == "value"
        else:
            with pytest.raises(StoreUnavailable, match="not committed"):
                await transaction.finish(make, resolve=resolve)
        assert await numbers(direct) == ([1] if lost == "down" else [])
        assert driver.engine.pool.checkedout() == 0
        await driver.close()
    await direct.close()


async def test_without_an_answer_a_lost_commit_stays_unknown(server_database_url: str) -> None:
    async with upstream(server_database_url) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=1.0)
        await driver.run(script(CREATE))
        transaction = driver.transaction()
        await transaction.session.execute(FIRST)

        def make() -> Script[None]:
            yield Sql("UPDATE effects SET note = 'z' WHERE id = 1")
            proxy.stall(["down"])

        with pytest.raises(CommitUnknown):
            await transaction.finish(make, resolve=None)
        assert driver.engine.pool.checkedout() == 0
        proxy.heal()
        proxy.reset()
        await driver.close()


async def test_connections_that_died_in_the_pool_are_replaced(server_database_url: str) -> None:
    async with upstream(server_database_url) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=5.0, pool_size=3)
        await driver.run(script(CREATE))
        transactions = [driver.transaction() for _ in range(3)]
        for n, transaction in enumerate(transactions):
            await transaction.session.execute(text(f"INSERT INTO effects (id) VALUES ({n})"))
        for transaction in transactions:
            await transaction.finish(script("UPDATE effects SET note = 'x' WHERE id = 99"), resolve=None)
        proxy.reset()
        transaction = driver.transaction()
        await transaction.session.execute(text("INSERT INTO effects (id) VALUES (50)"))
        await transaction.finish(outcome, resolve=None)
        assert await numbers(driver) == [0, 1, 2, 50, 1000]
        await driver.close()


async def test_an_outage_under_the_handler_is_told_from_its_own_failure(server_database_url: str) -> None:
    async with upstream(server_database_url) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=1.0)
        await driver.run(script(CREATE))
        transaction = driver.transaction()
        await transaction.session.execute(FIRST)
        assert transaction.outage is None
        proxy.reset()
        with pytest.raises(Exception):  # noqa: B017 - the driver's own error, as SQLAlchemy wraps it
            await transaction.session.execute(SECOND)
        assert isinstance(transaction.outage, StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await transaction.finish(outcome, resolve=None)
        assert driver.engine.pool.checkedout() == 0
        proxy.refusing = True
        proxy.reset()
        transaction = driver.transaction()
        with pytest.raises(StoreUnavailable):
            await transaction.connection()
        assert transaction.outage is not None
        await transaction.rollback()
        await driver.close()


async def test_a_connection_lost_after_the_handler_is_no_fault_of_the_handler(server_database_url: str) -> None:
    async with upstream(server_database_url) as proxy:
        driver = await open_driver(through(server_database_url, proxy), statement_timeout=1.0)
        await driver.run(script(CREATE))
        transaction = driver.transaction()
        connection = await transaction.connection()
        await transaction.session.execute(FIRST)
        raw: Any = (await connection.get_raw_connection()).driver_connection
        proxy.reset()
        if driver.dialect.name == "postgresql":
            await until(raw.is_closed)  # asyncpg notices a lost connection by itself, asyncmy at its next use
        with pytest.raises(StoreUnavailable):
            await transaction.finish(outcome, resolve=None)
        await driver.close()
