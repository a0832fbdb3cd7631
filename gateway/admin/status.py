"""How it is: alive, ready, healthy, by numbers."""

import asyncio
from datetime import UTC, datetime

from aiohttp import web

from gateway.admin.connectors import connector_as_json
from gateway.admin.metrics import Metrics
from gateway.admin.rows import instance_as_json, moment, status_word
from gateway.admin.running import Running
from gateway.errors import StoreError
from gateway.message import Json
from gateway.store import Statistics
from gateway.web.routes import Refusal, json_response

DEADLINE = 2.0
"""Seconds that the database gets to answer a probe."""


class StatusRoutes:
    """`/live`, `/ready`, `/health`, `/metrics` and what lists the parts."""

    def __init__(self, running: Running, metrics: Metrics | None) -> None:
        self._running = running
        self._metrics = metrics

    async def live(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Answer 503 when a loop is stuck, so that the process is started anew; knows nothing of the database."""
        late = {name: round(seconds, 1) for name, seconds in self._running.late.items()}
        return _verdict(not late, {"status": "stuck" if late else "live", "stuck": late})

    async def ready(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Answer 503 while messages could not be made durable here; never depends on a broker."""
        reasons = [*self._running.unready]
        if await self._database_fault() is not None:
            reasons.append("database")
        return _verdict(not reasons, {"status": "not ready" if reasons else "ready", "waiting_for": reasons})

    async def health(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Answer with each part, its state and the reason."""
        running = self._running
        fault = await self._database_fault()
        connectors = {view.name: connector_as_json(view) for view in running.connectors}
        parts: Json = {
            "instance": running.instance,
            "version": running.version,
            "live": not running.late,
            "ready": fault is None and not running.unready,
            "database": {"state": "connected" if fault is None else "unavailable", "reason": fault},
            "unready": dict(running.unready),
            "stuck": dict(running.late),
            "connectors": connectors,
            **running.facts,
            "waiting": self._waiting(await self._statistics() if fault is None else None),
        }
        return json_response(parts)

    async def metrics(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Answer with Prometheus text."""
        if self._metrics is None:
            raise Refusal(404, "not_found", "metrics are switched off (jobs.enable_metrics)")
        text, content_type = self._metrics.render(self._running, await self._statistics())
        return web.Response(body=text, headers={"Content-Type": content_type, "X-Content-Type-Options": "nosniff"})

    async def instances(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Answer with the processes that share the database."""
        return json_response(
            [
                instance_as_json(row) | {"self": row.id == self._running.store.incarnation}
                for row in await self._running.store.instances()
            ]
        )

    async def statistics(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Answer with counts of active jobs."""
        return json_response(self._as_json(await self._running.store.statistics()))

    def _as_json(self, statistics: Statistics) -> Json:
        return {
            "status_counts": {str(status): n for status, n in statistics.status_counts.items()},
            "statuses": {status_word(status): n for status, n in statistics.status_counts.items()},
            "ready": dict(statistics.ready),
            "ready_handlers": dict(statistics.ready_handlers),
            **self._left(statistics),
            "oldest_ready": statistics.oldest_ready,
            "due_schedules": statistics.due_schedules,
            "schedule_lag": statistics.schedule_lag,
            "timestamp": moment(datetime.now(UTC)),
        }

    def _waiting(self, statistics: Statistics | None) -> Json | None:
        """Return what waits, and what is left for others or for nobody; None: the database does not tell."""
        if statistics is None:
            return None
        return {"ready": sum(statistics.ready.values()), **self._left(statistics)}

    def _left(self, statistics: Statistics) -> Json:
        known, orphaned = set(self._running.handlers), statistics.orphaned
        return {
            "unknown_handlers": {name: n for name, n in statistics.ready_handlers.items() if name not in known},
            "orphaned_handlers": dict(orphaned.handlers),
            "orphaned_connectors": dict(orphaned.connectors),
            "living_instances": orphaned.living,
        }

    async def _database_fault(self) -> str | None:
        try:
            async with asyncio.timeout(DEADLINE):
                await self._running.store.ping()
        except TimeoutError:
            return f"no answer within {DEADLINE:g} s"
        except StoreError as error:
            return str(error)
        return None

    async def _statistics(self) -> Statistics | None:
        try:
            async with asyncio.timeout(DEADLINE):
                return await self._running.store.statistics()
        except (TimeoutError, StoreError):
            return None


def _verdict(good: bool, body: Json) -> web.Response:
    return json_response(body, status=200 if good else 503)
