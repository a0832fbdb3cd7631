"""The keys of a Kafka connector, and how they become what the client library takes."""

import base64
import json
import re
import ssl
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import collect_hosts
from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from gateway.connector import ConnectorConfig, InboundEntry, StrictModel
from gateway.errors import ConfigError

TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class KafkaTls(StrictModel):
    """Whom to trust, and the own certificate. Present, even if empty, it switches TLS on."""

    ca: str | None = Field(None, description="file: certificates to trust, PEM; default: the system's")
    certificate: str | None = Field(None, description="file: own certificate and its chain, PEM")
    key: str | None = Field(None, description="file: its private key, PEM")
    key_password: SecretStr | None = Field(None, description="of the private key")
    verify: bool = Field(default=True, description="false takes any certificate, from anybody: for tests only")


def _text_of_time(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value  # YAML makes a datetime of an unquoted time


class KafkaEntry(InboundEntry):
    """Topics to receive from. How far they were stored is kept in the database, together with the jobs."""

    topic: str | Sequence[str] | None = Field(None, description="topic to receive from, or a list of them")
    pattern: str | None = Field(None, description="instead of topic: regular expression that matches whole topic names")
    group: str = Field(min_length=1, description="consumer group; its members share the partitions")
    instance_id: str | None = Field(
        None,
        min_length=1,
        description="static member of the group, unique per process: a restart within session_timeout moves nothing",
    )
    start_from: Annotated[str, BeforeValidator(_text_of_time)] = Field(
        "earliest",
        description="where to begin if neither the database nor the group knows: earliest, latest, committed (refuse)"
        " or a time, as in 2026-01-31T08:00:00Z",
    )
    on_position_invalid: Literal["stop", "earliest", "latest"] = Field(
        "stop", description="if the stored position is gone: the topic was created anew, or expired before it was read"
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="whether messages of open or aborted transactions are left out"
    )
    max_records: int = Field(500, ge=1, le=10_000, description="messages to store at once, at most")
    session_timeout: float = Field(
        10, ge=6, le=300, description="seconds without a sign of life until the group goes on without this member"
    )

    @field_validator("topic")
    @classmethod
    def _are_names(cls, topic: str | Sequence[str] | None) -> str | Sequence[str] | None:
        names = [topic] if isinstance(topic, str) else topic
        if names is not None:
            if not names or len(set(names)) < len(names):
                raise ValueError("'topic' is one name, or a list of different ones")
            for name in names:
                check_topic(name)
        return topic

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @field_validator("start_from")
    @classmethod
    def _is_start(cls, start: str) -> str:
        if start not in ("earliest", "latest", "committed"):
            try:
                aware = datetime.fromisoformat(start).tzinfo is not None
            except ValueError:
                aware = False
            if not aware:
                raise ValueError("earliest, latest, committed, or a time with its zone as in 2026-01-31T08:00:00Z")
        return start

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if (self.topic is None) == (self.pattern is None):
            raise ValueError("either 'topic' or 'pattern' is needed")
        return self

    @property
    def topics(self) -> list[str]:
        """The topics that are named; none if there is a pattern."""
        return [self.topic] if isinstance(self.topic, str) else list(self.topic or ())

    @property
    def matches(self) -> re.Pattern[str] | None:
        """The pattern, for whole names."""
        return None if self.pattern is None else re.compile(f"(?:{self.pattern})\\Z")

    @property
    def start_time(self) -> datetime | None:
        """The time to begin at, if it is one."""
        return (
            None if self.start_from in ("earliest", "latest", "committed") else datetime.fromisoformat(self.start_from)
        )


class KafkaConfig(ConnectorConfig):
    """A connection to a Kafka cluster."""

    type: Literal["kafka"]
    bootstrap_servers: str | Sequence[str] = Field(
        description="host:port of some brokers, a list or separated by commas"
    )
    inbound: Sequence[KafkaEntry] = Field(default=(), description="topics to receive from, and who handles them")
    client_id: str = Field("ingestion-gateway", description="name that brokers see in their logs and quotas")
    username: str | None = Field(None, description="user to log in as")
    password: SecretStr | None = Field(None, description="of the user")
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="how to log in; default: PLAIN with a username, OAUTHBEARER with a token"
    )
    token: SecretStr | None = Field(None, description="OAUTHBEARER: the token")
    token_file: str | None = Field(None, description="OAUTHBEARER: file with the token, read at every connect")
    tls: KafkaTls | None = Field(None, description="certificates; {} is enough for a public one")
    compression: Literal["gzip", "snappy", "lz4", "zstd"] | None = Field(None, description="of published messages")
    max_message: int = Field(1_048_576, ge=1024, le=100_000_000, description="bytes of a published message at most")
    delivery_timeout: float = Field(30, gt=0, le=600, description="seconds until a message not confirmed has failed")
    request_timeout: float = Field(10, ge=1, le=60, description="seconds until a silent broker counts as gone")

    @field_validator("bootstrap_servers")
    @classmethod
    def _are_addresses(cls, servers: str | Sequence[str]) -> str | Sequence[str]:
        for server in _split(servers):
            if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(:[0-9]{1,5})?", server):
                raise ValueError(f"host:port, as in broker.example:9092, not {server!r}")
        if not _split(servers):
            raise ValueError("at least one host:port is needed")
        return servers

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        with_token = self.token is not None or self.token_file is not None
        if self.token is not None and self.token_file is not None:
            raise ValueError("'token' or 'token_file', not both")
        if (self.username is None) != (self.password is None):
            raise ValueError("'username' and 'password' belong together")
        if self.username is not None and with_token:
            raise ValueError("either 'username' and 'password' or a token")
        if self.mechanism == "OAUTHBEARER" and not with_token:
            raise ValueError("OAUTHBEARER needs 'token' or 'token_file'")
        if self.mechanism not in (None, "OAUTHBEARER") and self.username is None:
            raise ValueError(f"{self.mechanism} needs 'username' and 'password'")
        if self.tls is not None and (self.tls.key is None) != (self.tls.certificate is None):
            raise ValueError("'tls.certificate' and 'tls.key' belong together")
        names = [name for entry in self.inbound for name in entry.topics]
        for name in names:
            others = [entry.pattern for entry in self.inbound if entry.matches and entry.matches.match(name)]
            if names.count(name) > 1 or others:
                raise ValueError(f"{name} is received by two entries; it needs a connector of its own for the second")
        return self

    def warnings(self) -> list[str]:
        """Name what gives away secrets or trusts anybody."""
        found = []
        if self.tls is not None and not self.tls.verify:
            found.append("tls.verify is false: anybody in between can read and change everything")
        if self.tls is None and self.mechanism in (None, "PLAIN") and self.username is not None:
            found.append("the password is sent in the clear (PLAIN without tls)")
        if self.tls is None and self.sasl == "OAUTHBEARER":
            found.append("the token is sent in the clear (OAUTHBEARER without tls)")
        return found

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of the brokers to begin with."""
        return [(host, port) for host, port, _ in collect_hosts(",".join(_split(self.bootstrap_servers)))]

    @property
    def sasl(self) -> str | None:
        """How to log in, or None."""
        if self.mechanism is not None:
            return self.mechanism
        if self.username is not None:
            return "PLAIN"
        return "OAUTHBEARER" if self.token is not None or self.token_file is not None else None

    def security(self) -> dict[str, Any]:
        """Return the client's arguments for TLS and login. Raises `ConfigError` if a file is missing or wrong."""
        protocol = ("SASL_" if self.sasl else "") + ("PLAINTEXT" if self.tls is None else "SSL")
        arguments: dict[str, Any] = {"security_protocol": protocol}
        if self.tls is not None:
            arguments["ssl_context"] = _context(self.tls)
        if self.sasl is not None:
            arguments["sasl_mechanism"] = self.sasl
        if self.password is not None:
            arguments["sasl_plain_username"] = self.username
            arguments["sasl_plain_password"] = self.password.get_secret_value()
        if self.sasl == "OAUTHBEARER":
            arguments["sasl_oauth_token_provider"] = Tokens(self)
        return arguments


