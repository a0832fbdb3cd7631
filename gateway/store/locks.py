"""Locks that a job holds across all instances, and what the instances of one database share besides.

A lock belongs to a claim: it is free as soon as that claim is over, however it ended, so no lock outlives a process
that died. Its row stays for good, and with it its number, which therefore only grows. Nobody waits for the row of a
lock: one that another transaction has locked is taken for held.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from gateway.effects import Lock
from gateway.errors import LockLost
from gateway.job import QueueJob
from gateway.store.dialect import Dialect
from gateway.store.script import Script
from gateway.store.statement import compose
from gateway.store.values import Finish

_ROW = "SELECT fence, jobid, claimtoken, {age expiresat} FROM gateway_locks WHERE name = $1"
_NEW = "INSERT INTO gateway_locks (name, fence) VALUES ($1, 0)"
_HELD = "SELECT 1 FROM queue_jobs WHERE id = $1 AND claimtoken = $2"
_TAKE = """UPDATE gateway_locks SET fence = $2, jobid = $3, claimtoken = $4, expiresat = {later $5} WHERE name = $1"""
_GIVE = """UPDATE gateway_locks SET jobid = NULL, claimtoken = NULL, expiresat = NULL
 WHERE name = $1 AND fence = $2 AND claimtoken = $3"""
_SETTING = "SELECT value FROM gateway_settings WHERE name = $1"
_SETTLE = "INSERT INTO gateway_settings (name, value) VALUES ($1, $2)"
FOR_EVER = 1e9
"""Seconds: the bound of a lock that has none."""


def acquire(dialect: Dialect, name: str, job: QueueJob, seconds: float | None) -> Script[Lock | None]:
    """Take a lock for a job's claim; None: another claim holds it. To repeat it gives the same lock again."""
    row = yield from _locked(dialect, name)
    if row is None and not (yield compose(dialect, _ROW).rows(name)).rows:
        insert = compose(dialect, f"{_NEW} {dialect.ignore('name')}")
        yield insert(name)
        row = yield from _locked(dialect, name)
    if row is None:
        return None
    fence, holder, token, overdue = row
    if token is not None and token == job.claim_token:
        return Lock(name, int(fence))
    if token is not None and overdue < 0 and (yield compose(dialect, _HELD).rows(holder, token)).rows:
        return None
    bound = FOR_EVER if seconds is None else seconds
    yield compose(dialect, _TAKE)(name, int(fence) + 1, job.id, job.claim_token, bound)
    return Lock(name, int(fence) + 1)


def give(dialect: Dialect, finishes: Sequence[Finish]) -> Script[None]:
    """Give back what completed jobs held, in their own transaction. Raises `LockLost` if another took one meanwhile."""
    held = [(lock.name, lock.fence, finish.job.claim_token) for finish in finishes for lock in finish.locks]
    for name, fence, token in sorted(held, key=lambda each: each[0]):  # in one order, so that no two wait in a circle
        if (yield compose(dialect, _GIVE)(name, fence, token)).count != 1:
            raise LockLost(f"another job took the lock {name!r} after its ttl; nothing of this attempt is kept")


def share(dialect: Dialect, name: str) -> Script[str]:
    """Return a secret that all instances of this database have in common; whoever comes first makes it up."""
    insert = compose(dialect, f"{_SETTLE} {dialect.ignore('name')}")
    yield insert(name, secrets.token_hex(32))
    return str((yield compose(dialect, _SETTING).rows(name)).rows[0][0])


def _locked(dialect: Dialect, name: str) -> Script[Any]:
    rows = (yield compose(dialect, f"{_ROW} {dialect.skip_locked}").rows(name)).rows
    return rows[0] if rows else None
