"""What a handler asks for besides its own writes: it waits in memory and commits with the job's outcome."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypedDict

from sqlalchemy.sql.base import Executable

from gateway.errors import PayloadError, TransactionRefused
from gateway.job import MAX_PRIORITY, PUBLISH, Direction, NewJob, QueueJob
from gateway.message import Json, Message
from gateway.trace import is_traced, trace_of

Headers: TypeAlias = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
_ORDERING_WIDTH = 255


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that an attempt holds. `fence` is greater than that of every earlier holder of this name, for good."""

    name: str
    fence: int


class PublishOptions(TypedDict, total=False):
    """Keywords of `Context.publish`."""

    key: str | bytes | None
    headers: Headers
    content_type: str | None
    delay: float
    priority: int


class EnqueueOptions(TypedDict, total=False):
    """Keywords of `Context.enqueue`."""

    delay: float
    at: datetime
    priority: int
    max_retries: int
    metadata: Json
    key: str


class Effects:
    """One attempt's messages, jobs and deferred writes, in order, until its outcome takes them along."""

    __slots__ = ("_job", "_max_retries", "_over", "deferred", "locks", "on_progress", "outgoing", "reported")

    def __init__(self, job: QueueJob, *, max_retries: Callable[[str], int]) -> None:
        self._job = job
        self._max_retries = max_retries
        self._over: str | None = None
        self.outgoing: list[NewJob] = []
        self.deferred: list[tuple[Executable, Mapping[str, Any]]] = []
        self.locks: dict[str, Lock] = {}
        self.reported: Json | None = None
        """The last progress reported, for whoever writes it."""
        self.on_progress: Callable[[], None] | None = None
        """Called, in the handler's thread, when there is news."""

    def close(self, reason: str) -> None:
        """End the attempt: what is asked for from now on, by a stray task or thread, is refused."""
        self._over = reason
        self.on_progress = None

    def require_open(self) -> None:
        """Raise `TransactionRefused` once the attempt is over."""
        if self._over is not None:
            raise TransactionRefused(f"this attempt of job {self._job.id} is over: {self._over}")

    @contextmanager
    def undone_by_an_error(self) -> Iterator[None]:
        """Take back what was asked for in the block if it raises."""
        outgoing, deferred = len(self.outgoing), len(self.deferred)
        try:
            yield
        except BaseException:
            del self.outgoing[outgoing:], self.deferred[deferred:]
            raise

    def defer(self, statement: Executable, parameters: Mapping[str, Any] | None) -> None:
        """Keep a write for the outcome. Raises `TypeError` for anything but an SQLAlchemy statement."""
        self.require_open()
        if not isinstance(statement, Executable):
            raise TypeError(f"defer() takes an SQLAlchemy statement such as insert(table), not {statement!r}")
        self.deferred.append((statement, {} if parameters is None else dict(parameters)))

    def progress(self, fraction: float, note: str | None) -> None:
        """Keep the newest progress, and say that there is some. Raises `ValueError` outside 0 to 1."""
        self.require_open()
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is from 0 to 1, not {fraction!r}")
        self.reported = {"fraction": float(fraction)} | ({} if note is None else {"note": str(note)[:1000]})
        if self.on_progress is not None:
            self.on_progress()

    def publish(self, connector: str, topic: str, body: Any, options: PublishOptions) -> str:
        """Keep an outbound job, see `Context.publish`."""
        self.require_open()
        check_keywords("publish", options, PublishOptions)
        payload, content_type = encode_body(body)
        key = options.get("key")
        message = Message(
            topic=topic,
            key=None if key is None else encode_key(key),
            headers=self._traced_headers(encode_headers(options.get("headers", ()))),
            content_type=options.get("content_type") or content_type,
        )
        job = NewJob(
            handler=PUBLISH,
            payload=payload,
            metadata={**message.to_metadata(), "connector": connector},
            direction=Direction.OUTBOUND,
            delay=_delay(options.get("delay", 0)),
            priority=_priority(options.get("priority", 0)),
            parent_id=self._job.id,
            ordering_key=None if message.key is None else ordering_key(connector, message.key),
        )
        self.outgoing.append(job)
        return job.id

    def enqueue(self, handler: str, payload: Any, options: EnqueueOptions) -> str:
        """Keep a child job, see `Context.enqueue`."""
        self.require_open()
        check_keywords("enqueue", options, EnqueueOptions)
        if not handler or handler == PUBLISH:
            raise ValueError(f"a job for {handler!r} cannot be enqueued; messages are sent by publish()")
        key = options.get("key")
        job = NewJob(
            handler=handler,
            payload=encode_body(payload)[0],
            metadata=self._traced_metadata(_metadata(options.get("metadata", {}))),
            delay=_delay(options.get("delay", 0)),
            scheduled_at=_moment(options),
            priority=_priority(options.get("priority", 0)),
            max_retries=self._retries(handler, options.get("max_retries")),
            parent_id=self._job.id,
            ordering_key=None if key is None else ordering_key(handler, encode_key(key)),
        )
        self.outgoing.append(job)
        return job.id

    def _traced_headers(self, headers: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
        if is_traced(name for name, _ in headers):
            return headers
        return (*headers, *((name, value.encode()) for name, value in trace_of(self._job.metadata).items()))

    def _traced_metadata(self, metadata: Json) -> Json:
        return metadata if is_traced(metadata) else {**trace_of(self._job.metadata), **metadata}

    def _retries(self, handler: str, wish: int | None) -> int:
        if wish is not None and wish < 0:
            raise ValueError(f"max_retries is 0 or more, not {wish!r}")
        return self._max_retries(handler) if wish is None else wish


def encode_body(body: Any) -> tuple[bytes | None, str | None]:
    """Return a body's bytes and content type: bytes as they are, text as UTF-8, the rest as strict JSON.

    None is no body at all (a tombstone). Raises `PayloadError` for text or values that cannot be encoded.
    """
    try:
        match body:
            case None:
                return None, None
            case bytes() | bytearray() | memoryview():
                return bytes(body), None
            case str():
                return body.encode(), "text/plain; charset=utf-8"
            case _:
                text = json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
                return text.encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"the body is neither bytes, text nor JSON: {error}") from error


