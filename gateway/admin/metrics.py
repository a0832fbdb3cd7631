"""What the gateway counts, as Prometheus metrics. Seconds and labels only; every label has a bounded set of values."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway import telemetry
from gateway.admin.rows import status_word
from gateway.admin.running import Running
from gateway.store import Statistics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_STATES = ("stopped", "connecting", "connected", "paused", "degraded", "failed")
_TERMS = {
    "received": "messages that connectors handed in",
    "stored": "messages that became jobs",
    "duplicate": "messages that were there already",
    "filtered": "messages that the entry's filter left out",
    "dead_lettered": "messages stored as Failed because they could not become jobs",
    "rejected": "messages given back to their source unacknowledged",
}
MAX_HANDLERS = 500
"""Handlers with series of their own; the rest counts as `other`."""


class Metrics:
    """Counts events while `with metrics.counting()` is open. Its registry is its own: nothing else gets in."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._snapshot = _Snapshot()
        self._registry.register(self._snapshot)
        self._handlers: set[str] = set()
        self._batch = self._histogram("ingest_batch_size", "messages per commit", ("connector",), _COUNTS)
        self._commit = self._histogram("ingest_commit_seconds", "duration of a commit", ("connector",))
        self._claimed = self._counter("jobs_claimed", "rows claimed", ("lane",))
        self._finished = self._counter("jobs_finished", "attempts that ended", ("handler", "status"))
        self._run_time = self._histogram("job_run_seconds", "duration of an attempt", ("handler",))
        self._lost = self._counter("jobs_lost", "attempts whose lease was taken; nothing was written")
        self._abandoned = self._counter("jobs_abandoned", "attempts that ignored their cancellation")
        self._released = self._counter("jobs_released", "jobs given back without using an attempt")
        self._rescued = self._counter("jobs_rescued", "jobs of dead instances that are ready again")
        self._delivered = self._counter("outbound_confirmed", "messages that a broker confirmed", ("connector",))
        self._failed = self._counter("outbound_failed", "messages not taken", ("connector", "permanent"))
        self._reconnects = self._counter("connector_reconnects", "lives of a connector that ended", ("connector",))
        self._blocked = self._counter("loop_blocked_seconds", "time the event loop was blocked")
        self._cache = self._counter("cache_failures", "calls of the cache that were done without it")
        self._away = self._counter("store_unavailable", "times the database could not be used")
        self._errors = self._counter("service_errors", "turns of a service that failed", ("service",))
        self._pruned = self._counter("jobs_pruned", "finished jobs deleted by age")
        self._ticks = self._counter("schedule_ticks_fired", "ticks of schedules for which this process made a job")
        self._skipped = self._counter("schedule_ticks_skipped", "ticks that made no job", ("reason",))
        self._invalid = self._counter(
            "schedules_invalid", "schedules found to have no ticks for a mistake in their row"
        )

    def counting(self) -> AbstractContextManager[None]:
        """Count every event while the block runs."""
        return telemetry.subscribed(self._note)

    def render(self, running: Running, statistics: Statistics | None) -> tuple[bytes, str]:
        """Return the text and its content type. `statistics` None says that the database did not answer."""
        self._snapshot.of = (running, statistics)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"gateway_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(f"gateway_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _handler(self, name: str) -> str:
        if name not in self._handlers and len(self._handlers) >= MAX_HANDLERS:
            return "other"
        self._handlers.add(name)
        return name

    def _note(self, event: str, fields: dict[str, Any]) -> None:
        match event:
            case "inbox.committed":
                count = fields["stored"] + fields["duplicate"] + fields["rejected"]
                if count:
                    self._batch.labels(fields["connector"]).observe(count)
                    self._commit.labels(fields["connector"]).observe(fields["seconds"])
            case "outbox.delivered":
                self._delivered.labels(fields["connector"]).inc(fields["count"])
            case "outbox.failed":
                self._failed.labels(fields["connector"], str(fields["permanent"]).lower()).inc()
            case "connector.state" if fields["state"] in ("degraded", "failed"):
                self._reconnects.labels(fields["connector"]).inc()
            case "loop.blocked":
                self._blocked.inc(fields["seconds"])
            case "store.unavailable" | "inbox.waiting":
                self._away.inc()
            case "cache.failed":
                self._cache.inc()
            case "service.error":
                self._errors.labels(fields["service"]).inc()
            case _:
                self._note_job(event, fields)

    def _note_job(self, event: str, fields: dict[str, Any]) -> None:
        match event:
            case "job.claimed":
                self._claimed.labels(fields["lane"]).inc(fields["count"])
            case "job.finished":
                handler = self._handler(fields["handler"])
                self._finished.labels(handler, str(fields["status"]).lower()).inc()
                self._run_time.labels(handler).observe(fields["seconds"])
            case "job.lost":
                self._lost.inc()
            case "job.abandoned":
                self._abandoned.inc()
            case "job.released":
                self._released.inc(fields["count"])
            case "job.rescued":
                self._rescued.inc(fields["count"])
            case "janitor.pruned":
                self._pruned.inc(fields["count"])
            case _:
                self._note_schedule(event, fields)

    def _note_schedule(self, event: str, fields: dict[str, Any]) -> None:
        match event:
            case "schedule.fired":
                self._ticks.inc(fields["count"])
            case "schedule.skipped":
                self._skipped.labels(fields["reason"]).inc(fields["count"])
            case "schedule.invalid":
                self._invalid.inc()
            case _:
                pass  # told to operators by the log alone


