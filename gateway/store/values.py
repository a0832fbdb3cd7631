"""What goes into the store's verbs and comes out of them, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import NamedTuple

from gateway.effects import Lock
from gateway.job import PUBLISH, JobStatus, NewJob, QueueJob, new_id
from gateway.message import Json
from gateway.outcome import Outcome
from gateway.store.script import Deferred


class Lane:
    """Names of the lanes from which jobs are claimed; every ready job stands in one."""

    RUN = "run"
    """For the executor, many at once."""
    ALONE = "alone"
    """Crash suspects: for the executor, one at a time in its instance."""

    DUE = "due"
    """No lane to claim from: a job will be ready later, so when to promote next may have changed."""
    PLAN = "plan"
    """No lane to claim from: a schedule was changed."""
    LOCK = "lock"
    """No lane to claim from: a lock was given back."""

    @staticmethod
    def send(connector: str) -> str:
        """Return the lane of the messages a connector is to publish."""
        return f"send:{connector[:250]}"

    @staticmethod
    def of(job: NewJob | QueueJob) -> str:
        """Return the lane a job without crashes will stand in when it is due."""
        return Lane.send(str(job.metadata.get("connector") or "")) if job.handler == PUBLISH else Lane.RUN


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How one attempt ended, with all that must commit with it.

    `outgoing` (what the handler published and enqueued) and `deferred` (its deferred writes, in order) count only
    with Completed; so do its `locks`, which must be its own still. `seconds` is how long the attempt took; `output`
    goes into the history's `outputdata`.
    """

    job: QueueJob
    outcome: Outcome
    seconds: float = 0.0
    outgoing: Sequence[NewJob] = ()
    deferred: Sequence[Deferred] = ()
    locks: Sequence[Lock] = ()
    output: str | None = None
    history_id: str = field(default_factory=new_id)
    """Key of the history row: what a lost COMMIT is read back by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedupe:
    """Makes redeliveries one job: `key` is unique within the connector and `scope`. `body_hash` has 16 bytes."""

    scope: str
    key: str
    body_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionMove:
    """Moves a source's position from `held` (None: it was never stored) to `next_offset`."""

    connector: str
    cluster: str
    topic: str
    partition: int
    topic_id: str = ""
    held: int | None
    next_offset: int
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePosition:
    """Where a source goes on: `next_offset` is the first offset not in the database. `topic_id` may be unknown, ''."""

    connector: str
    cluster: str
    topic: str
    partition: int
    topic_id: str = ""
    next_offset: int
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One received message as the job it shall become."""

    job: NewJob
    dedupe: Dedupe | None = None


@dataclass(frozen=True, slots=True)
class Promotion:
    """`count` jobs became ready; the next one will in `next_due` seconds (None: none waits for a time)."""

    count: int
    next_due: float | None


class Rescue(NamedTuple):
    """`rescued` jobs of dead instances are ready again; `failed` ones crashed too often and are Failed."""

    rescued: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list, newest first. `before` is the `sequence` of the last job of the page before."""

    status: JobStatus | None = None
    handler: str | None = None
    direction: str | None = None
    parent_id: str | None = None
    before: int | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFilter:
    """Which schedules to list, in order of name. `after` is the name of the last one of the page before."""

    enabled: bool | None = None
    handler: str | None = None
    after: str | None = None
    limit: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphaned:
    """Ready jobs that no living instance would run, and how many instances live.

    Nobody is named while an instance has not told yet what it knows, a moment after its start.
    """

    living: int = 0
    handlers: Mapping[str, int] = field(default_factory=dict)
    """By handler, where nobody knows it."""
    connectors: Mapping[str, int] = field(default_factory=dict)
    """Messages to be published, by connector, where nobody has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What operators look at: of active rows only."""

    status_counts: Mapping[int, int]
    """By `statusid`."""
    ready: Mapping[str, int]
    """Jobs that could run now or stand in line, by lane."""
    ready_handlers: Mapping[str, int]
    """The same by handler."""
    orphaned: "Orphaned"
    oldest_ready: float | None
    """Seconds since the oldest of them was created."""
    due_schedules: int = 0
    """Schedules whose tick has come and that have not been looked at yet."""
    schedule_lag: float | None = None
    """Seconds since the oldest of these ticks; None if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a process tells of itself: its load, its connectors by name, and the handlers whose jobs it runs."""

    running: int
    """Handlers that run."""
    workers: int
    """Handlers that may run at the same time; 0 if it runs no jobs."""
    connectors: Json
    handlers: Sequence[str]
    at: float = field(default_factory=monotonic)
    """`time.monotonic()` when it was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRow:
    """One gateway process as the database knows it. What it reports is None until its first report.

    `age` and `report_age` are seconds, by the database's clock, since its last heartbeat and since it made its last
    report: a process whose event loop is stuck goes on beating, but reports nothing new.
    """

    id: str
    name: str
    version: str
    host: str
    pid: int
    started_at: datetime
    heartbeat_at: datetime
    age: float
    alive: bool
    """False once others would rescue its jobs: its lease is over, or the session lock it took is free."""
    report_age: float | None = None
    running: int | None = None
    workers: int | None = None
    connectors: Json | None = None
    handlers: Sequence[str] | None = None
