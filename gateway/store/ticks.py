"""Ticks: each one makes one job, in the transaction that moves its schedule, whatever number of schedulers there are.

The row of a schedule is locked, passing over those that others hold, and read again under the lock; the tick is a
unique row besides, so that neither a clock that was put back nor a schedule that was changed back fires one again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gateway.crashpoint import reach
from gateway.errors import PayloadError
from gateway.job import NewJob, Schedule, new_id
from gateway.store.definition import DEFINITION, EPOCH, ended
from gateway.store.dialect import Dialect
from gateway.store.insert import insert_jobs
from gateway.store.rows import SCHEDULE_COLUMNS, encode_document, schedule_from_row
from gateway.store.schedules import job_of
from gateway.store.script import Script, Sql
from gateway.store.statement import compose
from gateway.store.turns import Asking, Turn, Verdict, asked, decide, plan

BATCH = 100
"""Schedules of one transaction at most."""
TICKS = 1000
"""Once a transaction has made so many jobs, it takes no further schedule."""

_SELECT = f"SELECT {SCHEDULE_COLUMNS}, {{now}} FROM jobs"
_BY_WAKE = f"{_SELECT} {{force ix_jobs_wakeat}}"
_FREE = "coalesce({condition}, '') = ''"
_NEXT = "SELECT {age wakeat} FROM jobs {force ix_jobs_wakeat} WHERE wakeat IS NOT NULL ORDER BY wakeat LIMIT 1"
_TAKEN = "SELECT scheduleid, tick FROM schedule_ticks WHERE scheduleid {any $1} AND tick >= {time $2}"
_TICK = "INSERT INTO schedule_ticks (scheduleid, tick, jobid) VALUES ($1, $2, $3)"
# `planned` comes first: MySQL evaluates in this order, and the others compare with the row as it was, as is meant.
_MOVE = """UPDATE jobs SET planned = CASE WHEN {{time $2}} IS NULL THEN {ended} ELSE {definition} END,
 nextrunat = $2, executioncount = executioncount + $3, lastrunat = coalesce({{time $4}}, lastrunat), lasterror = $5,
 modifiedon = {{now}}, rowversionstamp = rowversionstamp + 1 WHERE id = $1"""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one transaction did: the jobs it made, and every schedule it moved."""

    jobs: list[NewJob] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


def next_wake(dialect: Dialect) -> Script[float | None]:
    """Return the seconds until a schedule is due or to be planned; 0 or less if one is, None if there is none."""
    rows = (yield compose(dialect, _NEXT).rows()).rows
    return -float(rows[0][0]) if rows else None


def plan_changed(dialect: Dialect, patience: float) -> Script[Moved]:
    """Find the next tick of schedules that are new or were changed; they make no job yet."""
    text = f"{_BY_WAKE} WHERE wakeat = {EPOCH[dialect.name]} LIMIT $1 {{skip_locked}}"
    rows = (yield compose(dialect, text).rows(BATCH)).rows
    turns = [_refused(row, schedule) or plan(schedule, now, patience) for row, schedule, now in _read(dialect, rows)]
    yield from _move(dialect, turns)
    if turns:
        reach("plan.written")
    return Moved(turns=turns)


def fire(dialect: Dialect) -> Script[Moved]:
    """Make the jobs of schedules that are due and have no condition, the longest due first."""
    text = f"{_BY_WAKE} WHERE {_wakes(dialect)} AND {_FREE} ORDER BY wakeat LIMIT $1 {{skip_locked}}"
    return (yield from _fire(dialect, (yield compose(dialect, text).rows(BATCH)).rows, {}))


def fire_decided(dialect: Dialect, verdicts: Mapping[str, Verdict]) -> Script[Moved]:
    """Make the jobs of these schedules if they are still due and their conditions, still the same, hold."""
    text = f"{_SELECT} WHERE id {{any $1}} AND {_wakes(dialect)} {{skip_locked}}"
    return (yield from _fire(dialect, (yield compose(dialect, text).rows(list(verdicts))).rows, verdicts))


