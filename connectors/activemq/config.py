"""The keys of an ActiveMQ connector, and what must fit together in them."""

import ssl
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from gateway.connector import ConnectorConfig, InboundEntry, StrictModel
from gateway.errors import ConfigError

_PORTS = {"stomp": 61613, "stomp+ssl": 61614}


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int
    secure: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ActiveMQTls(StrictModel):
    """Whom to trust, and the own certificate."""

    ca: str | None = Field(None, description="file: certificates to trust, PEM; default: the system's")
    certificate: str | None = Field(None, description="file: own certificate and its chain, PEM")
    key: str | None = Field(None, description="file: its private key, PEM")
    key_password: SecretStr | None = Field(None, description="of the private key")
    server_name: str | None = Field(None, description="name in the broker's certificate; default: the URL's host")
    verify: bool = Field(default=True, description="false takes any certificate, from anybody: for tests only")


class ActiveMQEntry(InboundEntry):
    """A queue or a topic to receive from."""

    queue: str | None = Field(None, description="name of the queue to receive from, without /queue/")
    topic: str | None = Field(None, description="instead of queue: name of the topic, without /topic/")
    ack: Literal["client", "client-individual"] = Field(
        "client", description="acknowledge all up to a message at once, or each by itself"
    )
    prefetch: int = Field(
        500,
        ge=1,
        le=100_000,
        description="messages to hold unacknowledged at most; Artemis counts bytes, 1 KiB for each",
    )
    selector: str | None = Field(
        None, description="condition on headers, in JMS's words: region = 'EU'; on Artemis all headers are text"
    )
    subscription: str | None = Field(
        None, description="topic: name of a durable subscription, kept while the gateway is away; needs client_id"
    )
    dedupe_redelivered: bool = Field(
        default=True, description="false stores a message once more when the broker delivers it again"
    )
    key_header: str = Field(
        "JMSXGroupID", min_length=1, description="header with the ordering key; Classic does not pass JMSXGroupID on"
    )

    @field_validator("queue", "topic", "selector", "subscription", "key_header")
    @classmethod
    def _is_printable(cls, text: str | None) -> str | None:
        return _printable(text)

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if (self.queue is None) == (self.topic is None):
            raise ValueError("either 'queue' or 'topic' is needed")
        name = self.queue if self.topic is None else self.topic
        if not name or name.startswith("/"):
            raise ValueError("'queue' and 'topic' are bare names, as in orders.placed")
        if self.subscription is not None and self.topic is None:
            raise ValueError("'subscription' is for a topic: a queue keeps its messages anyway")
        return self

    @property
    def destination(self) -> str:
        """The name as STOMP writes it."""
        return f"/queue/{self.queue}" if self.topic is None else f"/topic/{self.topic}"

    @property
    def source(self) -> str:
        """What tells it from the connector's other entries."""
        return self.destination if self.subscription is None else f"{self.destination} {self.subscription}"

    @property
    def scope(self) -> str | None:
        """Where a message's id is unique: each subscription of a topic gets its own copy, of a queue one gets it."""
        if not self.dedupe_redelivered:
            return None
        if self.topic is None:
            return self.destination
        return f"{self.destination}\n{self.subscription or ''}\n{self.handler}"


