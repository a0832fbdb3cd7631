"""What operators see and do."""

from typing import Any

from gateway.crashpoint import reach
from gateway.job import JobHistory, JobStatus, QueueJob, new_id
from gateway.store import instances
from gateway.store.definition import EPOCH
from gateway.store.dialect import Dialect
from gateway.store.rows import HISTORY_COLUMNS, JOB_COLUMNS, history_from_row, job_from_row
from gateway.store.script import Script
from gateway.store.statement import compose
from gateway.store.values import JobFilter, Statistics

_CLAUSES = {
    "status": "statusid = ${n}",
    "handler": "handler = ${n}",
    "direction": "direction = ${n}",
    "parent_id": "parentjobid = ${n}",
    "before": "seq < ${n}",
}
PAGE = 1000
"""The most jobs of one page."""

_JOB = f"SELECT {JOB_COLUMNS} FROM queue_jobs WHERE id = $1"
_HISTORY = f"SELECT {HISTORY_COLUMNS} FROM job_histories WHERE jobid = $1 ORDER BY startedat, id"
_CANCEL = """UPDATE queue_jobs SET statusid = 6, completedat = {now}, lasterror = $2, claimtoken = NULL,
 modifiedon = {now}, rowversionstamp = rowversionstamp + 1 WHERE id = $1 AND statusid NOT IN (3, 4, 6)"""
_CANCELLED = """INSERT INTO job_histories (id, jobid, executionid, statusid, startedat, completedat, result,
 errormessage, retryattempt, executedby, createdby)
 VALUES ($1, $2, $3, 6, coalesce($4, {now}), {now}, 'Cancelled', $5, $6, $7, 'system')"""
_RETRY = """UPDATE queue_jobs SET statusid = 0, completedat = NULL, startedat = NULL, scheduledat = NULL,
 crashcount = 0, maxretries = CASE WHEN maxretries < retrycount THEN retrycount ELSE maxretries END,
 modifiedon = {now}, rowversionstamp = rowversionstamp + 1 WHERE id = $1 AND statusid IN (4, 6)"""
_RETRIABLE = """SELECT q.id FROM queue_jobs q {force ix_queue_jobs_completed} WHERE q.completedat >= {later $1}
 AND q.statusid = 4 AND q.active AND q.retrycount > q.maxretries AND q.retrycount < {number $2} AND NOT EXISTS
 (SELECT 1 FROM job_histories h WHERE h.jobid = q.id AND h.retryattempt = q.retrycount - 1
 AND h.result LIKE $3) ORDER BY q.completedat LIMIT $4"""
_REPORT = "UPDATE queue_jobs SET progress = $1 WHERE id = $2 AND claimtoken = $3"
_COUNTS = "SELECT statusid, count(*) FROM queue_jobs WHERE active GROUP BY statusid"
_DUE = """SELECT count(*), max({{age wakeat}}) FROM jobs {{force ix_jobs_wakeat}}
 WHERE wakeat > {epoch} AND wakeat <= {{now}}"""
_READY = """SELECT readylane, handler, count(*), max({age createdon}) FROM queue_jobs WHERE readylane IS NOT NULL
 GROUP BY readylane, handler"""


def get(dialect: Dialect, job_id: str, *, lock: bool = False) -> Script[QueueJob | None]:
    """Return a job; `lock`: no other transaction changes it until this one ends."""
    suffix = " FOR UPDATE" if lock and dialect.name != "sqlite" else ""
    rows = (yield compose(dialect, _JOB + suffix).rows(job_id)).rows
    return job_from_row(dialect, rows[0]) if rows else None


def history(dialect: Dialect, job_id: str) -> Script[list[JobHistory]]:
    """Return the attempts of a job, the first one first."""
    return [history_from_row(dialect, row) for row in (yield compose(dialect, _HISTORY).rows(job_id)).rows]


def find(dialect: Dialect, wanted: JobFilter) -> Script[list[QueueJob]]:
    """Return one page of jobs, the newest first."""
    clauses, arguments = ["active"], list[Any]()
    for name, clause in _CLAUSES.items():
        value = getattr(wanted, name)
        if value is not None:
            arguments.append(int(value) if name == "status" else value)
            clauses.append(clause.format(n=len(arguments)))
    text = f"SELECT {JOB_COLUMNS} FROM queue_jobs WHERE {' AND '.join(clauses)} ORDER BY seq DESC"
    limit = max(1, min(wanted.limit, PAGE))
    rows = (yield compose(dialect, f"{text} LIMIT ${len(arguments) + 1}").rows(*arguments, limit)).rows
    return [job_from_row(dialect, row) for row in rows]


def cancel(dialect: Dialect, job_id: str, reason: str) -> Script[QueueJob | None]:
    """Cancel a job that is not finished. An attempt that is running loses its claim, so that it cannot commit."""
    job = yield from get(dialect, job_id, lock=True)
    if job is None or job.status.final:
        return job
    yield compose(dialect, _CANCEL)(job_id, reason)
    if job.status is JobStatus.PROCESSING:
        started = None if job.started_at is None else dialect.moment(job.started_at)
        token = job.claim_token or ""
        yield compose(dialect, _CANCELLED)(
            new_id(), job_id, token, started, reason, job.retry_count, job.claimed_by
        )  # fmt: skip
    reach("cancel.written")
    return (yield from get(dialect, job_id))


def retry(dialect: Dialect, job_id: str) -> Script[QueueJob | None]:
    """Make a Failed or Cancelled job Pending for at least one attempt more; earlier crashes are forgiven."""
    job = yield from get(dialect, job_id, lock=True)
    if job is None or job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        return job
    yield compose(dialect, _RETRY)(job_id)
    reach("retry.written")
    return (yield from get(dialect, job_id))


def retriable(dialect: Dialect, seconds: float, attempts: int, limit: int) -> Script[list[str]]:
    """Return the jobs that failed in the last `seconds`, the first one first, and that another attempt might mend.

    Those are the jobs whose attempts, fewer than `attempts` in all, were used up, the last one by an error that is
    tried again while attempts are left. What was discarded, never ran, or killed its process is none of them.
    """
    rows = (yield compose(dialect, _RETRIABLE).rows(-seconds, attempts, "Discarded:%", limit)).rows
    return [row[0] for row in rows]


def report(dialect: Dialect, job: QueueJob, progress: str) -> Script[bool]:
    """Write what a running job tells of itself; False if its claim is lost."""
    return (yield compose(dialect, _REPORT)(progress, job.id, job.claim_token or "")).count == 1


def statistics(dialect: Dialect, lease: float, occupied: bool | None) -> Script[Statistics]:
    """Count. The rest is as for `instances.find`."""
    counts = (yield compose(dialect, _COUNTS).rows()).rows
    ready = (yield compose(dialect, _READY).rows()).rows
    lanes: dict[str, int] = {}
    handlers: dict[str, int] = {}
    for lane, handler, count, _ in ready:
        lanes[lane] = lanes.get(lane, 0) + int(count)
        handlers[handler] = handlers.get(handler, 0) + int(count)
    ((due, lag),) = (yield compose(dialect, _DUE.format(epoch=EPOCH[dialect.name])).rows()).rows
    living = yield from instances.find(dialect, lease, occupied)
    return Statistics(
        status_counts={int(status): int(count) for status, count in counts},
        ready=lanes,
        ready_handlers=handlers,
        due_schedules=int(due),
        schedule_lag=None if lag is None else float(lag),
        orphaned=instances.orphaned(living, lanes, handlers),
        oldest_ready=max((float(row[3]) for row in ready if row[3] is not None), default=None),
    )
