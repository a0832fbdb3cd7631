"""The handlers that are always there, so that a gateway is useful without a line of Python.

| name | what it does |
|---|---|
| `gateway.log` | writes one log line per message, without its body |
| `gateway.forward` | sends the message on, to the connector and topic of the entry's `to` |
| `gateway.http` | sends the body to the URL of the entry's `to` |
| `system.cleanup.histories` | deletes finished jobs and their histories after their retention |
| `system.retry.failed` | gives jobs that failed lately, after using up their attempts, one more |
"""

import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from yarl import URL

from gateway.connector import ForwardTarget
from gateway.errors import Discard
from gateway.handler import Context, handler
from gateway.message import Json, Message
from gateway.trace import is_traced, trace_of
from gateway.web.caller import FRAMING, Call, Caller, safe_headers
from gateway.web.egress import origin

logger = logging.getLogger(__name__)

HOPS = "gateway-hops"
"""Header that counts how often a message was forwarded."""
MAX_HOPS = 16
HTTP_TIMEOUT = 30.0
_NOT_FORWARDED = FRAMING | frozenset(
    "content-type authorization cookie x-api-key webhook-signature webhook-id webhook-timestamp "
    f"idempotency-key message-id x-message-id {HOPS}".split()
)
"""Headers that describe one hop, prove who sent it, or name it: they would be wrong on the next one."""
_BRACES = re.compile(r"\{([^{}]*)\}")


async def log(context: Context) -> Json:
    """Log that a message came in, and how large it is."""
    message = context.message
    logger.info(
        "message received",
        extra={
            "job": context.job.id,
            "topic": message.topic,
            "bytes": len(message.body),
            "key": _printable(message.key),
        },
    )
    return {"topic": message.topic, "bytes": len(message.body)}


async def forward(context: Context) -> Json:
    """Send the message on. Without `to.topic` and `to.key` those it came with are kept."""
    to, message = _target(context), context.message
    if to.connector is None:
        raise Discard("gateway.forward needs to.connector")
    topic = message.topic if to.topic is None else _fill(to.topic, message.parameters)
    key = message.key if to.key is None else _fill(to.key, message.parameters).encode()
    sent = await context.publish(
        to.connector,
        topic=topic,
        body=None if message.tombstone else message.body,
        key=key,
        headers=_onward(message, to),
        content_type=message.content_type,
    )
    return {"connector": to.connector, "topic": topic, "message": sent}


@handler(timeout=HTTP_TIMEOUT + 5)
async def call(context: Context) -> Json:
    """Send the body to a URL and return its answer, up to 64 kB. A 2xx is success.

    No answer, 408, 425, 429 and 5xx are tried again, after `Retry-After` if that is given; any other answer fails
    the job for good. Redirects are not followed. `Idempotency-Key` is the job's id, the same on every attempt.
    """
    to, message = _target(context), context.message
    url = _url(to, message)
    trace = {} if is_traced(to.headers) else trace_of(context.job.metadata)
    headers = [*to.headers.items(), ("Idempotency-Key", context.job.id), *trace.items()]
    if message.content_type is not None and not any(name.lower() == "content-type" for name in to.headers):
        headers.append(("Content-Type", message.content_type))
    async with Caller(trusted=[origin(url)], timeout=HTTP_TIMEOUT) as caller:
        answer = await caller.call(Call(to.method, url, safe_headers(headers), message.body))
    return {"answer": answer}


async def cleanup_histories(context: Context) -> Json:
    """Delete what finished longer ago than `jobs.job_history_retention_days`, or than the metadata's `days`.

    Without `days`, a retention of 0 keeps everything.
    """
    maintenance = context.maintenance
    if maintenance is None:
        raise Discard("system.cleanup.histories runs only inside a gateway")
    days = context.job.metadata.get("days")
    if days is not None and not (isinstance(days, int) and days > 0):
        raise Discard(f"metadata.days is a number of days above 0, not {days!r}")
    return {"deleted": await maintenance.prune(days)}


async def retry_failed(context: Context) -> Json:
    """Give failed jobs one more attempt: those of the last `hours` (24) that failed fewer than `attempts` (10) times.

    Both may stand in the job's metadata. Retriable is an error that is tried again while attempts are left; what was
    discarded or refused for good, never ran, or killed its process is left. So a job gets at most one attempt more
    each time, and none once it has had ten.
    """
    maintenance = context.maintenance
    if maintenance is None:
        raise Discard("system.retry.failed runs only inside a gateway")
    hours, attempts = context.job.metadata.get("hours", 24), context.job.metadata.get("attempts", 10)
    if not all(isinstance(number, int | float) and number > 0 for number in (hours, attempts)):
        raise Discard("metadata.hours and metadata.attempts are numbers above 0")
    return {"retried": await maintenance.retry_failed(hours=float(hours), attempts=int(attempts))}


def _target(context: Context) -> ForwardTarget:
    try:
        return ForwardTarget.model_validate(context.job.metadata.get("to"))
    except ValidationError as error:
        problems = "; ".join(
            f"to.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise Discard(f"the job's metadata has no usable `to`: {problems}") from error


def _fill(template: str, parameters: Mapping[str, str], *, encoded: bool = False) -> str:
    """Replace `{name}` by the capture of that name."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in parameters:
            raise Discard(f"{template!r} wants {{{name}}}, the message has {', '.join(parameters) or 'no captures'}")
        if encoded and parameters[name] in (".", ".."):
            raise Discard(f"{{{name}}} is {parameters[name]!r}, which would be another path")
        return quote(parameters[name], safe="") if encoded else parameters[name]

    return _BRACES.sub(value, template)


def _onward(message: Message, to: ForwardTarget) -> list[tuple[str, str | bytes]]:
    hops = message.header(HOPS)
    count = int(hops) if hops is not None and hops.isdecimal() and len(hops) < 6 else 0
    if count >= MAX_HOPS:
        raise Discard(f"the message was forwarded {count} times already: its targets form a loop")
    replaced = _NOT_FORWARDED | {name.lower() for name in to.headers}
    kept: list[tuple[str, str | bytes]] = [pair for pair in message.headers if pair[0].lower() not in replaced]
    return [*kept, *to.headers.items(), (HOPS, str(count + 1))]


def _url(to: ForwardTarget, message: Message) -> URL:
    """Return the URL to call. What a message says goes into its path and query, encoded, never into its host."""
    if to.url is None:
        raise Discard("gateway.http needs to.url")
    if "{" in re.split(r"[/?#]", to.url.partition("://")[2])[0]:
        raise Discard("to.url has its host written out: a message cannot choose it")
    try:
        url = URL(_fill(to.url, message.parameters, encoded=True), encoded=True)
        origin(url)  # raises for a port that is none
    except ValueError as error:
        raise Discard(f"to.url is no URL: {error}") from error
    return url


def _printable(key: bytes | None) -> Any:
    return None if key is None else key.decode("utf-8", "backslashreplace")
