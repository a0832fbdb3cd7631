"""The judge: reads what the clients were told, what the database holds and what the receiver got, and compares.

It shares no code with the gateway and has its own SQL. What it can find: a message that was accepted and is gone
(lost), an effect or a job that is there twice (doubled), an effect, status, history and outbound messages that did not
commit together (torn), a message of an attempt that was rolled back (aborted), one that never arrived (undelivered),
a job that nobody works on any more (orphan).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from tests.system.database import Database

COMPLETED = 3
FINAL = (3, 4, 6)

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise, with the job or message that shows it."""

    kind: Literal["lost", "doubled", "torn", "aborted", "undelivered", "orphan", "failed"]
    id: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Everything that is known when all has come to rest."""

    accepted: Mapping[str, str]
    """What the client was told: the job id of each key it has sent."""
    jobs: Sequence[Row]
    histories: Sequence[Row]
    effects: Sequence[Row]
    received: Sequence[str] = ()
    """The message ids that the receiver saw, repeats included."""
    children: Mapping[str, int] = field(default_factory=dict)
    """How many child jobs a completed job of a handler has, of each kind: `{"example.publish": 2}`."""


async def read(
    database: Database,
    accepted: Mapping[str, str],
    *,
    received: Sequence[str] = (),
    children: Mapping[str, int] | None = None,
) -> Ledger:
    """Read the database's side."""
    return Ledger(
        accepted=accepted,
        jobs=await database.rows(
            "SELECT id, handler, direction, statusid, payload, parentjobid, lasterror FROM queue_jobs"
        ),
        histories=await database.rows("SELECT jobid, executionid, statusid FROM job_histories"),
        effects=await database.rows("SELECT jobid, token FROM effects"),
        received=received,
        children=children or {},
    )


async def lost_attempts(database: Database) -> list[Violation]:
    """Return the jobs that lost an attempt to what happened around them: their handlers never fail."""
    tried = await database.rows(
        "SELECT id, handler, retrycount FROM queue_jobs WHERE retrycount > 0 AND handler IN"
        " ('example.effect', 'example.deferred', 'example.plain', 'example.slow', 'example.gated')"
    )
    return [Violation("failed", job["id"], f"{job['handler']} lost an attempt") for job in tried]


def judge(ledger: Ledger) -> list[Violation]:
    """Return every violation; none means that each accepted message has exactly one effect."""
    jobs = {str(job["id"]): job for job in ledger.jobs}
    return [
        *_lost(ledger, jobs),
        *_doubled(ledger),
        *_torn(ledger, jobs),
        *_families(ledger, jobs),
        *_messages(ledger, jobs),
        *_unfinished(jobs),
    ]


async def ticks_of(database: Database, schedule: str) -> list[datetime]:
    """Return the tick of each job that a schedule has made, repeats included."""
    metadata = [row["metadata"] for row in await database.rows("SELECT metadata FROM queue_jobs WHERE typeid = 1")]
    made = [(json.loads(each) if isinstance(each, str) else each)["schedule"] for each in metadata]
    return [datetime.fromisoformat(each["tick"]) for each in made if each["name"] == schedule]


def judge_ticks(ticks: Sequence[datetime], *, every: int = 1) -> list[Violation]:
    """Return what is wrong with a schedule that ticks each `every` seconds, and misses none: one job for each tick."""
    counts = Counter(ticks)
    found = [Violation("doubled", str(tick), f"{count} jobs") for tick, count in counts.items() if count > 1]
    length = int((max(ticks) - min(ticks)).total_seconds()) if ticks else 0
    wanted = [min(ticks) + timedelta(seconds=offset) for offset in range(0, length, every)]
    return found + [Violation("lost", str(tick), "a tick without a job") for tick in wanted if tick not in counts]


def _lost(ledger: Ledger, jobs: Mapping[str, Row]) -> list[Violation]:
    return [
        Violation("lost", job_id, f"key {key} was answered, there is no such job")
        for key, job_id in ledger.accepted.items()
        if job_id not in jobs
    ]


def _doubled(ledger: Ledger) -> list[Violation]:
    effects = Counter(str(effect["jobid"]) for effect in ledger.effects)
    found = [Violation("doubled", id_, f"{count} effects") for id_, count in effects.items() if count > 1]
    keys: dict[str, list[str]] = defaultdict(list)
    for job in ledger.jobs:
        if job["direction"] == "inbound" and (key := _key(job["payload"])) is not None:
            keys[key].append(str(job["id"]))
    found += [Violation("doubled", ids[0], f"key {key} has jobs {ids}") for key, ids in keys.items() if len(ids) > 1]
    return found


def _key(payload: str | None) -> str | None:
    try:
        body = json.loads(payload or "")
    except ValueError:
        return None
    return body.get("key") if isinstance(body, dict) else None


def _torn(ledger: Ledger, jobs: Mapping[str, Row]) -> list[Violation]:
    """Compare the three traces that one commit leaves: status, success history, effect row with the same token."""
    tokens: dict[str, list[str]] = defaultdict(list)
    for history in ledger.histories:
        if history["statusid"] == COMPLETED:
            tokens[str(history["jobid"])].append(str(history["executionid"]))
    effects = {str(effect["jobid"]): effect for effect in ledger.effects}
    found = []
    for job_id, job in jobs.items():
        done = job["statusid"] == COMPLETED
        if len(tokens[job_id]) != done:
            found.append(
                Violation("torn", job_id, f"status {job['statusid']}, {len(tokens[job_id])} success histories")
            )
        if not job["handler"].startswith("example."):
            continue
        if (job_id in effects) != done:
            found.append(Violation("torn", job_id, f"status {job['statusid']}, effect row: {job_id in effects}"))
        elif done and tokens[job_id] and effects[job_id]["token"] not in tokens[job_id]:
            found.append(Violation("torn", job_id, "the effect is of another attempt than the success history"))
    found += [Violation("torn", id_, "an effect without a job") for id_ in effects if id_ not in jobs]
    return found


def _families(ledger: Ledger, jobs: Mapping[str, Row]) -> list[Violation]:
    """A parent's children commit with it, or not at all."""
    count = Counter(str(job["parentjobid"]) for job in jobs.values() if job["parentjobid"])
    found = []
    for job_id, job in jobs.items():
        wanted = ledger.children.get(job["handler"], 0) if job["statusid"] == COMPLETED else 0
        if count[job_id] != wanted:
            kind: Literal["doubled", "torn"] = "doubled" if count[job_id] > wanted > 0 else "torn"
            found.append(Violation(kind, job_id, f"{count[job_id]} children instead of {wanted}"))
    return found


def _messages(ledger: Ledger, jobs: Mapping[str, Row]) -> list[Violation]:
    outbound = {id_ for id_, job in jobs.items() if job["handler"] == "gateway.publish"}
    received = set(ledger.received)
    return [
        *(Violation("aborted", id_, "the receiver has a message that never committed") for id_ in received - outbound),
        *(Violation("undelivered", id_, "the receiver never saw it") for id_ in outbound - received),
    ]


def _unfinished(jobs: Mapping[str, Row]) -> list[Violation]:
    found = []
    for job_id, job in jobs.items():
        if job["statusid"] not in FINAL:
            found.append(Violation("orphan", job_id, f"status {job['statusid']} after all came to rest"))
        elif job["statusid"] != COMPLETED:
            found.append(Violation("failed", job_id, f"{job['handler']}, status {job['statusid']}: {job['lasterror']}"))
    return found
