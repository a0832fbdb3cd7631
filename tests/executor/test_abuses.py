"""The table of abuses: what a handler may do wrong, on every database. It hurts its own job and nothing else."""

import asyncio
import sys
import threading
import time

from sqlalchemy import text

from gateway.errors import Cancel, Discard, Retry
from gateway.handler import Handler
from gateway.handler import handler as limited
from gateway.job import JobStatus, NewJob
from tests.executor.bench import bench, effect

FAILED, CANCELLED, COMPLETED, RETRYING = JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.COMPLETED, JobStatus.RETRYING


async def write(context, note=None):
    await context.session.execute(effect, {"job": context.job.id, "note": note or context.job.id})


def raising(make):
    async def handler(context):
        await write(context)
        raise make()

    return handler


def returning(make):
    async def handler(context):
        await write(context)
        return make()

    return handler


def plainly(make):
    def handler(context):
        context.session.execute(effect, {"job": context.job.id, "note": context.job.id})
        raise make()

    return handler


async def swallows_an_error(context):
    await write(context)
    try:
        await context.session.execute(text("SELECT * FROM no_such_table"))
    except Exception:
        await write(context, "after the error")


async def swallows_a_constraint(context):
    await write(context, "same")
    try:
        await write(context, "same")
    except Exception:
        return


async def commits(context):
    await write(context)
    await context.session.commit()


async def commits_and_swallows(context):
    await write(context)
    try:
        await context.session.commit()
    except Exception:
        return


async def rolls_back(context):
    await write(context)
    await context.session.rollback()


async def commits_the_connection(context):
    connection = await context.connection()
    await connection.execute(effect, {"job": context.job.id, "note": context.job.id})
    await connection.commit()


async def commits_by_text(context):
    await write(context)
    await context.session.execute(text("COMMIT"))


async def changes_the_schema(context):
    await write(context)
    await context.session.execute(text("CREATE TABLE surprise (a INTEGER)"))


async def defers_nonsense(context):
    context.defer(effect, {"job": context.job.id, "note": context.job.id})
    context.defer(text("INSERT INTO no_such_table VALUES (1)"))


async def defers_a_duplicate(context):
    context.defer(effect, {"job": context.job.id, "note": "twice"})
    context.defer(effect, {"job": context.job.id, "note": "twice"})


async def exits_in_a_thread(context):
    await write(context)
    await asyncio.to_thread(sys.exit, 3)


async def exits_in_a_task(context):
    await write(context)
    await asyncio.gather(asyncio.create_task(_exit()), asyncio.sleep(5))


async def exits_within_wait_for(context):
    await write(context)
    await asyncio.wait_for(_exit(), 5)


async def exits_in_a_group(context):
    await write(context)
    async with asyncio.TaskGroup() as group:
        group.create_task(_exit())


async def _exit():
    sys.exit(3)


@limited(timeout=0.3)
async def swallows_cancellation(context):
    await write(context)
    while not over.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


@limited(timeout=0.3)
def never_comes_back(context):
    context.session.execute(effect, {"job": context.job.id, "note": context.job.id})
    over.wait(20)


@limited(timeout=0.3)
async def never_ends(context):
    await write(context)
    await asyncio.Event().wait()


async def cancels_itself(context):
    await write(context)
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def sleeps_blocking(context):
    await write(context)
    time.sleep(0.3)  # noqa: ASYNC251 - the abuse itself
    raise ValueError("awake again")


def returns_a_coroutine(context):
    return write(context)


def recurses(context):
    return recurses(context)


async def publishes_nonsense(context):
    await write(context)
    await context.publish("x", topic="t", body=float("nan"))


class Broken(Exception):  # noqa: N818
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Huge(Exception):  # noqa: N818
    def __str__(self):
        return "x" * 50_000_000


def circular():
    value = []
    value.append(value)
    return value


def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


class Unprintable:
    def __repr__(self):
        raise RuntimeError


over = threading.Event()