class ActiveMQConfig(ConnectorConfig):
    """A connection to ActiveMQ Classic or Artemis by STOMP 1.2: one to receive by, one to send by."""

    type: Literal["activemq"]
    url: str | None = Field(None, description="stomp://host:port, or stomp+ssl://host:port for TLS")
    urls: Sequence[str] = Field(default=(), description="instead of url: tried in this order whenever it connects")
    inbound: Sequence[ActiveMQEntry] = Field(default=(), description="where to receive from, and who handles it")
    username: str | None = Field(None, description="user to log in as")
    password: SecretStr | None = Field(None, description="of the user")
    client_id: str | None = Field(
        None, min_length=1, description="owner of durable subscriptions; the broker lets one be connected at a time"
    )
    virtual_host: str | None = Field(None, min_length=1, description="the broker's host name; default: that of the URL")
    tls: ActiveMQTls | None = Field(None, description="certificates, for stomp+ssl")
    connect_timeout: float = Field(10, gt=0, le=60, description="seconds for a connection, login included")
    heartbeat: float = Field(
        5, ge=0.1, le=10, description="seconds between two signs of life; a broker silent 2.5 times as long is gone"
    )
    send_timeout: float = Field(15, gt=0, le=600, description="seconds until a message must be confirmed")
    send_as: Literal["auto", "text", "bytes"] = Field(
        "auto", description="what Java receivers get; auto: text if the content type says so and it is UTF-8"
    )
    max_message: int = Field(
        100_000_000, ge=1024, description="bytes of a published message at most; brokers cut the connection for more"
    )
    max_pending_bytes: int = Field(
        67_108_864, ge=1, description="bytes of messages waiting to be stored; then nothing more is read"
    )

    @field_validator("url", "urls")
    @classmethod
    def _are_urls(cls, urls: str | Sequence[str] | None) -> str | Sequence[str] | None:
        for url in [urls] if isinstance(urls, str) else urls or ():
            parse_url(url)
        return urls

    @field_validator("username", "client_id", "virtual_host")
    @classmethod
    def _is_printable(cls, text: str | None) -> str | None:
        return _printable(text)

    @field_validator("password")
    @classmethod
    def _is_printable_too(cls, password: SecretStr | None) -> SecretStr | None:
        _printable(None if password is None else password.get_secret_value())
        return password

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.url is None) == (not self.urls):
            raise ValueError("either 'url' or 'urls' is needed")
        if (self.username is None) != (self.password is None):
            raise ValueError("'username' and 'password' belong together")
        if self.tls is not None and not all(address.secure for address in self.addresses):
            raise ValueError("'tls' is for stomp+ssl:// only")
        if self.tls is not None and (self.tls.key is None) != (self.tls.certificate is None):
            raise ValueError("'tls.certificate' and 'tls.key' belong together")
        durable = [entry.subscription for entry in self.inbound if entry.subscription is not None]
        if durable and self.client_id is None:
            raise ValueError("'client_id' is needed, as there is an entry with a durable 'subscription'")
        if len(set(durable)) < len(durable):
            raise ValueError("two entries have the same 'subscription'")
        return self

    def warnings(self) -> list[str]:
        """Name what gives away secrets, trusts anybody, or loses messages."""
        found = []
        if self.tls is not None and not self.tls.verify:
            found.append("tls.verify is false: anybody in between can read and change everything")
        if self.password is not None and not all(address.secure for address in self.addresses):
            found.append("the password is sent in the clear (stomp:// instead of stomp+ssl://)")
        found += [
            f"messages of topic {entry.topic} are lost while the gateway is away: it has no 'subscription'"
            for entry in self.inbound
            if entry.topic is not None and entry.subscription is None
        ]
        return found

    @property
    def addresses(self) -> list[Address]:
        """The brokers, in the order in which they are tried."""
        return [parse_url(url) for url in (self.urls if self.url is None else [self.url])]

    def context(self) -> ssl.SSLContext:
        """Return how to speak TLS. Raises `ConfigError` if a file is missing or wrong."""
        tls = self.tls or ActiveMQTls.model_validate({})
        try:
            context = ssl.create_default_context(cafile=tls.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if tls.certificate is not None:
                password = tls.key_password.get_secret_value() if tls.key_password is not None else ""
                context.load_cert_chain(tls.certificate, tls.key, lambda: password)
        except (OSError, ValueError) as error:
            raise ConfigError([f"a file under 'tls' cannot be used: {error}"]) from error
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def parse_url(url: str) -> Address:
    """Split an address. Raises `ValueError` if it is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in _PORTS or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("stomp://host:port or stomp+ssl://host:port, as in stomp://broker.example:61613")
    if parts.username is not None or parts.password is not None:
        raise ValueError("user and password belong under 'username' and 'password'")
    return Address(host, port or _PORTS[parts.scheme], parts.scheme == "stomp+ssl")


def _printable(text: str | None) -> str | None:
    if text is not None and any(ord(character) < 32 or character == "\x7f" for character in text):
        raise ValueError("no control characters")
    return text
