"""The admin listener: health, metrics and the REST API over HTTP."""

from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import web

from gateway.admin.connectors import ConnectorRoutes
from gateway.admin.guard import Guard
from gateway.admin.jobs import JobRoutes
from gateway.admin.metrics import Metrics
from gateway.admin.running import ConnectorView, Running
from gateway.admin.schedules import ScheduleRoutes
from gateway.admin.status import StatusRoutes
from gateway.errors import StoreError
from gateway.web.listener import Listener
from gateway.web.routes import Routes, busy

__all__ = ["Admin", "ConnectorView", "Metrics", "Running"]

Endpoint = Callable[..., Awaitable[web.StreamResponse]]


class Admin:
    """Serves while `async with` it is open. Answers are JSON, `/metrics` apart.

    Raises `ConfigError` if the address is not on loopback and there is no token, `OSError` if it is taken. While
    the database is away, what needs it is answered with 503 and `Retry-After`.
    """

    def __init__(
        self, running: Running, address: tuple[str, int], *, token: str | None, metrics: Metrics | None
    ) -> None:
        self._guard = Guard(token, address[0])
        self._routes = _routes(
            StatusRoutes(running, metrics), ConnectorRoutes(running), JobRoutes(running), ScheduleRoutes(running)
        )
        self._listener = Listener(self._handle, address)

    @property
    def port(self) -> int:
        """The port in use."""
        return self._listener.port

    async def __aenter__(self) -> Self:
        await self._listener.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._listener.__aexit__(*error)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._guard.check(request)
        method = "GET" if request.method == "HEAD" else request.method
        endpoint, parameters = self._routes.resolve(method, request.rel_url.raw_path)
        try:
            response = await endpoint(request, **parameters)
        except StoreError:
            raise busy("the database does not answer now, try again later") from None
        response.headers["Cache-Control"] = "no-store"
        return response


def _routes(
    status: StatusRoutes, connectors: ConnectorRoutes, jobs: JobRoutes, schedules: ScheduleRoutes
) -> Routes[Endpoint]:
    one = "/api/schedules/{key}"
    paths: dict[str, dict[str, Any]] = {
        "GET": {
            "/live": status.live,
            "/ready": status.ready,
            "/health": status.health,
            "/metrics": status.metrics,
            "/api/statistics": status.statistics,
            "/api/connectors": connectors.list,
            "/api/instances": status.instances,
            "/api/jobs": jobs.list,
            "/api/jobs/{id}": jobs.show,
            "/api/jobs/{id}/history": jobs.history,
            "/api/jobs/{id}/status": jobs.status,
            "/api/schedules": schedules.list,
            one: schedules.show,
            f"{one}/next": schedules.next,
        },
        "POST": {
            "/api/connectors/{name}/pause": connectors.pause,
            "/api/connectors/{name}/resume": connectors.resume,
            "/api/jobs": jobs.create,
            "/api/jobs/{id}/cancel": jobs.cancel,
            "/api/jobs/{id}/retry": jobs.retry,
            "/api/schedules": schedules.create,
            f"{one}/run": schedules.run,
            f"{one}/enable": schedules.enable,
            f"{one}/disable": schedules.disable,
        },
        "PUT": {one: schedules.replace},
        "PATCH": {one: schedules.change},
        "DELETE": {one: schedules.delete},
    }
    routes: Routes[Endpoint] = Routes()
    for method, endpoints in paths.items():
        for path, endpoint in endpoints.items():
            routes.add(path, [method], endpoint)
    return routes