TABLE = [
    (swallows_an_error, FAILED, ""),
    (swallows_a_constraint, FAILED, "only savepoint() can survive"),
    (commits, FAILED, "the gateway commits"),
    (commits_and_swallows, FAILED, "the gateway commits"),
    (rolls_back, FAILED, "raise an error to roll"),
    (commits_the_connection, FAILED, "the gateway commits"),
    (commits_by_text, FAILED, "COMMIT"),
    (changes_the_schema, FAILED, "CREATE"),
    (defers_nonsense, FAILED, "no_such_table"),
    (defers_a_duplicate, FAILED, ""),
    (exits_in_a_thread, FAILED, "SystemExit"),
    (exits_in_a_task, FAILED, "SystemExit"),
    (exits_within_wait_for, FAILED, "SystemExit"),
    (exits_in_a_group, FAILED, "ExceptionGroup"),
    (swallows_cancellation, FAILED, "did not finish within 0.3 s"),
    (never_comes_back, FAILED, "did not finish within 0.3 s"),
    (never_ends, FAILED, "did not finish within 0.3 s"),
    (cancels_itself, FAILED, "CancelledError"),
    (sleeps_blocking, FAILED, "awake again"),
    (returns_a_coroutine, FAILED, "async def"),
    (recurses, FAILED, "RecursionError"),
    (publishes_nonsense, FAILED, "text nor JSON"),
    (returning(lambda: float("nan")), FAILED, "not JSON"),
    (returning(lambda: {"a": float("inf")}), FAILED, "not JSON"),
    (returning(object), FAILED, "not JSON"),
    (returning(Unprintable), FAILED, "not JSON"),
    (returning(circular), FAILED, "not JSON"),
    (returning(deep), FAILED, "not JSON"),
    (returning(lambda: "\ud800"), FAILED, "not JSON"),
    (returning(lambda: "x" * 300_000), FAILED, "at most"),
    (returning(lambda: {"nul": "\x00", "text": "ä\U0001f600"}), COMPLETED, None),
    (raising(Broken), FAILED, "Broken"),
    (raising(Huge), FAILED, "Huge: xxx"),
    (raising(lambda: ValueError("nul \x00 and half a pair \ud800")), FAILED, "nul"),
    (raising(lambda: SystemExit(3)), FAILED, "SystemExit: 3"),
    (raising(KeyboardInterrupt), FAILED, "KeyboardInterrupt"),
    (raising(GeneratorExit), FAILED, "GeneratorExit"),
    (raising(lambda: StopIteration(1)), FAILED, "StopIteration"),
    (raising(StopAsyncIteration), FAILED, "StopAsyncIteration"),
    (raising(MemoryError), FAILED, "MemoryError"),
    (raising(RecursionError), FAILED, "RecursionError"),
    (raising(asyncio.CancelledError), FAILED, "CancelledError"),
    (raising(lambda: BaseException("bare")), FAILED, "BaseException: bare"),
    (raising(lambda: BaseExceptionGroup("many", [SystemExit(1), KeyboardInterrupt()])), FAILED, "many"),
    (raising(lambda: Cancel("not wanted")), CANCELLED, "not wanted"),
    (raising(lambda: Discard("cannot be")), FAILED, "cannot be"),
    (plainly(lambda: SystemExit(3)), FAILED, "SystemExit: 3"),
    (plainly(KeyboardInterrupt), FAILED, "KeyboardInterrupt"),
    (plainly(GeneratorExit), FAILED, "GeneratorExit"),
    (plainly(lambda: StopIteration(1)), FAILED, "StopIteration"),
    (plainly(asyncio.CancelledError), FAILED, "CancelledError"),
    (plainly(lambda: BaseExceptionGroup("many", [SystemExit(1)])), FAILED, "many"),
    (plainly(lambda: Retry("once more", delay=0)), FAILED, "once more"),
]


def name(number):
    return f"{number}-{TABLE[number][0].__name__}"


async def test_an_abuse_hurts_only_its_own_job(database_url):
    """Each runs beside an innocent neighbour; nothing of a failed one stays, and the loop goes on."""
    over.clear()
    async with bench(database_url) as b:

        async def neighbour(context):
            await asyncio.sleep(0.05)
            context.defer(effect, {"job": context.job.id, "note": context.job.id})

        b.handlers["neighbour"] = Handler.of("neighbour", neighbour)
        for number, (function, _, _) in enumerate(TABLE):
            b.handlers[name(number)] = Handler.of(name(number), function)
        executor = b.executor(workers=8)
        wrong, completed = [], set()
        for number, (_, status, error) in enumerate(TABLE):
            abuse = NewJob(handler=name(number), payload=b"{}", max_retries=0)
            innocent = NewJob(handler="neighbour", max_retries=0)
            await b.store.enqueue([abuse, innocent])
            async with asyncio.timeout(20):
                while len(b.told("job.finished")) < 2 * number + 2:
                    await executor.once()
            job, other = await b.store.get(abuse.id), await b.store.get(innocent.id)
            history = await b.store.history(abuse.id)
            if job.status is not status or (error is not None and error not in (job.last_error or "")):
                wrong.append((name(number), job.status.name, job.last_error))
            if other.status is not COMPLETED or [row.status for row in history] != [status]:
                wrong.append((name(number), "beside it", other.last_error, history))
            completed |= {innocent.id} | ({abuse.id} if status is COMPLETED else set())
        over.set()
        assert wrong == []
        assert {job for job, _ in await b.effects()} == completed
        assert executor.held == frozenset()


async def test_an_attempt_that_asks_for_a_retry_leaves_nothing_and_runs_again(sqlite_url):
    async with bench(sqlite_url) as b:
        job = await b.run(raising(lambda: Retry("later", delay=3600)), max_retries=1)
        assert (job.status, job.retry_count, job.last_error) == (RETRYING, 1, "later")
        assert await b.effects() == []


async def test_an_error_inside_a_savepoint_undoes_only_the_block(database_url):
    async with bench(database_url) as b:

        async def handler(context):
            await write(context, "kept")
            try:
                async with context.savepoint():
                    await write(context, "undone")
                    await context.publish("x", topic="t", body="undone")
                    await write(context, "kept")
            except Exception as error:
                await context.enqueue("child", {"error": type(error).__name__})

        job = await b.run(handler)
        assert job.status is COMPLETED, job.last_error
        assert await b.effects() == [(job.id, "kept")]
        assert [child.handler for child in await b.children(job.id)] == ["child"]