class _Snapshot:
    """What is read at the moment of a scrape instead of being counted."""

    def __init__(self) -> None:
        self.of: tuple[Running, Statistics | None] | None = None

    def collect(self) -> Iterator[Metric]:
        if self.of is None:
            return
        running, statistics = self.of
        yield from _connectors(running)
        yield GaugeMetricFamily("gateway_jobs_running", "handlers that run now", running.running)
        yield GaugeMetricFamily(
            "gateway_database_up", "whether the database answered this scrape", float(statistics is not None)
        )
        cache = running.facts.get("cache", {}).get("state", "none")
        if cache != "none":
            yield GaugeMetricFamily("gateway_cache_up", "whether the cache answers", float(cache == "connected"))
        if statistics is not None:
            yield from _jobs(running, statistics)


def _connectors(running: Running) -> Iterator[Metric]:
    views = running.connectors
    for term, text in _TERMS.items():
        counter = CounterMetricFamily(f"gateway_messages_{term}", text, labels=["connector"])
        for view in views:
            counter.add_metric([view.name], view.counts[term])
        yield counter
    waiting = GaugeMetricFamily("gateway_messages_in_flight", "messages not durable yet", labels=["connector"])
    state = GaugeMetricFamily("gateway_connector_state", "1 for the present state", labels=["connector", "state"])
    for view in views:
        waiting.add_metric([view.name], view.counts["in_flight"])
        for each in _STATES:
            state.add_metric([view.name, each], float(view.state == each))
    yield waiting
    yield state


def _jobs(running: Running, statistics: Statistics) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("gateway_jobs", "active rows by status", labels=["status"])
    for status, count in statistics.status_counts.items():
        jobs.add_metric([status_word(status)], count)
    yield jobs
    own = {f"send:{view.name}" for view in running.connectors} | {"run", "alone"}
    lanes = dict.fromkeys(sorted(own), 0) | {"other": 0}
    for lane, count in statistics.ready.items():
        lanes[lane if lane in own else "other"] += count
    ready = GaugeMetricFamily("gateway_jobs_ready", "rows that wait for their turn", labels=["lane"])
    for lane, count in lanes.items():
        ready.add_metric([lane], count)
    yield ready
    unknown = sum(n for name, n in statistics.ready_handlers.items() if name not in set(running.handlers))
    yield GaugeMetricFamily("gateway_jobs_unknown_handler", "ready rows whose handler is unknown here", unknown)
    orphaned = statistics.orphaned
    yield GaugeMetricFamily(
        "gateway_jobs_orphaned",
        "ready rows whose handler or connector no living instance has",
        sum(orphaned.handlers.values()) + sum(orphaned.connectors.values()),
    )
    yield GaugeMetricFamily(
        "gateway_schedules_due", "schedules whose tick has come and has made no job yet", statistics.due_schedules
    )
    yield GaugeMetricFamily(
        "gateway_schedule_lag_seconds", "age of the oldest of these ticks", statistics.schedule_lag or 0.0
    )
    yield GaugeMetricFamily("gateway_instances", "instances of the database that are alive", orphaned.living)
    yield GaugeMetricFamily(
        "gateway_jobs_oldest_ready_seconds", "age of the oldest ready row", statistics.oldest_ready or 0.0
    )
