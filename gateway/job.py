"""Rows as values: what a job, its history and a schedule are, field by field.

Python names here, the original column names in `store/tables.py`. All times are aware and in UTC.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from gateway.message import Json, Message

PUBLISH = "gateway.publish"
"""The handler name of outbound jobs; the outbox runs them, never the executor."""
MAX_PRIORITY = 1_000_000
"""A priority is at most so far from 0, in both directions."""


class JobStatus(IntEnum):
    """`statusid`. Pending and Queued are both ready to run; Queued was promoted when it became due."""

    PENDING = 0
    QUEUED = 1
    PROCESSING = 2
    COMPLETED = 3
    FAILED = 4
    RETRYING = 5
    CANCELLED = 6
    SCHEDULED = 7

    @property
    def final(self) -> bool:
        """Whether nothing will happen to the job any more by itself."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


class JobType(IntEnum):
    """`typeid`: where a job came from."""

    INTEGRATION = 0
    SCHEDULED = 1
    MANUAL = 2
    SYSTEM = 3


class Direction(StrEnum):
    """`direction`: from a broker, to a broker, or neither."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"
    INTERNAL = "internal"


def new_id() -> str:
    """Return a UUIDv7 as text: ids made later sort later, so that inserts touch one end of an index."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be inserted. `delay` (seconds, by the database's clock) makes it Scheduled instead of Pending.

    `status`, `error`: set only to store what can never run, as a Failed row with its reason.
    """

    handler: str
    payload: bytes | None = None
    metadata: Json = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    type: JobType = JobType.INTEGRATION
    direction: Direction = Direction.INTERNAL
    method: str | None = None
    protocol: str | None = None
    priority: int = 0
    max_retries: int = 3
    delay: float = 0.0
    scheduled_at: datetime | None = None
    parent_id: str | None = None
    reference_id: str | None = None
    created_by: str | None = None
    ordering_key: str | None = None
    timeout: int | None = None
    status: JobStatus = JobStatus.PENDING
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueJob:
    """One row of `queue_jobs`, as it was read. Rows inserted by SQL may lack everything that is optional here."""

    id: str
    """`id`. A UUIDv7 when the gateway made it; any string when SQL did."""
    sequence: int
    """`seq`, given by the database at insert: first in, first out within a priority."""
    type: int = 0
    """`typeid`, see `JobType`."""
    method: str | None = None
    protocol: str | None = None
    """`protocol`: http, kafka, mqtt, activemq, signalr; None for internal jobs."""
    direction: str | None = None
    handler: str = ""
    """`handler`: the name under which a handler is registered, never code."""
    metadata: Json = field(default_factory=dict)
    """`metadata`: the message's headers, key, … and the entry's own metadata. {} when NULL or no JSON object."""
    payload: bytes | None = None
    """`payload`, exactly the bytes that came in. None is a tombstone."""
    result: str | None = None
    """`result`: JSON text, written with Completed."""
    status: JobStatus = JobStatus.PENDING
    priority: int = 0
    """Higher runs first; one lower after each failed attempt."""
    max_retries: int = 3
    retry_count: int = 0
    """`retrycount`: failed attempts so far. Crashes, drains and database outages do not count."""
    scheduled_at: datetime | None = None
    """`scheduledat`: not before this time; None is now."""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    """`completedat`: set with Completed, Failed and Cancelled only."""
    last_error: str | None = None
    parent_id: str | None = None
    """`parentjobid`: the job whose handler enqueued or published this one."""
    active: bool = True
    reference_id: str | None = None
    created_by: str | None = None
    created_at: datetime | None = None
    modified_by: str | None = None
    modified_at: datetime | None = None
    row_version: int = 1
    claim_token: str | None = None
    """`claimtoken`: random, new with every claim; None unless Processing. All writes of a claim are fenced by it."""
    claimed_by: str | None = None
    """`claimedby`: the incarnation that claimed it last, see `instance`."""
    crash_count: int = 0
    """`crashcount`: how often a process died holding it."""
    ordering_key: str | None = None
    """`orderingkey`: jobs of one key run one after the other, in order of `seq`; None is no order."""
    progress: Json | None = None
    """`progress`: what the handler last reported, `{"fraction": 0.5, "note": "…"}`."""
    timeout: int | None = None
    """`timeout`: seconds this job's handler may take; None: as the handler says."""

    @property
    def attempt(self) -> int:
        """1 on the first run."""
        return self.retry_count + 1

    @property
    def message(self) -> Message:
        """The message as it came in; its `message_id` is the job's id."""
        return Message.from_row(self.payload, self.metadata, message_id=self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHistory:
    """One row of `job_histories`: one attempt that came to an end."""

    id: str
    job_id: str
    execution_id: str
    """The claim token of the attempt, unique per attempt."""
    status: JobStatus
    started_at: datetime
    completed_at: datetime | None = None
    duration: int | None = None
    """Milliseconds."""
    result: str | None = None
    """`Success`, `Error: …` (tried again while attempts are left), `Discarded: …` (none could help), `Cancelled`."""
    error: str | None = None
    retry_attempt: int = 0
    """`retryattempt`: failed attempts before this one."""
    executed_by: str | None = None
    input_data: str | None = None
    output_data: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One row of `jobs`: what makes a job again and again, at its ticks. Rows by SQL may lack what is optional here."""

    id: str = field(default_factory=new_id)
    name: str
    """Unique: what YAML, commands and REST call it by."""
    handler: str
    description: str | None = None
    type: int = JobType.SCHEDULED
    """`typeid`: System (3) for the gateway's own upkeep; its jobs are of that type too."""
    cron: str | None = None
    """`cronexpression`: five fields, six with seconds. Either this or `interval`."""
    interval: int | None = None
    """`intervalseconds`: ticks are `start_at` (else `created_at`) and every so many seconds after it."""
    start_at: datetime | None = None
    """`startat`: no tick is earlier."""
    end_at: datetime | None = None
    """`endat`: no tick is later."""
    max_executions: int = 0
    """`maxexecutions`: no tick once `execution_count` has reached it; 0 is no limit."""
    execution_count: int = 0
    """`executioncount`: ticks that have made a job."""
    enabled: bool = True
    condition: str | None = None
    """`condition`: a SELECT or an expression; a tick at which it does not hold makes no job."""
    priority: int = 0
    max_retries: int = 3
    timeout: int = 300
    """Seconds a job of this schedule may take, whatever its handler says."""
    metadata: Json = field(default_factory=dict)
    """Goes into the metadata of each job."""
    time_zone: str | None = None
    """`timezone`: the IANA name of the zone whose clock the cron fields mean; None is UTC."""
    gap: str | None = None
    """What happens to a tick at a local time that the clock leaps over: `run_at_end` (None) or `skip`."""
    overlap: str | None = None
    """What happens to a tick at a local time that comes twice: `first` (None) or `both`."""
    misfire: str | None = None
    """What becomes of ticks that nobody was there for: `skip`, `once` (None) or `all`."""
    misfire_limit: int | None = None
    """`misfirelimit`: how many of them `all` makes up for at most."""
    last_run_at: datetime | None = None
    """`lastrunat`: the last tick that made a job."""
    next_run_at: datetime | None = None
    """`nextrunat`: the next tick, as planned; None once there is none, and until a new row was planned."""
    last_error: str | None = None
    """`lasterror`: why it makes no jobs, or made none at its last tick; None if all is well."""
    active: bool = True
    reference_id: str | None = None
    created_by: str | None = None
    created_at: datetime | None = None
    modified_by: str | None = None
    modified_at: datetime | None = None
    row_version: int = 1
