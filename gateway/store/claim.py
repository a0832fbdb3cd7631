"""Claiming: a lane's first ready jobs become this process's, each with a token of its own.

The search starts where the last one ended: after many claims the front of the index is dead entries, which an old
snapshot keeps for as long as it lives.
"""

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from typing import Any

from gateway.crashpoint import reach
from gateway.job import JobStatus, QueueJob
from gateway.store.dialect import Dialect
from gateway.store.rows import JOB_COLUMNS, job_from_row
from gateway.store.script import Script
from gateway.store.statement import Statement, compose

RESCAN_SECONDS = 0.25
"""How long claims may start behind the front, where retries and late commits appear."""
RESCAN_SHARE = 20
"""Looking at the front takes at most one part in so many of the time, however many dead entries stand there."""

_READY = """readylane = $1 {after} AND (scheduledat IS NULL OR scheduledat <= {{now}}) {known}
 AND (orderingkey IS NULL OR NOT EXISTS (SELECT 1 FROM queue_jobs e WHERE e.waitingkey = j.orderingkey
 AND e.seq < j.seq)) ORDER BY readyorder, seq LIMIT $2"""

_AFTER = "AND (readyorder, seq) > ({number $5}, {number $6})"
# Compared as a pair, MySQL would read the whole lane.
_MYSQL_AFTER = "AND (readyorder > $5 OR (readyorder = $5 AND seq > $6))"

# `= ANY(ARRAY(…))`: `IN (…)` may become a join that scans the table.
_POSTGRESQL = f"""UPDATE queue_jobs SET {{claim}} WHERE id = ANY(ARRAY(SELECT id FROM queue_jobs j WHERE {_READY}
 FOR UPDATE SKIP LOCKED)) RETURNING {JOB_COLUMNS}"""
_SQLITE = f"""UPDATE queue_jobs SET {{claim}} WHERE seq IN (SELECT seq FROM queue_jobs j INDEXED BY ix_queue_jobs_ready
 WHERE {_READY}) RETURNING {JOB_COLUMNS}"""
_MYSQL = f"""SELECT {JOB_COLUMNS}, {{{{now}}}} FROM queue_jobs j FORCE INDEX (ix_queue_jobs_ready) WHERE {_READY}
 FOR UPDATE SKIP LOCKED"""
_CLAIM = """statusid = 2, startedat = {now}, claimtoken = {text $3} || '-' || seq, claimedby = $4,
 modifiedon = {now}, rowversionstamp = rowversionstamp + 1"""
_MYSQL_CLAIM = """UPDATE queue_jobs SET statusid = 2, startedat = $3, claimtoken = concat($1, '-', seq), claimedby = $2,
 modifiedon = $3, rowversionstamp = rowversionstamp + 1 WHERE id {any $4}"""
_CLAIMED = f"""SELECT {JOB_COLUMNS} FROM queue_jobs WHERE statusid = 2 AND claimedby = $1
 AND substr(claimtoken, 1, 16) = $2"""

Place = tuple[int, int]
"""`readyorder` and `seq` of a row."""
FRONT: Place = (-(2**40), 0)


def new_token() -> str:
    """Return what the tokens of one claim begin with; with the row's `seq` they are unique to the attempt."""
    return secrets.token_hex(8)


@dataclass(slots=True)
class Cursor:
    """Where the next claim of one lane starts."""

    place: Place = FRONT
    started: float = 0.0
    rescan_at: float = 0.0

    def start(self) -> Place:
        """Return the place after which to look; the front if that was long ago."""
        self.started = time.monotonic()
        if self.started >= self.rescan_at:
            self.place = FRONT
        if self.place == FRONT:
            self.rescan_at = inf
        return self.place

    def rewind(self) -> None:
        """Start at the front again, also if a claim is under way."""
        self.place, self.rescan_at = FRONT, 0.0

    def move(self, jobs: list[QueueJob], limit: int) -> None:
        """Go on behind the last claimed job, or start at the front again if there was none left."""
        now = time.monotonic()
        if self.rescan_at == inf:
            self.rescan_at = now + max(RESCAN_SECONDS, RESCAN_SHARE * (now - self.started))
        self.place = (-jobs[-1].priority, jobs[-1].sequence) if len(jobs) >= limit else FRONT


@dataclass(frozen=True, slots=True)
class Claim:
    """What to claim, by whom, under which token."""

    lane: str
    limit: int
    handlers: Collection[str] | None
    token: str
    owner: str


def claim_statement(dialect: Dialect, *, any_handler: bool) -> Statement:
    """Return the statement that finds, and but on MySQL also takes, a lane's first jobs."""
    template = {"postgresql": _POSTGRESQL, "sqlite": _SQLITE, "mysql": _MYSQL}[dialect.name]
    after = _MYSQL_AFTER if dialect.name == "mysql" else _AFTER
    known = "" if any_handler else "AND handler {any $7}"
    return compose(dialect, template.format(after=after, known=known, claim=_CLAIM))


def claim_jobs(dialect: Dialect, claim: Claim, after: Place) -> Script[list[QueueJob]]:
    """Claim a lane's first jobs behind `after`, highest priority first, then oldest first."""
    statement = claim_statement(dialect, any_handler=claim.handlers is None)
    known: list[Any] = [] if claim.handlers is None else [claim.handlers]
    select = statement.rows(claim.lane, claim.limit, claim.token, claim.owner, *after, *known)
    if dialect.name == "mysql":
        jobs = yield from _claim_mysql(dialect, claim, select)
    else:
        jobs = _jobs(dialect, (yield select).rows)
    if jobs:
        reach("claim.written")
    return jobs


def _claim_mysql(dialect: Dialect, claim: Claim, select: Any) -> Script[list[QueueJob]]:
    rows = (yield select).rows
    if not rows:
        return []
    now = rows[0][-1]
    yield compose(dialect, _MYSQL_CLAIM)(claim.token, claim.owner, now, [row[1] for row in rows])
    return _jobs(dialect, [_claimed(row, claim, now) for row in rows])


def _claimed(row: Any, claim: Claim, now: Any) -> list[Any]:
    """Give a row that was locked, then changed, what the change put into it."""
    values = list(row[:-1])
    values[11], values[16], values[25], values[26] = int(JobStatus.PROCESSING), now, now, values[26] + 1
    values[27], values[28] = f"{claim.token}-{row[0]}", claim.owner
    return values


def claimed_jobs(dialect: Dialect, claim: Claim) -> Script[list[QueueJob]]:
    """Return what a claim holds, after the answer to its COMMIT was lost."""
    return _jobs(dialect, (yield compose(dialect, _CLAIMED).rows(claim.owner, claim.token)).rows)


def _jobs(dialect: Dialect, rows: Any) -> list[QueueJob]:
    jobs = [job_from_row(dialect, row) for row in rows]
    jobs.sort(key=lambda job: (-job.priority, job.sequence))
    return jobs
