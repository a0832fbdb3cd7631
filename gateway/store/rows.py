"""Rows of all three tables as values, and jobs back.

Reading is total: whatever stands in a row, a value comes of it, so that no row can block the queue.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.errors import PayloadError
from gateway.job import JobHistory, JobStatus, NewJob, QueueJob, Schedule
from gateway.message import Json
from gateway.store.dialect import Dialect

JOB_COLUMNS = (
    "seq, id, typeid, method, protocol, direction, handler, metadata, payload, payloadencoding, result, statusid,"
    " priority, maxretries, retrycount, scheduledat, startedat, completedat, lasterror, parentjobid, active,"
    " referenceid, createdby, createdon, modifiedby, modifiedon, rowversionstamp, claimtoken, claimedby, crashcount,"
    " orderingkey, progress, timeout"
)
"""What `job_from_row` takes, in this order."""

HISTORY_COLUMNS = (
    "id, jobid, executionid, statusid, startedat, completedat, duration, result, errormessage, retryattempt,"
    " executedby, inputdata, outputdata, metadata"
)
"""What `history_from_row` takes, in this order."""

SCHEDULE_COLUMNS = (
    "id, name, handler, description, typeid, cronexpression, intervalseconds, startat, endat, maxexecutions,"
    " executioncount, enabled, {condition}, priority, maxretries, timeout, metadata, timezone, gap, overlap, misfire,"
    " misfirelimit, lastrunat, nextrunat, lasterror, active, referenceid, createdby, createdon, modifiedby, modifiedon,"
    " rowversionstamp"
)
"""What `schedule_from_row` takes, in this order; part of a template."""

NEW_COLUMNS = (
    ("id", "text"),
    ("typeid", "integer"),
    ("method", "text"),
    ("protocol", "text"),
    ("direction", "text"),
    ("handler", "text"),
    ("metadata", "text"),
    ("payload", "text"),
    ("payloadencoding", "text"),
    ("statusid", "integer"),
    ("priority", "integer"),
    ("maxretries", "integer"),
    ("scheduledat", "timestamp"),
    ("completedat", "timestamp"),
    ("lasterror", "text"),
    ("parentjobid", "text"),
    ("referenceid", "text"),
    ("createdby", "text"),
    ("orderingkey", "text"),
    ("timeout", "integer"),
)
"""What `new_row` gives, in this order, each with its type in PostgreSQL."""


def job_from_row(dialect: Dialect, row: Sequence[Any]) -> QueueJob:
    """Return the job of a row of `JOB_COLUMNS`."""
    return QueueJob(
        sequence=row[0],
        id=str(row[1]),
        type=_number(row[2]),
        method=_text(row[3]),
        protocol=_text(row[4]),
        direction=_text(row[5]),
        handler=_text(row[6]) or "",
        metadata=_document(row[7]) or {},
        payload=_payload(row[8], row[9]),
        result=_text(row[10]),
        status=_status(row[11]),
        priority=_number(row[12]),
        max_retries=_number(row[13]),
        retry_count=_number(row[14]),
        scheduled_at=_time(dialect, row[15]),
        started_at=_time(dialect, row[16]),
        completed_at=_time(dialect, row[17]),
        last_error=_text(row[18]),
        parent_id=_text(row[19]),
        active=bool(row[20]),
        reference_id=_text(row[21]),
        created_by=_text(row[22]),
        created_at=_time(dialect, row[23]),
        modified_by=_text(row[24]),
        modified_at=_time(dialect, row[25]),
        row_version=_number(row[26]),
        claim_token=row[27],
        claimed_by=_text(row[28]),
        crash_count=_number(row[29]),
        ordering_key=_text(row[30]),
        progress=_document(row[31]),
        timeout=None if row[32] is None else _number(row[32]),
    )


def history_from_row(dialect: Dialect, row: Sequence[Any]) -> JobHistory:
    """Return the attempt of a row of `HISTORY_COLUMNS`."""
    return JobHistory(
        id=str(row[0]),
        job_id=str(row[1]),
        execution_id=str(row[2]),
        status=_status(row[3]),
        started_at=_time(dialect, row[4]) or datetime.fromtimestamp(0, UTC),
        completed_at=_time(dialect, row[5]),
        duration=None if row[6] is None else _number(row[6]),
        result=_text(row[7]),
        error=_text(row[8]),
        retry_attempt=_number(row[9]),
        executed_by=_text(row[10]),
        input_data=_text(row[11]),
        output_data=_text(row[12]),
        metadata=_document(row[13]),
    )


def schedule_from_row(dialect: Dialect, row: Sequence[Any]) -> Schedule:
    """Return the schedule of a row of `SCHEDULE_COLUMNS`."""
    return Schedule(
        id=str(row[0]),
        name=str(row[1]),
        handler=_text(row[2]) or "",
        description=_text(row[3]),
        type=_number(row[4]),
        cron=_text(row[5]),
        interval=None if row[6] is None else _number(row[6]),
        start_at=_time(dialect, row[7]),
        end_at=_time(dialect, row[8]),
        max_executions=_number(row[9]),
        execution_count=_number(row[10]),
        enabled=bool(row[11]),
        condition=_text(row[12]),
        priority=_number(row[13]),
        max_retries=_number(row[14]),
        timeout=_number(row[15]),
        metadata=_document(row[16]) or {},
        time_zone=_text(row[17]),
        gap=_text(row[18]),
        overlap=_text(row[19]),
        misfire=_text(row[20]),
        misfire_limit=None if row[21] is None else _number(row[21]),
        last_run_at=_time(dialect, row[22]),
        next_run_at=_time(dialect, row[23]),
        last_error=_text(row[24]),
        active=bool(row[25]),
        reference_id=_text(row[26]),
        created_by=_text(row[27]),
        created_at=_time(dialect, row[28]),
        modified_by=_text(row[29]),
        modified_at=_time(dialect, row[30]),
        row_version=_number(row[31]),
    )


def needs_clock(jobs: Sequence[NewJob]) -> bool:
    """Say whether `new_row` needs the database's time for any of these."""
    return any(job.delay > 0 or job.scheduled_at is not None or job.status.final for job in jobs)


