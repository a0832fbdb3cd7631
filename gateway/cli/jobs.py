"""`gateway jobs`: look at jobs in the database, and act on them. Works whether the gateway runs or not."""

import json
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from gateway.cli.common import Code, ConfigOption, JsonOption, clean, fail, note, out, print_json, table, with_store
from gateway.job import PUBLISH, Direction, JobHistory, JobStatus, JobType, NewJob, QueueJob
from gateway.message import Json

if TYPE_CHECKING:
    from gateway.store import Store

app = typer.Typer(name="jobs", help="List, show, create, cancel and retry jobs.", no_args_is_help=True)


class Status(StrEnum):
    """A job's status as a word."""

    PENDING = "pending"
    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRYING = "retrying"
    CANCELLED = "cancelled"
    SCHEDULED = "scheduled"


JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]
_STYLES = {JobStatus.COMPLETED: "green", JobStatus.FAILED: "bold red", JobStatus.RETRYING: "yellow"}


@app.command("list")
def list_jobs(
    config: ConfigOption = None,
    status: Annotated[Status | None, typer.Option(help="Only jobs of this status.")] = None,
    handler: Annotated[str | None, typer.Option(help="Only jobs of this handler.")] = None,
    direction: Annotated[Direction | None, typer.Option(help="Only jobs of this direction.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only jobs that this job has made.", metavar="ID")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    before: Annotated[int | None, typer.Option(help="Only jobs older than this seq, for the next page.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first."""
    from gateway.admin.rows import job_as_json
    from gateway.store import JobFilter

    wanted = JobFilter(
        status=JobStatus[status.name] if status else None,
        handler=handler,
        direction=direction,
        parent_id=parent,
        before=before,
        limit=limit,
    )
    jobs = with_store(config, lambda store: store.list(wanted))
    if as_json:
        print_json([job_as_json(job, payload=False) for job in jobs])
        return
    rows = [(j.id, _status(j.status), j.handler, j.attempt, _time(j.created_at), j.last_error) for j in jobs]
    out().print(table(("id", "status", "handler", "attempt", "created", "last error"), rows))
    if len(jobs) == limit:
        note(f"there may be more: --before {jobs[-1].sequence}")


@app.command()
def show(job_id: JobId, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a job with its payload, and each of its attempts."""
    from gateway.admin.rows import history_as_json, job_as_json

    async def work(store: "Store") -> tuple[QueueJob | None, list[JobHistory]]:
        return await store.get(job_id), await store.history(job_id)

    job, histories = with_store(config, work)
    if job is None:
        _not_found(job_id)
    row = job_as_json(job) | {"histories": [history_as_json(history) for history in histories]}
    if as_json:
        print_json(row)
        return
    console = out()
    _print_job(console, job, row)
    console.print("\nattempts" if histories else "\nno attempt has ended yet", style="bold")
    rows = [
        (h.retry_attempt + 1, _status(h.status), _time(h.started_at), f"{h.duration or 0} ms", h.executed_by, h.error)
        for h in histories
    ]
    if rows:
        console.print(table(("n", "status", "started", "took", "by", "error"), rows))


@app.command()
def create(
    handler: Annotated[str, typer.Argument(help="Handler that runs it.")],
    payload: Annotated[str, typer.Option("--payload", "-p", help="What the handler gets as the message's body.")] = "",
    metadata: Annotated[str, typer.Option(help="JSON object, added to the job's metadata.")] = "{}",
    priority: Annotated[int, typer.Option(min=-1_000_000, max=1_000_000, help="Higher runs first.")] = 0,
    max_retries: Annotated[int, typer.Option(min=0, max=1000, help="Attempts after the first.")] = 3,
    delay: Annotated[float, typer.Option(min=0, help="Seconds until it may run.")] = 0.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a job for a handler, and print its id. A running gateway sees it at its next poll at the latest."""
    from gateway.effects import encode_body

    if handler == PUBLISH or not handler.strip():
        fail("messages are sent with `gateway send`; a job needs the name of a handler", Code.USAGE)
    job = NewJob(
        handler=handler,
        payload=encode_body(payload)[0],
        metadata=_object(metadata),
        type=JobType.MANUAL,
        priority=priority,
        max_retries=max_retries,
        delay=delay,
        created_by="command",
    )
    with_store(config, lambda store: store.enqueue([job]))
    _tell(job.id, as_json=as_json)


@app.command()
def cancel(
    job_id: JobId,
    reason: Annotated[str, typer.Option(help="Why, kept with the job.")] = "cancelled by an operator",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a job that is not finished. If it is running, what it does is rolled back."""
    job = with_store(config, lambda store: store.cancel(job_id, reason))
    _changed(job, job_id, JobStatus.CANCELLED, as_json=as_json)


@app.command()
def retry(job_id: JobId, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a failed or cancelled job run again."""
    job = with_store(config, lambda store: store.retry(job_id))
    _changed(job, job_id, JobStatus.PENDING, as_json=as_json)


def _changed(job: QueueJob | None, job_id: str, wanted: JobStatus, *, as_json: bool) -> None:
    from gateway.admin.rows import job_as_json, status_word

    if job is None:
        _not_found(job_id)
    if job.status is not wanted:
        fail(f"nothing was changed: job {job_id} is {status_word(job.status)}")
    if as_json:
        print_json(job_as_json(job, payload=False))
    else:
        note(f"job {job_id} is {status_word(job.status)}")


def _not_found(job_id: str) -> NoReturn:
    fail(f"there is no job {job_id}; `gateway jobs list` shows the newest", Code.NOT_FOUND)


def _tell(job_id: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": job_id})
    else:
        typer.echo(job_id)


def _object(text: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        fail("""--metadata needs a JSON object, such as '{"source": "test"}'""", Code.USAGE)
    return value


def _print_job(console: Console, job: QueueJob, row: Json) -> None:
    console.print(Text.assemble((job.id, "bold"), "  ", _status(job.status)))
    apart = ("id", "status", "payload", "histories", "metadata")
    shown = {key: value for key, value in row.items() if key not in apart}
    lines = [(Text(key, "cyan"), value) for key, value in shown.items() if value is not None]
    console.print(table(("", ""), lines))
    console.print("\nmetadata", style="bold")
    console.print(clean(json.dumps(job.metadata, indent=2, ensure_ascii=False)), markup=False)
    console.print("\npayload" + (f" ({row['payloadencoding']})" if row["payloadencoding"] else ""), style="bold")
    console.print("none" if row["payload"] is None else clean(row["payload"]), markup=False)


def _status(status: int) -> Text:
    from gateway.admin.rows import status_word

    return Text(status_word(status), _STYLES.get(JobStatus(status), "") if status in set(JobStatus) else "")


def _time(value: datetime | None) -> str:
    return "" if value is None else value.astimezone().isoformat(" ", "milliseconds")
