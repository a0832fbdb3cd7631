"""Events: what the gateway tells about its work. Logs and metrics are two subscribers.

`emit` calls every subscriber in the caller's thread, at once; a subscriber that raises is dropped from that
call only and logged. No event carries a payload or a secret.

| event | fields |
|---|---|
| `inbox.committed` | `connector`, `stored`, `duplicate`, `rejected`, `filtered`, `seconds` |
| `inbox.waiting` | `connector`, `error` (the database is away, messages wait unacknowledged) |
| `job.claimed` | `lane`, `count`, `seconds` |
| `job.started` | `job`, `handler`, `attempt` |
| `job.finished` | `job`, `handler`, `attempt`, `status`, `error`, `seconds` |
| `job.lost` | `job`, `handler` (its lease was taken; nothing was written) |
| `job.abandoned` | `job`, `handler` (it ignored its cancellation; its slot was given up) |
| `job.released` | `count` (given back without using an attempt) |
| `job.rescued` | `count`, `failed` |
| `loop.blocked` | `seconds`, `handler` |
| `outbox.delivered` | `connector`, `count`, `seconds` |
| `outbox.failed` | `connector`, `job`, `error`, `permanent` |
| `janitor.promoted` | `count` |
| `janitor.pruned` | `count` |
| `schedule.configured` | `schedule` (written anew because its text changed) |
| `schedule.fired` | `schedule`, `count`, `tick` (the last of them) |
| `schedule.skipped` | `schedule`, `count`, `reason` (missed, condition or error), `error` |
| `schedule.invalid` | `schedule`, `error` (it makes no jobs until its row is changed) |
| `connector.state` | `connector`, `state`, `reason` |
| `connector.configured` | `connector`, `type`, `guarantee` |
| `connector.warning` | `connector`, `warning` (what is allowed but dangerous) |
| `cache.state` | `type`, `state`, `reason` |
| `cache.failed` | `type`, `error` (a call that was done without) |
| `store.unavailable` | `error` |
| `store.pooled` | (a pooler stands before the database: leases instead of session locks, polling instead of LISTEN) |
| `store.weak` | `reason` (a setting of the database by which a commit may not last) |
| `service.error` | `service`, `error` |
| `gateway.waiting` | `error` (the database cannot be reached yet) |
| `gateway.started` | `instance`, `version` |
| `gateway.stopping` | `grace` |
| `gateway.stopped` | `released`, `abandoned` |
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Subscriber = Callable[[str, dict[str, Any]], None]

_subscribers: tuple[Subscriber, ...] = ()


def emit(event: str, **fields: Any) -> None:
    """Tell every subscriber. Cheap when there is none; never raises."""
    for subscriber in _subscribers:
        try:
            subscriber(event, fields)
        except Exception:
            logging.getLogger(__name__).exception("a telemetry subscriber failed on %s", event)


@contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Call `subscriber(event, fields)` for every event while the block runs."""
    global _subscribers  # noqa: PLW0603 - the one process-wide list, replaced whole so that emit needs no lock
    _subscribers = (*_subscribers, subscriber)
    try:
        yield
    finally:
        _subscribers = tuple(s for s in _subscribers if s is not subscriber)
