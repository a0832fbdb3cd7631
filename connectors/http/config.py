"""The keys of an HTTP connector, and what must fit together in them."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from yarl import URL

from connectors.http.auth import InboundAuth, NoAuth, OutboundAuth
from gateway.connector import ConnectorConfig, InboundEntry, StrictModel
from gateway.web.routes import Routes, parse_template


class HttpTls(StrictModel):
    """The own certificate, and whom to trust. On a listener `ca` means that clients need a certificate of it."""

    certificate: str | None = Field(None, description="file: own certificate and its chain, PEM")
    key: str | None = Field(None, description="file: its private key, PEM")
    key_password: SecretStr | None = Field(None, description="of the private key")
    ca: str | None = Field(None, description="file: certificates to trust, PEM; default for calls: the system's")


class HttpEntry(InboundEntry):
    """One route. Its captures in braces become the message's parameters."""

    path: str = Field(description="path template, as in /messages/{topic}; a capture is one segment")
    methods: Sequence[Literal["POST", "PUT", "PATCH", "DELETE"]] = Field(
        default=("POST",), min_length=1, description="HTTP methods of this route"
    )
    auth: InboundAuth | None = Field(None, description="who may send; required off loopback")
    query: Sequence[str] = Field(default=(), description="query parameters to keep as the message's parameters")

    @field_validator("path")
    @classmethod
    def _is_template(cls, path: str) -> str:
        parse_template(path)
        return path


class HttpConfig(ConnectorConfig):
    """An HTTP listener, an HTTP destination, or both."""

    type: Literal["http"]
    listen: str | None = Field(None, description="host:port to receive on")
    inbound: Sequence[HttpEntry] = Field(default=(), description="routes to receive on, and who handles them")
    max_body: int = Field(1_048_576, ge=1, le=1_073_741_824, description="bytes of a body, after decompression")
    max_pending: int = Field(1000, ge=1, description="requests waiting to be stored; more are answered with 503")
    max_pending_bytes: int = Field(67_108_864, ge=1, description="and their bodies' bytes, likewise")
    max_connections: int = Field(2048, ge=1, description="clients connected at once")
    accept_timeout: float = Field(15, gt=0, le=15, description="seconds until a request not stored gets 503")
    header_timeout: float = Field(10, gt=0, description="seconds for a request's headers")
    body_timeout: float = Field(30, gt=0, description="seconds without progress of a request's body")
    idle_timeout: float = Field(75, gt=0, description="seconds between two requests of a connection")
    url: str | None = Field(None, description="where published messages go; a message's topic is a path below it")
    method: Literal["POST", "PUT", "PATCH", "DELETE"] = Field("POST", description="of outgoing requests")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="added to requests below `url`")
    timeout: float = Field(30, gt=0, le=600, description="seconds for an outgoing request, answer included")
    auth: OutboundAuth | None = Field(None, description="sent with requests below `url`; hmac signs all")
    allow_absolute_urls: bool = Field(default=False, description="a topic may be a whole http(s) URL")
    allow_private: bool = Field(default=False, description="whole URLs may lead to private addresses")
    tls: HttpTls | None = Field(None, description="certificates of the listener, or for outgoing requests")

    @field_validator("listen")
    @classmethod
    def _is_address(cls, listen: str | None) -> str | None:
        return listen if listen is None or parse_address(listen) else None

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None:
            parsed = URL(url)
            if parsed.scheme not in ("http", "https") or not parsed.host or parsed.user is not None:
                raise ValueError("'url' is http:// or https:// with a host; user and password belong under 'auth'")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.listen is None and self.url is None and not self.allow_absolute_urls:
            raise ValueError("'listen' or 'url' is needed: the one to receive on, the other to send to")
        if self.listen is None and self.inbound:
            raise ValueError("'listen' is needed, as there are 'inbound' entries")
        if self.listen is not None and self.tls is not None and self.tls.certificate is None:
            raise ValueError("'tls.certificate' is needed by 'listen'; give 'url' a connector of its own otherwise")
        routes_of(self.inbound)
        for entry in self.inbound:
            if entry.auth is None and not self._on_loopback():
                raise ValueError(f"'auth' is required at {entry.path}, because 'listen' is not on loopback")
        return self

    def warnings(self) -> list[str]:
        """Name the routes that anybody may use from elsewhere."""
        if self.listen is None or self._on_loopback():
            return []
        open_to_all = [entry.path for entry in self.inbound if isinstance(entry.auth, NoAuth)]
        return [f"{path} on {self.listen} takes messages from anybody (auth: none)" for path in open_to_all]

    def _on_loopback(self) -> bool:
        host = parse_address(self.listen)[0] if self.listen is not None else "localhost"
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def parse_address(listen: str) -> tuple[str, int]:
    """Split host:port. Raises `ValueError` if it is none; an empty host is every address of this machine."""
    host, colon, port = listen.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or (":" in host and host[0] != "["):
        raise ValueError(f"'listen' is host:port, as in 127.0.0.1:8080, not {listen!r}")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - what an empty host means, and auth is required


def routes_of(entries: Sequence[HttpEntry]) -> Routes[HttpEntry]:
    """Return the routes of entries. Raises `ValueError` if two take the same requests."""
    routes: Routes[HttpEntry] = Routes()
    for entry in entries:
        routes.add(entry.path, entry.methods, entry)
    return routes
