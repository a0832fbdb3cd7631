"""What becomes of a job after an attempt: decided here, purely; written by the store, nowhere else."""

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from gateway import errors
from gateway.job import QueueJob

MAX_RESULT = 256 * 1024
"""Characters of a result that are kept; a larger one fails the job, since half a JSON document is none."""
MAX_DELAY = 365 * 86400.0
"""Seconds a handler may postpone its own retry."""
MAX_RETRY_AFTER = 86400.0
"""Seconds a receiver may postpone the next try: it is a stranger, and must not hold a message for years."""
MAX_ERROR = 8 * 1024
"""Characters of an error's text that are kept."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned. `result` is JSON text or None."""

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed; the next one comes after `delay` seconds, at a priority one lower."""

    delay: float
    error: str


@dataclass(frozen=True, slots=True)
class Discard:
    """The job ends as Failed: no attempt could help, or `retriable`: one might, but none is left."""

    error: str
    retriable: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """The job ends as Cancelled."""

    reason: str


Outcome: TypeAlias = Completed | Retry | Discard | Cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`delay` × 2ⁿ seconds before retry n + 1, at most `max_delay`, ± 20 %."""

    delay: float = 2.0
    max_delay: float = 300.0

    def wait(self, retry_count: int, jitter: float) -> float:
        """Return the seconds to wait after the attempt that makes `retry_count` failures; `jitter` is in [0, 1)."""
        return min(self.delay * 2.0 ** min(retry_count, 32), self.max_delay) * (0.8 + 0.4 * jitter)


def decide(
    job: QueueJob, error: BaseException | None, result: Any = None, *, policy: RetryPolicy, jitter: float
) -> Outcome:
    """Return what becomes of `job` whose handler returned `result` or raised `error`.

    Pure and total: an unprintable error or a result that is no JSON is an outcome too.
    """
    if error is None:
        try:
            return Completed(encode_result(result))
        except errors.PayloadError as refused:
            return Discard(describe(refused))
    text = describe(error)
    match error:
        case errors.Cancel():
            return Cancel(text)
        case errors.Discard() | errors.PayloadError() | errors.TransactionRefused():
            return Discard(text)
        case errors.DeliveryError(permanent=True):
            return Discard(text)
        case _:
            return _retry_or_discard(job, error, text, policy, jitter)


def _retry_or_discard(
    job: QueueJob, error: BaseException, text: str, policy: RetryPolicy, jitter: float
) -> Retry | Discard:
    if job.retry_count >= job.max_retries:
        return Discard(text, retriable=True)
    match error:
        case errors.Retry(delay=int() | float() as wish):
            delay = min(max(0.0, float(wish)), MAX_DELAY)
        case errors.DeliveryError(retry_after=int() | float() as wish):
            delay = min(max(0.0, float(wish)), MAX_RETRY_AFTER)
        case _:
            delay = policy.wait(job.retry_count, jitter)
    return Retry(delay, text)


def encode_result(result: Any) -> str | None:
    """Return strict JSON text (no NaN, no NUL), None for None. Raises `PayloadError`."""
    if result is None:
        return None
    try:
        text = json.dumps(result, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except Exception as error:
        raise errors.PayloadError(f"the handler's result is not JSON: {describe(error)}") from error
    if len(text) > MAX_RESULT:
        raise errors.PayloadError(
            f"the handler's result is {len(text)} characters of JSON, at most {MAX_RESULT} are kept"
        )
    return text


def describe(error: BaseException) -> str:
    """Return `Type: text`, at most `MAX_ERROR` characters, whatever the error's own `__str__` does."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an error that cannot be printed is still an error
        text = f"(its text cannot be read: {type(broken).__name__})"
    whole = name if not text else text if isinstance(error, errors.GatewayError) else f"{name}: {text}"
    safe = whole.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    return safe if len(safe) <= MAX_ERROR else safe[: MAX_ERROR - 1] + "…"