def asking(dialect: Dialect) -> Script[list[Asking]]:
    """Return schedules that are due and have a condition, the longest due first."""
    text = f"{_BY_WAKE} WHERE {_wakes(dialect)} AND NOT {_FREE} ORDER BY wakeat LIMIT $1"
    found = [schedule for _, schedule, _ in _read(dialect, (yield compose(dialect, text).rows(BATCH)).rows)]
    return [
        Asking(id=each.id, name=each.name, condition=each.condition, tick=each.next_run_at)
        for each in found
        if each.condition is not None and each.next_run_at is not None
    ]


def _wakes(dialect: Dialect) -> str:
    return f"wakeat > {EPOCH[dialect.name]} AND wakeat <= {{now}}"


def _read(dialect: Dialect, rows: Sequence[Any]) -> list[tuple[Any, Schedule, datetime]]:
    found = []
    for row in rows:
        now = dialect.instant(row[-1])
        assert now is not None
        found.append((row, schedule_from_row(dialect, row), now))
    return found


def _refused(row: Any, schedule: Schedule) -> Turn | None:
    """Refuse a row that SQLite took by hand, but that no job can be made of, or that would be another schedule."""
    for name, value, moment in (("startat", row[7], schedule.start_at), ("endat", row[8], schedule.end_at)):
        if value is not None and moment is None:
            return Turn(schedule, None, error=f"{name}: {value!r} is not a time", invalid=True)
    try:
        encode_document(schedule.metadata)
    except PayloadError as error:
        return Turn(schedule, None, error=str(error), invalid=True)
    return None


def _fire(dialect: Dialect, rows: Sequence[Any], verdicts: Mapping[str, Verdict]) -> Script[Moved]:
    turns: list[Turn] = []
    for row, schedule, now in _read(dialect, rows):
        verdict = asked(schedule, verdicts)
        if sum(len(turn.ticks) for turn in turns) < TICKS and (verdict is not None or not verdicts):
            turns.append(_refused(row, schedule) or decide(schedule, now, verdict))
    jobs = yield from _new_jobs(dialect, turns)
    made = {turn.schedule.id: 0 for turn in turns}
    for schedule_id, _ in jobs:
        made[schedule_id] += 1
    if jobs:
        marks = [(schedule_id, dialect.moment(tick), job.id) for (schedule_id, tick), job in jobs.items()]
        yield Sql(compose(dialect, _TICK).text, marks, "many")
        yield from insert_jobs(dialect, list(jobs.values()))
    yield from _move(dialect, turns, made)
    if turns:
        reach("fire.written")
    return Moved(list(jobs.values()), turns)


def _new_jobs(dialect: Dialect, turns: Sequence[Turn]) -> Script[dict[tuple[str, datetime], NewJob]]:
    """Return the jobs of the ticks that have made none so far."""
    firing = [turn for turn in turns if turn.ticks]
    if not firing:
        return {}
    first = dialect.moment(min(turn.ticks[0] for turn in firing))
    rows = (yield compose(dialect, _TAKEN).rows([turn.schedule.id for turn in firing], first)).rows
    taken = {(row[0], dialect.instant(row[1])) for row in rows}
    return {
        (turn.schedule.id, tick): job_of(turn.schedule, tick, job_id=new_id())
        for turn in firing
        for tick in turn.ticks
        if (turn.schedule.id, tick) not in taken
    }


def _move(dialect: Dialect, turns: Sequence[Turn], made: Mapping[str, int] | None = None) -> Script[None]:
    if not turns:
        return
    text = _MOVE.format(definition=DEFINITION[dialect.name], ended=ended(dialect.name))
    statement = compose(dialect, text)
    rows = []
    for turn in turns:
        count = (made or {}).get(turn.schedule.id, 0)
        following = None if turn.next is None else dialect.moment(turn.next)
        last = dialect.moment(turn.ticks[-1]) if count else None
        rows.append(tuple(statement(turn.schedule.id, following, count, last, turn.error).args))
    yield Sql(statement.text, rows, "many")