def new_row(dialect: Dialect, job: NewJob, now: datetime | None) -> tuple[Any, ...]:
    """Return the values of `NEW_COLUMNS` for a job. Raises `PayloadError` if its metadata is no JSON."""
    payload, encoding = encode_payload(job.payload)
    status, due = job.status, None
    if now is not None and not status.final:
        due = job.scheduled_at
        if job.delay > 0:
            due = later(now, job.delay)
        if due is not None and due > now and status is JobStatus.PENDING:
            status = JobStatus.SCHEDULED
    return (
        job.id,
        int(job.type),
        job.method,
        job.protocol,
        str(job.direction),
        job.handler,
        encode_document(job.metadata),
        payload,
        encoding,
        int(status),
        job.priority,
        job.max_retries,
        None if due is None else dialect.moment(due),
        dialect.moment(now) if now is not None and status.final else None,
        job.error,
        job.parent_id,
        job.reference_id,
        job.created_by,
        job.ordering_key,
        job.timeout,
    )


def later(now: datetime, seconds: float) -> datetime:
    """Return the time `seconds` after `now`, at most the year 9999."""
    return now + min(timedelta(seconds=min(seconds, 1e11)), datetime(9999, 12, 31, tzinfo=UTC) - now)


def encode_payload(payload: bytes | None) -> tuple[str | None, str | None]:
    """Return the columns `payload` and `payloadencoding` from which exactly these bytes can be read back."""
    if payload is None:
        return None, None
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = "\x00"
    return (base64.b64encode(payload).decode(), "base64") if "\x00" in text else (text, None)


def encode_document(value: Json | Sequence[str]) -> str:
    """Return strict JSON text that every database takes. Raises `PayloadError`."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"the metadata is not JSON: {error}") from error
    if "\\u0000" in text:
        text = json.dumps(_without_nul(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _without_nul(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\x00", "\ufffd")
        case dict():
            return {_without_nul(key): _without_nul(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nul(item) for item in value]
        case _:
            return value


def _payload(value: Any, encoding: Any) -> bytes | None:
    if value is None:
        return None
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if not isinstance(data, bytes):
        data = str(data).encode()
    if encoding != "base64":
        return data
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return data


def _document(value: Any) -> Json | None:
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _number(value: Any) -> int:
    if isinstance(value, int):
        return value
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _status(value: Any) -> JobStatus:
    """Return Failed for a number that is no status: it is never run either."""
    try:
        return JobStatus(value)
    except ValueError:
        return JobStatus.FAILED


def _time(dialect: Dialect, value: Any) -> datetime | None:
    try:
        return dialect.instant(value)
    except (ValueError, AttributeError, OverflowError):
        return None
