"""`gateway send`: one message through a configured connector, as a durable outbound job."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.common import Code, ConfigOption, JsonOption, fail, finish, load, opened, print_json
from gateway.config import Config
from gateway.job import PUBLISH, Direction, JobStatus, JobType, NewJob, QueueJob
from gateway.message import Message
from gateway.plugins import did_you_mean

_POLL_SECONDS = 0.2


def send(
    connector: Annotated[str, typer.Argument(help="Name of a connector in the configuration.")],
    topic: Annotated[str, typer.Argument(help="Topic, destination, hub method or path to send to.")],
    body: Annotated[str | None, typer.Option("--body", "-b", help="The message's text.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="File with the body; '-': standard input.")] = None,
    key: Annotated[str | None, typer.Option("--key", "-k", help="Key; messages of one key are sent in order.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="'name: value', may be repeated.")] = None,
    content_type: Annotated[str | None, typer.Option(help="Media type of the body.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait until it was delivered or failed.", min=0)] = 0.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one message through a connector, and print its job's id.

    The message is stored first; a running gateway of the same database delivers it, however often it takes.
    """
    settings = load(config)
    if connector not in settings.connectors:
        names = list(settings.connectors)
        near = did_you_mean(connector, names) or f", there are: {', '.join(names) or 'none'}"
        fail(f"no connector is named '{connector}'{near}", Code.NOT_FOUND)
    message = Message(
        topic=topic,
        body=_body(body, file),
        key=None if key is None else key.encode("utf-8", "surrogateescape"),
        headers=tuple(_header(text) for text in header or ()),
        content_type=content_type,
    )
    job = finish(_send(settings, _job(settings, connector, message), wait))
    _report(job, wait=wait, as_json=as_json)


def _job(config: Config, connector: str, message: Message) -> NewJob:
    from gateway.effects import ordering_key

    return NewJob(
        handler=PUBLISH,
        payload=message.body,
        metadata={**message.to_metadata(), "connector": connector},
        type=JobType.MANUAL,
        direction=Direction.OUTBOUND,
        protocol=config.connectors[connector].type,
        max_retries=config.jobs.max_retries,
        created_by="command",
        ordering_key=None if message.key is None else ordering_key(connector, message.key),
    )


async def _send(config: Config, job: NewJob, seconds: float) -> QueueJob | NewJob:
    """Store the job; return it as it is when it has ended, or when the time is up."""
    async with opened(config) as store:
        await store.enqueue([job])
        found: QueueJob | None = None
        deadline = asyncio.get_running_loop().time() + seconds
        while seconds and not (found and found.status.final) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            found = await store.get(job.id)
        return found or job


def _report(job: QueueJob | NewJob, *, wait: float, as_json: bool) -> None:
    from gateway.admin.rows import job_as_json, status_word

    if as_json:
        print_json(job_as_json(job, payload=False) if isinstance(job, QueueJob) else {"id": job.id})
    else:
        typer.echo(job.id)
    if not wait or job.status is JobStatus.COMPLETED:
        return
    reason = job.last_error if isinstance(job, QueueJob) else None
    if isinstance(job, QueueJob) and job.status.final:
        fail(f"it was not delivered: {reason or status_word(job.status)}")
    fail(
        f"not delivered within {wait:g} s, it is still tried" + (f": {reason}" if reason else "; is a gateway running?")
    )


def _body(body: str | None, file: Path | None) -> bytes:
    if body is not None and file is not None:
        fail("--body and --file exclude each other", Code.USAGE)
    if file is None:
        return (body or "").encode("utf-8", "surrogateescape")
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}", Code.USAGE)


def _header(text: str) -> tuple[str, bytes]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        fail("--header needs 'name: value'", Code.USAGE)
    return name.strip(), value.strip().encode("utf-8", "surrogateescape")
