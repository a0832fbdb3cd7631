"""Who shares the database, who of them lives, and what none of them would run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.job import PUBLISH
from gateway.store.dialect import Dialect
from gateway.store.script import Script
from gateway.store.statement import compose
from gateway.store.values import InstanceRow, Lane, Orphaned

_INSTANCE = """SELECT id, name, version, host, pid, startedat, heartbeatat, {age heartbeatat}, sessionlock, {held id},
 {age reportedat}, running, workers, connectors, handlers FROM gateway_instances"""
_INSTANCES = f"{_INSTANCE} ORDER BY name, startedat, id"
_RUNNING = f"{_INSTANCE} WHERE {{held id}} OR {{age heartbeatat}} <= $1 ORDER BY name, startedat, id"


def find(dialect: Dialect, lease: float, occupied: bool | None) -> Script[list[InstanceRow]]:
    """Return all instances the database knows.

    `occupied`, where only one can live: whether one does, which is then the one that started last.
    """
    rows = (yield compose(dialect, _INSTANCES).rows()).rows
    newest = max((row[5] for row in rows), default=None)
    return [
        _instance(dialect, row, _is_alive(row, lease) if occupied is None else occupied and row[5] == newest)
        for row in rows
    ]


def running(dialect: Dialect, lease: float) -> Script[list[InstanceRow]]:
    """Return the instances whose session lock is held, or whose heartbeat is not older than the lease."""
    rows = (yield compose(dialect, _RUNNING).rows(lease)).rows
    return [_instance(dialect, row, _is_alive(row, lease)) for row in rows]


def orphaned(instances: Iterable[InstanceRow], lanes: Mapping[str, int], handlers: Mapping[str, int]) -> Orphaned:
    """Return what none of the instances that live would run, of the ready jobs by lane and by handler."""
    living = [each for each in instances if each.alive]
    if any(each.handlers is None for each in living):
        return Orphaned(living=len(living))
    known = {PUBLISH, *(name for each in living for name in each.handlers or ())}
    served = {Lane.send(name) for each in living if each.workers for name in each.connectors or ()}
    prefix = Lane.send("")
    return Orphaned(
        living=len(living),
        handlers={name: n for name, n in handlers.items() if name not in known},
        connectors={
            lane.removeprefix(prefix): n for lane, n in lanes.items() if lane.startswith(prefix) and lane not in served
        },
    )


def _is_alive(row: Sequence[Any], lease: float) -> bool:
    """Judge as the rescue does, which looks twice for a missing lock before it acts."""
    age, locks, held = float(row[7]), bool(row[8]), bool(row[9])
    return age <= lease and (held or not locks)


def _instance(dialect: Dialect, row: Sequence[Any], alive: bool) -> InstanceRow:
    started, beat = dialect.instant(row[5]), dialect.instant(row[6])
    assert started is not None
    assert beat is not None
    connectors, handlers = _json(row[13]), _json(row[14])
    return InstanceRow(
        id=row[0],
        name=row[1],
        version=row[2],
        host=row[3],
        pid=int(row[4]),
        started_at=started,
        heartbeat_at=beat,
        age=float(row[7]),
        alive=alive,
        report_age=None if row[10] is None else float(row[10]),
        running=row[11],
        workers=row[12],
        connectors=connectors if isinstance(connectors, dict) else None,
        handlers=handlers if isinstance(handlers, list) else None,
    )


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str | bytes) else value
    except ValueError:
        return None