def ordering_key(scope: str, key: bytes) -> str:
    """Return what `orderingkey` holds for a key: readable if it fits the column, else a digest; unique per scope."""
    try:
        readable = f"{scope}\x1f{key.decode()}"
    except UnicodeDecodeError:
        readable = "\x00"
    if "\x00" not in readable and len(readable) <= _ORDERING_WIDTH:
        return readable
    digest = hashlib.blake2b(scope.encode() + b"\x1f" + key, digest_size=32).hexdigest()
    return f"{scope[:128]}\x1f\x1f{digest}"


def encode_key(key: str | bytes) -> bytes:
    """Return a key's bytes. Raises `PayloadError` for what has none."""
    try:
        return _bytes(key)
    except (TypeError, ValueError) as error:
        raise PayloadError(f"a key is bytes or text: {error}") from error


def encode_headers(headers: Headers) -> tuple[tuple[str, bytes], ...]:
    """Return headers as pairs of name and bytes. Raises `PayloadError` for what is none."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    try:
        return tuple((str(name), _bytes(value)) for name, value in pairs)
    except (TypeError, ValueError) as error:
        raise PayloadError(f"headers are names with bytes or text: {error}") from error


def check_keywords(function: str, options: Mapping[str, Any], declared: type) -> None:
    """Raise `TypeError` for a keyword that is none, as Python does for ordinary parameters."""
    for name in options.keys() - declared.__annotations__.keys():
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def _bytes(value: object) -> bytes:
    match value:
        case str():
            return value.encode()
        case bytes() | bytearray() | memoryview():
            return bytes(value)
        case _:
            raise TypeError(f"{value!r} is neither")


def _metadata(metadata: Json) -> Json:
    try:
        copy: Json = json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"metadata is not JSON: {error}") from error
    return copy


def _delay(seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"a delay is 0 or more seconds, not {seconds!r}")
    return float(seconds)


def _moment(options: EnqueueOptions) -> datetime | None:
    at = options.get("at")
    if at is None:
        return None
    if options.get("delay"):
        raise ValueError("a job takes delay or at, not both")
    if at.tzinfo is None:
        raise ValueError(f"at needs a time zone, {at!r} has none")
    return at.astimezone(UTC)


def _priority(priority: int) -> int:
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise ValueError(f"a priority is from {-MAX_PRIORITY} to {MAX_PRIORITY}, not {priority!r}")
    return int(priority)
