"""Who may do what on the admin listener: decided before anything of a request is looked at."""

import hmac
from urllib.parse import urlsplit

from aiohttp import web

from gateway.errors import ConfigError
from gateway.web.routes import Refusal

OPEN = frozenset({"/live", "/ready"})
"""Paths that ask for no token, so that an orchestrator can probe them."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Asks for the bearer token where one is set, and lets no web page of another origin change anything.

    Without a token only requests that name a loopback host are answered, or a page could reach the listener by
    letting its own name resolve to this machine.
    """

    def __init__(self, token: str | None, host: str) -> None:
        if token is None and host.lower() not in _LOOPBACK and not host.startswith("127."):
            raise ConfigError([f"the admin listener on {host} needs a token, because it is not on loopback"])
        self._token = None if token is None else token.encode()

    def check(self, request: web.BaseRequest) -> None:
        """Raise `Refusal` unless the request may go on."""
        if request.path in OPEN and request.method in ("GET", "HEAD"):
            return
        if self._token is None:
            self._require_loopback(request)
        elif not self._has_token(request, self._token):
            raise Refusal(401, "unauthorized", "this needs the admin token", WWW_Authenticate="Bearer")
        if request.method not in ("GET", "HEAD"):
            _require_same_origin(request)

    @staticmethod
    def _has_token(request: web.BaseRequest, token: bytes) -> bool:
        given = request.headers.getall("Authorization", [])
        scheme, _, value = (given[0] if len(given) == 1 else "").partition(" ")
        offered = value.strip().encode("utf-8", "surrogateescape")
        return hmac.compare_digest(offered, token) and scheme.lower() == "bearer"

    @staticmethod
    def _require_loopback(request: web.BaseRequest) -> None:
        named = _host(f"//{request.headers.get('Host', '')}")
        if named is None or not (named in _LOOPBACK or named.startswith("127.")):
            raise Refusal(403, "forbidden", "without a token only requests to localhost are answered")


def _require_same_origin(request: web.BaseRequest) -> None:
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise Refusal(403, "forbidden", "requests from other sites are refused")
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower():
        raise Refusal(403, "forbidden", "requests from other origins are refused")


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
