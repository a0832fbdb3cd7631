"""Rows as JSON: the tables' own column names, and `status` as a word beside `statusid`."""

import base64
from datetime import UTC, datetime
from typing import Any

from gateway.job import JobHistory, JobStatus, QueueJob, Schedule
from gateway.message import Json
from gateway.store import InstanceRow

MAX_PAYLOAD = 1024 * 1024
"""Bytes of a payload that are shown."""


def job_as_json(job: QueueJob, *, payload: bool = True) -> Json:
    """Return a job's row. Without `payload` these two columns are left out, as in lists."""
    row: Json = {
        "id": job.id,
        "seq": job.sequence,
        "typeid": job.type,
        "method": job.method,
        "protocol": job.protocol,
        "direction": job.direction,
        "handler": job.handler,
        "metadata": job.metadata,
        "result": job.result,
        "statusid": int(job.status),
        "status": status_word(job.status),
        "priority": job.priority,
        "maxretries": job.max_retries,
        "retrycount": job.retry_count,
        "scheduledat": moment(job.scheduled_at),
        "startedat": moment(job.started_at),
        "completedat": moment(job.completed_at),
        "lasterror": job.last_error,
        "parentjobid": job.parent_id,
        "active": job.active,
        "referenceid": job.reference_id,
        "createdby": job.created_by,
        "createdon": moment(job.created_at),
        "modifiedby": job.modified_by,
        "modifiedon": moment(job.modified_at),
        "rowversionstamp": job.row_version,
        "claimedby": job.claimed_by,
        "crashcount": job.crash_count,
        "orderingkey": job.ordering_key,
        "timeout": job.timeout,
        "progress": job.progress,
    }
    return row | _payload(job.payload) if payload else row


def history_as_json(history: JobHistory) -> Json:
    """Return the row of one attempt."""
    return {
        "id": history.id,
        "jobid": history.job_id,
        "executionid": history.execution_id,
        "statusid": int(history.status),
        "status": status_word(history.status),
        "startedat": moment(history.started_at),
        "completedat": moment(history.completed_at),
        "duration": history.duration,
        "result": history.result,
        "errormessage": history.error,
        "retryattempt": history.retry_attempt,
        "executedby": history.executed_by,
        "inputdata": history.input_data,
        "outputdata": history.output_data,
        "metadata": None if history.metadata is None else dict(history.metadata),
    }


def schedule_as_json(row: Schedule) -> Json:
    """Return a schedule's row."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "typeid": row.type,
        "handler": row.handler,
        "cronexpression": row.cron,
        "intervalseconds": row.interval,
        "timezone": row.time_zone,
        "startat": moment(row.start_at),
        "endat": moment(row.end_at),
        "maxexecutions": row.max_executions,
        "executioncount": row.execution_count,
        "enabled": row.enabled,
        "condition": row.condition,
        "priority": row.priority,
        "maxretries": row.max_retries,
        "timeout": row.timeout,
        "misfire": row.misfire,
        "misfirelimit": row.misfire_limit,
        "gap": row.gap,
        "overlap": row.overlap,
        "metadata": row.metadata,
        "lastrunat": moment(row.last_run_at),
        "nextrunat": moment(row.next_run_at),
        "lasterror": row.last_error,
        "active": row.active,
        "referenceid": row.reference_id,
        "createdby": row.created_by,
        "createdon": moment(row.created_at),
        "modifiedby": row.modified_by,
        "modifiedon": moment(row.modified_at),
        "rowversionstamp": row.row_version,
    }


def instance_as_json(row: InstanceRow) -> Json:
    """Return an instance. `age` and `reportage` are seconds, by the database's clock, since heartbeat and report."""
    return {
        "id": row.id,
        "name": row.name,
        "version": row.version,
        "host": row.host,
        "pid": row.pid,
        "startedat": moment(row.started_at),
        "heartbeatat": moment(row.heartbeat_at),
        "age": round(row.age, 3),
        "alive": row.alive,
        "reportage": None if row.report_age is None else round(row.report_age, 3),
        "running": row.running,
        "workers": row.workers,
        "connectors": row.connectors,
        "handlers": row.handlers,
    }


def status_word(status: int) -> str:
    """Return a status as a lower-case word, also one that somebody made up in SQL."""
    return JobStatus(status).name.lower() if status in set(JobStatus) else str(status)


def moment(value: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _payload(payload: bytes | None) -> dict[str, Any]:
    if payload is None:
        return {"payload": None, "payloadencoding": None}
    shown = payload[:MAX_PAYLOAD]
    more = {"payloadsize": len(payload)} if len(shown) < len(payload) else {}
    try:
        text = shown.decode()
    except UnicodeDecodeError:
        text = "\x00"
    if "\x00" not in text:
        return {"payload": text, "payloadencoding": None, **more}
    return {"payload": base64.b64encode(shown).decode(), "payloadencoding": "base64", **more}
