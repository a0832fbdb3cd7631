"""Upkeep: due jobs become ready, jobs of the dead are given back, old ones go. Small batches, nobody waits."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from gateway.crashpoint import reach
from gateway.job import PUBLISH, QueueJob, new_id
from gateway.store.dialect import Dialect
from gateway.store.script import Script, Sql
from gateway.store.statement import compose
from gateway.store.values import Lane

CRASHES = 5
"""The crash that makes a job Failed: two in company, three alone."""
LOOKS_APART = 0.5
"""Seconds between two looks at a missing session lock before its owner counts as dead."""
TRUSTED = 1.2
"""Seconds for which this process must itself have been seen alive before a missing lock means anything."""
BATCH = 200

Lanes = set[str]


@dataclass(frozen=True, slots=True)
class Moved:
    """How many rows were made ready, and in which lanes."""

    count: int
    lanes: Lanes


# -- promote -----------------------------------------------------------------------------------------------------------

_DUE = "SELECT id FROM queue_jobs {force ix_queue_jobs_due} WHERE dueat <= {now} ORDER BY dueat LIMIT $1"
_PROMOTE = """UPDATE queue_jobs {force PRIMARY} SET statusid = 1, modifiedon = {now},
 rowversionstamp = rowversionstamp + 1 WHERE id {any $1} AND statusid IN (5, 7)"""
_NEXT = "SELECT {age dueat} FROM queue_jobs {force ix_queue_jobs_due} WHERE dueat IS NOT NULL ORDER BY dueat LIMIT 1"
_AHEAD = """SELECT id FROM (SELECT id, scheduledat FROM queue_jobs {force ix_queue_jobs_ready}
 WHERE readylane = $1 ORDER BY readyorder, seq LIMIT 500) AS front WHERE scheduledat > {now}"""
_POSTPONE = """UPDATE queue_jobs {force PRIMARY} SET statusid = 7, modifiedon = {now},
 rowversionstamp = rowversionstamp + 1 WHERE id {any $1} AND statusid IN (0, 1) AND scheduledat > {now}"""
_LANES = "SELECT DISTINCT readylane FROM queue_jobs {force PRIMARY} WHERE id {any $1} AND readylane IS NOT NULL"


def postpone(dialect: Dialect) -> Script[int]:
    """Make Scheduled what stands ready at the front but is not due: rows by hand, which every claim would pass over."""
    rows = (yield compose(dialect, _AHEAD).rows(Lane.RUN)).rows
    if not rows:
        return 0
    count = (yield compose(dialect, _POSTPONE)([row[0] for row in rows])).count
    reach("postpone.written")
    return count


def promote(dialect: Dialect, limit: int) -> Script[Moved]:
    """Make Queued what is due, the longest due first."""
    rows = (yield compose(dialect, f"{_DUE} {dialect.skip_locked}").rows(limit)).rows
    if not rows:
        return Moved(0, set())
    ids = [row[0] for row in rows]
    count = (yield compose(dialect, _PROMOTE)(ids)).count
    lanes = yield from lanes_of(dialect, ids)
    reach("promote.written")
    return Moved(count, lanes)


def next_due(dialect: Dialect) -> Script[float | None]:
    """Return the seconds until the next job is due; 0 if one is, None if there is none."""
    rows = (yield compose(dialect, _NEXT).rows()).rows
    return max(0.0, -float(rows[0][0])) if rows else None


def lanes_of(dialect: Dialect, ids: Sequence[str]) -> Script[Lanes]:
    """Return the lanes in which these jobs are ready."""
    return {row[0] for row in (yield compose(dialect, _LANES).rows(ids)).rows}


# -- release, reclaim --------------------------------------------------------------------------------------------------

# A token is unique to its attempt, so that two sets are as exact a fence as a set of pairs.
_RELEASE = """UPDATE queue_jobs {force PRIMARY} SET statusid = 1, claimtoken = NULL, startedat = NULL,
 modifiedon = {now}, rowversionstamp = rowversionstamp + 1 WHERE id {any $1} AND claimtoken {any $2}"""
_MINE = """SELECT id, claimtoken FROM queue_jobs {force ix_queue_jobs_claimed} WHERE statusid = 2 AND claimedby = $1
 AND (startedat IS NULL OR startedat < {later $2})"""


def release(dialect: Dialect, claims: Sequence[tuple[str, str]]) -> Script[Moved]:
    """Give jobs back that are still held by these claims; no attempt is used."""
    ids = [job_id for job_id, _ in claims]
    count = (yield compose(dialect, _RELEASE)(ids, [token for _, token in claims])).count
    lanes: Lanes = (yield from lanes_of(dialect, ids)) if count else set()
    reach("release.written")
    return Moved(count, lanes)


def forgotten(
    dialect: Dialect, owner: str, held: Collection[str], *, older_than: float
) -> Script[list[tuple[str, str]]]:
    """Return the claims that stand in the owner's name for so many seconds, but that it does not know of."""
    rows = (yield compose(dialect, _MINE).rows(owner, -older_than)).rows
    return [(row[0], row[1]) for row in rows if row[1] is not None and row[1] not in held]


