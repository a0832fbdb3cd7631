"""Which route a request takes, and how a request is refused: as JSON, with a constant text."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote

from aiohttp import web

T = TypeVar("T")


class Refusal(Exception):  # noqa: N818 - an answer on its way, not an error
    """Raised while a request is handled: it ends with this status and a JSON error.

    `message` is shown to strangers: it never holds anything of the request, of a secret or of an exception.
    """

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> web.Response:
        """Return the answer."""
        body = {"error": {"code": self.code, "message": self.message}}
        return json_response(body, status=self.status, headers=self.headers)


def busy(message: str = "the gateway cannot take this now, try again later", *, retry_after: int = 1) -> Refusal:
    """Return the refusal for everything that is not the client's fault: 503, and when to try again."""
    return Refusal(503, "unavailable", message, Retry_After=str(retry_after))


def json_response(
    data: object,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    kind: type[web.Response] = web.Response,
) -> web.Response:
    """Return JSON that no browser takes for anything else."""
    response = kind(body=json.dumps(data).encode(), status=status, content_type="application/json")
    response.headers.update({"X-Content-Type-Options": "nosniff", "Server": "ingestion-gateway"})
    response.headers.update(headers or {})
    return response


@dataclass(slots=True)
class _Route(Generic[T]):
    template: tuple[str, ...]
    targets: dict[str, T] = field(default_factory=dict)

    @property
    def captures(self) -> int:
        return sum(_is_capture(part) for part in self.template)

    def match(self, parts: tuple[str, ...]) -> dict[str, str] | None:
        if len(parts) != len(self.template):
            return None
        parameters = {}
        for wanted, part in zip(self.template, parts, strict=True):
            if _is_capture(wanted):
                if not part:
                    return None
                parameters[wanted[1:-1]] = part
            elif wanted != part:
                return None
        return parameters


class Routes(Generic[T]):
    """Path templates such as `/messages/{topic}`; a capture is one whole segment, never an empty one.

    The route with the fewest captures wins, whatever the order in which they were added.
    """

    def __init__(self) -> None:
        self._routes: list[_Route[T]] = []

    def add(self, template: str, methods: Iterable[str], target: T) -> None:
        """Add a route. Raises `ValueError` if the template is none, or is taken for one of the methods."""
        parts = parse_template(template)
        shape = tuple("{}" if _is_capture(part) else part for part in parts)
        route = next((r for r in self._routes if r.template == parts), None)
        if route is None:
            if any(tuple("{}" if _is_capture(p) else p for p in r.template) == shape for r in self._routes):
                raise ValueError(f"{template!r} matches the same paths as another route")
            route = _Route(parts)
            self._routes.append(route)
            self._routes.sort(key=lambda r: r.captures)
        for method in methods:
            if method in route.targets:
                raise ValueError(f"{method} {template} is there twice")
            route.targets[method] = target

    def resolve(self, method: str, raw_path: str) -> tuple[T, dict[str, str]]:
        """Return the target and the decoded captures. Raises `Refusal` 404 or 405."""
        parts = tuple(unquote(part) for part in raw_path.split("/"))
        for route in self._routes:
            parameters = route.match(parts)
            if parameters is not None:
                target = route.targets.get(method)
                if target is None:
                    allowed = ", ".join(sorted(route.targets))
                    raise Refusal(405, "method_not_allowed", "this method is not allowed here", Allow=allowed)
                return target, parameters
        raise Refusal(404, "not_found", "there is nothing at this path")


def parse_template(template: str) -> tuple[str, ...]:
    """Split a path template into segments. Raises `ValueError` with what is wrong with it."""
    if not template.startswith("/"):
        raise ValueError(f"a path starts with '/', {template!r} does not")
    parts = tuple(unquote(part) for part in template.split("/"))
    names = [part[1:-1] for part in parts if _is_capture(part)]
    if any(not name.isidentifier() for name in names) or len(set(names)) != len(names):
        raise ValueError(f"the captures in {template!r} need different names of letters, digits and '_'")
    if any(("{" in part or "}" in part) and not _is_capture(part) for part in parts):
        raise ValueError(f"a capture in {template!r} is a whole segment, as in '/messages/{{topic}}'")
    return parts


def _is_capture(part: str) -> bool:
    return part.startswith("{") and part.endswith("}")
