"""The keys of a SignalR connector, and what must fit together in them."""

import ipaddress
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from yarl import URL

from gateway.connector import ConnectorConfig, ExpressionText, InboundEntry, StrictModel


class SignalrTls(StrictModel):
    """Whom to trust, and the own certificate where the hub asks for one."""

    ca: str | None = Field(None, description="file: certificates to trust, PEM; default: the system's")
    certificate: str | None = Field(None, description="file: own certificate and its chain, PEM")
    key: str | None = Field(None, description="file: its private key, PEM; default: in `certificate`")
    key_password: SecretStr | None = Field(None, description="of the private key")


class Invocation(StrictModel):
    """A hub method to invoke."""

    method: str = Field(min_length=1, description="hub method")
    arguments: Sequence[Any] = Field(default=(), description="its arguments")


class Acknowledgement(StrictModel):
    """A hub method that is told what is stored, for a hub that sends again what it was not told of."""

    method: str = Field(min_length=1, description="hub method; its one argument is a list of ids")
    id: ExpressionText = Field(
        description="expression: an event's id, as body[0].id, by which it becomes one job however often it is sent"
    )


class Resume(StrictModel):
    """A hub method that makes the hub go on where this gateway has stored its last event."""

    method: str = Field(
        min_length=1, description="hub method; its one argument is the last stored position, or null at first"
    )
    position: ExpressionText = Field(
        description="expression: an event's position, as body[0].sequence, a whole number that grows with every event"
    )


class SignalrEntry(InboundEntry):
    """One event to receive: what the hub invokes on its clients."""

    event: str = Field(min_length=1, max_length=200, description="name of the client method that the hub invokes")
    acknowledge: Acknowledgement | None = Field(None, description="method to tell which events are stored")
    resume: Resume | None = Field(None, description="method to go on with after a pause; one instance only")


class SignalrConfig(ConnectorConfig):
    """A connection to one hub, over WebSockets."""

    type: Literal["signalr"]
    url: str = Field(description="the hub, as https://host/hub")
    inbound: Sequence[SignalrEntry] = Field(default=(), description="events to receive, and who handles them")
    protocol: Literal["json", "messagepack"] = Field(
        "json", description="what messages are written in; the hub must know it"
    )
    token: SecretStr | None = Field(None, description="sent as bearer token at every connect")
    token_file: str | None = Field(None, description="file with the token, read again at every connect")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="HTTP headers, sent at every connect")
    on_connect: Sequence[Invocation] = Field(
        default=(), description="methods invoked in order at every connect, such as one that joins a group"
    )
    skip_negotiation: bool = Field(default=False, description="open the WebSocket without asking the hub first")
    tls: SignalrTls | None = Field(None, description="certificates of https")
    max_pending: int = Field(1000, ge=1, description="events that wait to be stored; then the hub has to wait")
    max_pending_bytes: int = Field(67_108_864, ge=1, description="and their bytes, likewise")
    max_body: int = Field(
        16_777_216,
        ge=1024,
        le=1_073_741_824,
        description="bytes of what the hub sends at once; more ends the connection",
    )
    max_invocation: int = Field(
        32_768, ge=128, description="bytes of an outgoing invocation; a hub ends the connection above its own limit"
    )
    timeout: float = Field(30, gt=0, le=600, description="seconds for the answer to an invocation")
    connect_timeout: float = Field(15, gt=0, le=60, description="seconds to connect in")
    ping_interval: float = Field(15, gt=0, le=3600, description="seconds between signs of life to the hub")
    server_timeout: float = Field(30, gt=0, le=3600, description="seconds without one from the hub: it is lost then")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parsed = URL(url)
        if parsed.scheme not in ("http", "https", "ws", "wss") or not parsed.host or parsed.user is not None:
            raise ValueError("'url' is http(s):// or ws(s):// with a host; a token belongs under 'token'")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.token is not None and self.token_file is not None:
            raise ValueError("'token' and 'token_file' exclude each other")
        names = [entry.event.casefold() for entry in self.inbound]
        for entry in self.inbound:
            if names.count(entry.event.casefold()) > 1:
                raise ValueError(f"two entries receive {entry.event!r} (case does not count in event names)")
        return self

    def warnings(self) -> list[str]:
        """Name what anybody on the way can read, and `tls` without it."""
        url = URL(self.url)
        if url.scheme in ("https", "wss"):
            return []
        found = [] if self.tls is None else [f"'tls' has no effect, because 'url' starts with {url.scheme}://"]
        secret = self.token is not None or self.token_file is not None or bool(self.headers)
        if secret and not _is_loopback(url.host or ""):
            found.append(f"the token and headers for {url.host} are sent without encryption ({url.scheme}://)")
        return found


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
