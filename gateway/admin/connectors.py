"""Connectors over HTTP: list, pause, resume."""

from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.requests import read_json, validate
from gateway.admin.rows import moment
from gateway.admin.running import ConnectorView, Running
from gateway.web.routes import Refusal, busy, json_response


class PauseBody(BaseModel):
    """Why a connector is paused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reason: str = Field("paused over the API", min_length=1, max_length=500)


class ConnectorRoutes:
    """`/api/connectors` and what is below it."""

    def __init__(self, running: Running) -> None:
        self._running = running

    async def list(self, _request: web.BaseRequest) -> web.StreamResponse:
        """Answer with a list: state, guarantee and counters of each connector."""
        return json_response([connector_as_json(view) for view in self._running.connectors])

    async def pause(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """End its life in this process until it is resumed, or the process starts anew; answer with how it is."""
        body = validate(PauseBody, await read_json(request) if request.body_exists else {})
        return self._changed(name, found=self._running.pause(name, body.reason))

    async def resume(self, _request: web.BaseRequest, name: str) -> web.StreamResponse:
        """Let it connect again, if it is paused; answer with how it is."""
        return self._changed(name, found=self._running.resume(name))

    def _changed(self, name: str, *, found: bool) -> web.Response:
        if not found and not self._running.connectors and self._running.unready:
            raise busy("the connectors are not running now, try again later")
        if not found:
            raise Refusal(404, "not_found", "there is no such connector")
        return json_response(next(connector_as_json(view) for view in self._running.connectors if view.name == name))


def connector_as_json(view: ConnectorView) -> dict[str, Any]:
    """Return how a connector is."""
    return {
        "name": view.name,
        "type": view.type,
        "state": view.state,
        "reason": view.reason,
        "since": moment(view.since),
        "guarantee": view.guarantee,
        **view.counts,
    }