# -- rescue ------------------------------------------------------------------------------------------------------------


class Owner(NamedTuple):
    """One that holds jobs: how old its heartbeat is (None: it has no row), and its session lock."""

    id: str | None
    age: float | None
    lock: bool
    """Whether it took a session lock when it started."""
    held: bool
    """Whether it holds it now."""


_OWNERS = """SELECT o.claimedby, {age i.heartbeatat}, i.sessionlock, {held o.claimedby}
 FROM (SELECT DISTINCT claimedby FROM queue_jobs {force ix_queue_jobs_claimed} WHERE statusid = 2) AS o
 LEFT JOIN gateway_instances AS i ON i.id = o.claimedby"""


def owners(dialect: Dialect) -> Script[list[Owner]]:
    """Return all that hold jobs."""
    rows = (yield compose(dialect, _OWNERS).rows()).rows
    return [Owner(row[0], None if row[1] is None else float(row[1]), bool(row[2]), bool(row[3])) for row in rows]


@dataclass(slots=True)
class Watch:
    """Tells the dead from the living. One look at a missing lock is not enough: its owner may be reconnecting."""

    me: str
    lease: float
    alone: bool
    """Whether nobody else can be alive, as on SQLite."""
    missing: dict[str, float] = field(default_factory=dict)

    def dead(self, owners: Sequence[Owner], alive: float) -> list[Owner]:
        """Return the owners whose jobs are to be rescued.

        `alive` is for how many seconds this process has been seen alive itself: after a restart of the database,
        which took every lock and let every heartbeat grow old, the others get the time to come back.
        """
        now = time.monotonic()
        others = [owner for owner in owners if owner.id is not None and owner.id != self.me]
        gone = {owner.id for owner in others if owner.lock and not owner.held and owner.id is not None}
        self.missing = {name: self.missing.get(name, now) for name in gone} if alive > 0 else {}
        return [owner for owner in others if self._is_dead(owner, now, alive)]

    def _is_dead(self, owner: Owner, now: float, alive: float) -> bool:
        if self.alone or owner.age is None:
            return True
        if owner.age > self.lease and alive >= self.lease / 2:
            return True
        return alive >= TRUSTED and now - self.missing.get(owner.id or "", now) >= LOOKS_APART


_CRASHED = """SELECT id, claimtoken, crashcount, handler, startedat, retrycount, claimedby FROM queue_jobs
 {{force ix_queue_jobs_claimed}} WHERE statusid = 2 AND {owner}
 AND (startedat IS NULL OR startedat <= {{later $2}}) LIMIT $1 {{skip_locked}}"""
_OF_NOBODY = _CRASHED.format(owner="claimedby IS NULL")
_OF_OWNER = _CRASHED.format(owner="claimedby = $3")
_REVIVE = """UPDATE queue_jobs {force PRIMARY} SET statusid = 1, crashcount = crashcount + 1, claimtoken = NULL,
 startedat = NULL, modifiedon = {now}, rowversionstamp = rowversionstamp + 1 WHERE id {any $1} AND statusid = 2"""
_BURY = """UPDATE queue_jobs {force PRIMARY} SET statusid = 4, crashcount = crashcount + 1, claimtoken = NULL,
 completedat = {now}, lasterror = $2, modifiedon = {now}, rowversionstamp = rowversionstamp + 1
 WHERE id {any $1} AND statusid = 2"""
_AUTOPSY = """INSERT INTO job_histories (id, jobid, executionid, statusid, startedat, completedat, result, errormessage,
 retryattempt, executedby, createdby) VALUES ($1, $2, $3, 4, coalesce($4, {now}), {now}, $5, $6, $7, $8, 'system')"""
REASON = f"the process died {CRASHES} times while it ran this job, the last three times it ran alone"


class Rescued(NamedTuple):
    """Rows given back and rows set aside, and the lanes where there is work."""

    rescued: int
    failed: int
    lanes: Lanes


