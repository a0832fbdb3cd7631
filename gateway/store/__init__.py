"""The only place with SQL: the verbs on jobs, each one atomic on every database.

Nobody else imports a driver or writes SQL. A verb is one transaction unless its text says otherwise; times are the
database's own. Every verb raises `StoreUnavailable` when the database is away (nothing was written) and has a
deadline of its own; a lost COMMIT is resolved inside, by reading back.
"""

from gateway.store.ending import JobTransaction
from gateway.store.script import Deferred
from gateway.store.store import Store
from gateway.store.turns import Asking, Turn, Verdict
from gateway.store.values import (
    Arrival,
    Dedupe,
    Finish,
    InstanceRow,
    JobFilter,
    Lane,
    Orphaned,
    PositionMove,
    Promotion,
    Report,
    Rescue,
    ScheduleFilter,
    SourcePosition,
    Statistics,
)

__all__ = [
    "Arrival",
    "Asking",
    "Dedupe",
    "Deferred",
    "Finish",
    "InstanceRow",
    "JobFilter",
    "JobTransaction",
    "Lane",
    "Orphaned",
    "PositionMove",
    "Promotion",
    "Report",
    "Rescue",
    "ScheduleFilter",
    "SourcePosition",
    "Statistics",
    "Store",
    "Turn",
    "Verdict",
]
