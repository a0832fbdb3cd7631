"""Finishing attempts: outcome, history, outgoing jobs and deferred writes in one transaction, fenced by the claim.

Every write of a claim is fenced by id and claim token; only the primary key serves that, so no index of unfinished
jobs, and none of its dead entries, is ever read. A fence that does not hold raises `LeaseLost`: all is rolled back.
"""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

from gateway.crashpoint import reach
from gateway.errors import LeaseLost
from gateway.job import JobStatus, NewJob
from gateway.outcome import Cancel, Completed, Discard, Retry
from gateway.store import locks
from gateway.store.deferred import merge
from gateway.store.dialect import Dialect
from gateway.store.insert import insert_jobs
from gateway.store.script import Script, Sql
from gateway.store.spread import Fields, spread
from gateway.store.statement import compose
from gateway.store.values import Finish
from gateway.store.wire import SILENCE

FIELDS: Fields = (
    ("id", "text"),
    ("token", "text"),
    ("history", "text"),
    ("status", "integer"),
    ("failed", "integer"),
    ("delay", "double precision"),
    ("result", "text"),
    ("error", "text"),
    ("duration", "bigint"),
    ("verdict", "text"),
    ("output", "text"),
    ("executedby", "text"),
)


class _Row(NamedTuple):
    id: str
    token: str
    history: str
    status: int
    failed: int
    delay: float
    result: str | None
    error: str | None
    duration: int
    verdict: str
    output: str | None
    executedby: str | None


_HISTORY = """job_histories (id, jobid, executionid, statusid, startedat, completedat, duration, result, errormessage,
 retryattempt, executedby, outputdata, createdby)"""


def _changes(dialect: Dialect, column: dict[str, str], row: str = "") -> str:
    """Return what an UPDATE sets, each value given by the SQL that stands for it, `row` being the table's alias."""
    status = column["status"]
    return f"""statusid = {status}, result = coalesce({column["result"]}, {row}result),
 lasterror = coalesce({column["error"]}, {row}lasterror),
 completedat = CASE WHEN {status} = 5 THEN NULL ELSE {dialect.now} END,
 scheduledat = CASE WHEN {status} = 5 THEN {dialect.later(column["delay"])} ELSE {row}scheduledat END,
 priority = {row}priority - CASE WHEN {status} = 5 AND {row}priority > -2147483647 THEN 1 ELSE 0 END,
 retrycount = {row}retrycount + {column["failed"]}, claimtoken = NULL, modifiedon = {dialect.now},
 rowversionstamp = {row}rowversionstamp + 1"""


def finish_jobs(dialect: Dialect, finishes: Sequence[Finish]) -> Script[None]:
    """Write how attempts ended, with all that belongs to them; the last statements of a transaction.

    Raises `LeaseLost` if any of the claims is not held any more, `LockLost` if so for a completed job's lock, and
    whatever a deferred write raises.
    """
    done = [finish for finish in finishes if isinstance(finish.outcome, Completed)]
    for deferred in merge([finish.deferred for finish in done]):  # noqa: UP028 - a list cannot be sent their results
        yield deferred
    outgoing: list[NewJob] = list(chain.from_iterable(finish.outgoing for finish in done))
    yield from insert_jobs(dialect, outgoing)
    rows = [_row(finish) for finish in finishes]
    written = yield from _WRITE[dialect.name](dialect, rows, finishes)
    if written != len(rows):
        raise LeaseLost(f"{len(rows) - written} of {len(rows)} jobs are not held by their claim any more")
    yield from locks.give(dialect, done)  # last: by now the server knows that it must not wait for long
    reach("finish.written")


def _row(finish: Finish) -> _Row:
    status, failed, delay, result, error, verdict = JobStatus.COMPLETED, 0, 0.0, None, None, "Success"
    discarded = False
    match finish.outcome:
        case Completed():
            result = finish.outcome.result
        case Retry():
            status, failed, delay, error = JobStatus.RETRYING, 1, finish.outcome.delay, finish.outcome.error
        case Discard():
            status, failed, error = JobStatus.FAILED, 1, finish.outcome.error
            discarded = not finish.outcome.retriable
        case Cancel():
            status, error, verdict = JobStatus.CANCELLED, finish.outcome.reason, "Cancelled"
    if failed:
        verdict = f"{'Discarded' if discarded else 'Error'}: {error}"
    output = result if finish.output is None else finish.output
    duration, job = round(finish.seconds * 1000), finish.job
    token = job.claim_token or ""
    return _Row(
        job.id, token, finish.history_id, int(status), failed, delay, result, error, duration, verdict, output,
        job.claimed_by,
    )  # fmt: skip


# -- PostgreSQL: one statement -----------------------------------------------------------------------------------------

_PER_ROW = frozenset({"id", "token", "history"})


def _finish_postgresql(dialect: Dialect, rows: list[_Row], _: Sequence[Finish]) -> Script[int]:
    source, arguments = spread(FIELDS, rows, _PER_ROW)
    return (yield Sql(finish_statement(dialect, source, SILENCE), arguments)).count