def rescue(dialect: Dialect, owner: str | None, *, older_than: float = 0.0) -> Script[Rescued]:
    """Take a small batch of jobs from a dead owner; None: from nobody. Each crash counts, none uses an attempt.

    `older_than` spares what was claimed within so many seconds. Rows locked by others are passed over. Messages to
    be published are never set aside: the outbox runs no code of theirs.
    """
    if owner is None:
        rows = (yield compose(dialect, _OF_NOBODY).rows(BATCH, -older_than)).rows
    else:
        rows = (yield compose(dialect, _OF_OWNER).rows(BATCH, -older_than, owner)).rows
    if not rows:
        return Rescued(0, 0, set())
    buried = [row for row in rows if row[2] + 1 >= CRASHES and row[3] != PUBLISH]
    revived = [row[0] for row in rows if row not in buried]
    if revived:
        yield compose(dialect, _REVIVE)(revived)
    if buried:
        yield compose(dialect, _BURY)([row[0] for row in buried], REASON)
    for row in buried:
        result = f"Error: {REASON}"
        yield compose(dialect, _AUTOPSY)(new_id(), row[0], row[1] or "", row[4], result, REASON, row[5], row[6])
    lanes: Lanes = (yield from lanes_of(dialect, revived)) if revived else set()
    reach("rescue.written")
    return Rescued(len(revived), len(buried), lanes)


# -- prune -------------------------------------------------------------------------------------------------------------

_OLD = """SELECT id FROM queue_jobs {force ix_queue_jobs_completed} WHERE completedat < {later $1}
 AND statusid IN (3, 4, 6) ORDER BY completedat LIMIT $2"""
_DROP_HISTORIES = "DELETE FROM job_histories WHERE jobid {any $1}"
_DROP_JOBS = "DELETE FROM queue_jobs WHERE id {any $1} AND statusid IN (3, 4, 6)"
_EXPIRED = "SELECT connector, keyhash FROM inbound_dedupe WHERE expiresat < {now} ORDER BY expiresat LIMIT $1"
TICKS_KEPT = 7 * 86400.0
"""Seconds after which a tick is forgotten: no clock is put back so far."""
_TICKS = "SELECT scheduleid, tick FROM schedule_ticks WHERE tick < {later $1} ORDER BY tick LIMIT $2"
_GONE = """DELETE FROM gateway_instances WHERE heartbeatat < {later -86400.0} AND id <> $1 AND NOT EXISTS
 (SELECT 1 FROM queue_jobs q WHERE q.statusid = 2 AND q.claimedby = gateway_instances.id)"""


def prune(dialect: Dialect, older_than: timedelta, limit: int) -> Script[int]:
    """Delete finished jobs with their histories, the oldest first. Never touches a job that is not finished."""
    select = compose(dialect, f"{_OLD} {dialect.skip_locked}")
    rows = (yield select.rows(-older_than.total_seconds(), limit)).rows
    if not rows:
        return 0
    ids = [row[0] for row in rows]
    if dialect.name != "mysql":  # there the foreign key deletes them, by its index and never by a scan
        yield compose(dialect, _DROP_HISTORIES)(ids)
    count = (yield compose(dialect, _DROP_JOBS)(ids)).count
    reach("prune.written")
    return count


def forget(dialect: Dialect, limit: int, me: str) -> Script[None]:
    """Delete expired dedupe keys, old ticks, and instances dead for a day that hold nothing; never this one."""
    expired = (yield compose(dialect, _EXPIRED).rows(limit)).rows
    yield from _drop(dialect, "inbound_dedupe", ("connector", "keyhash"), expired)
    ticks = (yield compose(dialect, _TICKS).rows(-TICKS_KEPT, limit)).rows
    yield from _drop(dialect, "schedule_ticks", ("scheduleid", "tick"), ticks)
    yield compose(dialect, _GONE)(me)


def _drop(dialect: Dialect, table: str, key: tuple[str, str], rows: Sequence[Sequence[object]]) -> Script[None]:
    if rows:
        mark = dialect.placeholder
        text = f"DELETE FROM {table} WHERE {key[0]} = {mark(1)} AND {key[1]} = {mark(2)}"
        yield Sql(text, [tuple(row) for row in rows], "many")


def held_by(jobs: Sequence[QueueJob]) -> list[tuple[str, str]]:
    """Return the claims of jobs: id and token."""
    return [(job.id, job.claim_token) for job in jobs if job.claim_token is not None]