class Tokens(AbstractTokenProvider):  # type: ignore[misc]  # the library has no types
    """Gives the client the token at each of its connects."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config

    async def token(self) -> str:
        """Return the token; a file is read anew, because others replace it before it expires."""
        return self.read()

    def read(self) -> str:
        """Return the token. Raises `ConfigError` if its file cannot be read."""
        if self._config.token is not None:
            return self._config.token.get_secret_value()
        path = Path(self._config.token_file or "")
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"token_file {path} cannot be read: {getattr(error, 'strerror', error)}"]) from error

    def age(self) -> str:
        """Return words on when the token expired; none if it did not, or does not tell."""
        try:
            claims = self.read().split(".")[1]
            expires = int(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
        except (ValueError, LookupError, TypeError):
            return ""
        return f", which expired {time.time() - expires:.0f} seconds ago" if expires < time.time() else ""


def check_topic(name: str) -> None:
    """Raise `ValueError` if no topic can have that name."""
    if not TOPIC.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{name!r} is no topic: 1 to 249 letters, digits, dots, underscores and hyphens")


def _split(servers: str | Sequence[str]) -> list[str]:
    parts = servers.split(",") if isinstance(servers, str) else servers
    return [part.strip() for part in parts if part.strip()]


def _context(tls: KafkaTls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            password = tls.key_password.get_secret_value() if tls.key_password is not None else ""
            context.load_cert_chain(tls.certificate, tls.key, lambda: password)
    except (OSError, ValueError) as error:
        raise ConfigError([f"tls: a certificate or key cannot be used: {error}"]) from error
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