@cache
def finish_statement(dialect: Dialect, source: str, silence: int) -> str:
    """Return PostgreSQL's statement that finishes the attempts that `source` gives; it counts the histories.

    It also has the server end the transaction if nothing follows for `silence` seconds: the jobs' rows are locked now.
    """
    changes = _changes(dialect, {name: f"f.{name}" for name, _ in FIELDS}, "q.")
    bound = f"set_config('idle_in_transaction_session_timeout', '{silence * 1000}', true)"
    return f"""WITH done AS (UPDATE queue_jobs q SET {changes} FROM {source} AS f
 CROSS JOIN {bound} AS bound
 WHERE q.id = f.id AND q.claimtoken = f.token
 RETURNING f.*, coalesce(q.startedat, {dialect.now}) AS startedat, q.retrycount - f.failed AS attempt)
 INSERT INTO {_HISTORY} SELECT history, id, token, CASE WHEN status = 5 THEN 4 ELSE status END, startedat,
 {dialect.now}, duration, verdict, error, attempt, executedby, output, 'system' FROM done"""


# -- SQLite: no round trips to save, so one UPDATE for each ------------------------------------------------------------


def _finish_sqlite(dialect: Dialect, rows: list[_Row], finishes: Sequence[Finish]) -> Script[int]:
    statement = update_statement(dialect)
    for row in rows:
        if (yield statement(*row)).count != 1:
            raise LeaseLost(f"job {row.id} is not held by its claim any more")
    yield Sql(_insert_history(dialect, 1), _histories(dialect, rows, finishes), "many")
    return len(rows)


@cache
def _update(dialect: Dialect) -> str:
    column = {name: f"${n}" for n, (name, _) in enumerate(FIELDS, 1)}
    return f"UPDATE queue_jobs SET {_changes(dialect, column)} WHERE id = $1 AND claimtoken = $2"


def update_statement(dialect: Dialect) -> Any:
    """Return the statement that finishes one attempt, where its history is another one."""
    return compose(dialect, _update(dialect))


# -- MySQL: two statements ---------------------------------------------------------------------------------------------


def _finish_mysql(dialect: Dialect, rows: list[_Row], finishes: Sequence[Finish]) -> Script[int]:
    if len(rows) == 1:
        written = (yield update_statement(dialect)(*rows[0])).count
    else:
        written = (yield Sql(_update_set(dialect, len(rows)), list(chain.from_iterable(rows)))).count
    if written == len(rows):
        histories = _histories(dialect, rows, finishes)
        yield Sql(_insert_history(dialect, len(rows)), list(chain.from_iterable(histories)))
    return written


@cache
def _update_set(dialect: Dialect, count: int) -> str:
    """Return an UPDATE that takes its rows from a derived table, joined by the primary key in its order.

    The derived table's names are none of `queue_jobs`: MySQL would not know which of the two is to be set.
    """
    names = ", ".join(f"%s AS new_{name}" for name, _ in FIELDS)
    marks = f" UNION ALL SELECT {dialect.placeholders(len(FIELDS))}" * (count - 1)
    changes = _changes(dialect, {name: f"f.new_{name}" for name, _ in FIELDS}, "q.")
    return f"""UPDATE (SELECT {names}{marks}) AS f STRAIGHT_JOIN queue_jobs q FORCE INDEX (PRIMARY)
 ON q.id = f.new_id AND q.claimtoken = f.new_token SET {changes}"""


def _histories(dialect: Dialect, rows: list[_Row], finishes: Sequence[Finish]) -> list[tuple[Any, ...]]:
    return [
        (
            row.history,
            row.id,
            row.token,
            int(JobStatus.FAILED) if row.failed else row.status,
            None if finish.job.started_at is None else dialect.moment(finish.job.started_at),
            row.duration,
            row.verdict,
            row.error,
            finish.job.retry_count,
            row.executedby,
            row.output,
        )
        for row, finish in zip(rows, finishes, strict=True)
    ]


@cache
def _insert_history(dialect: Dialect, count: int) -> str:
    mark = dialect.placeholder(1)
    row = f"({mark}, {mark}, {mark}, {mark}, coalesce({mark}, {dialect.now}), {dialect.now}{f', {mark}' * 6}, 'system')"
    return f"INSERT INTO {_HISTORY} VALUES {', '.join([row] * count)}"


_WRITE = {"postgresql": _finish_postgresql, "mysql": _finish_mysql, "sqlite": _finish_sqlite}


# -- after a lost COMMIT -----------------------------------------------------------------------------------------------

_LOCK = """SELECT id, claimtoken FROM queue_jobs WHERE id {any $1}"""
_WRITTEN = "SELECT id FROM job_histories WHERE id {any $1}"


class Verdicts(NamedTuple):
    """What a lost COMMIT turned out to be: histories that are there, and jobs still held by their claims."""

    written: frozenset[str]
    held: frozenset[tuple[str, str]]

    def of(self, finish: Finish) -> LeaseLost | bool:
        """Return True if this finish was committed, False if it can be tried again, `LeaseLost` if neither."""
        if finish.history_id in self.written:
            return True
        if (finish.job.id, finish.job.claim_token) in self.held:
            return False
        return LeaseLost(f"job {finish.job.id} is not held by its claim any more")


def read_back(dialect: Dialect, finishes: Sequence[Finish]) -> Script[Verdicts]:
    """Find out what became of finishes whose COMMIT was not answered; to be run as a transaction of its own.

    Waits for the transaction in doubt, should the server still be at it, by locking its rows first.
    """
    lock = "" if dialect.name == "sqlite" else " FOR UPDATE"
    jobs = yield compose(dialect, _LOCK + lock).rows([finish.job.id for finish in finishes])
    histories = yield compose(dialect, _WRITTEN).rows([finish.history_id for finish in finishes])
    return Verdicts(frozenset(row[0] for row in histories.rows), frozenset((row[0], row[1]) for row in jobs.rows))
