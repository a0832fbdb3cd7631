"""The configuration as frozen, strict models: every key, its default, its bounds and what it is for.

Connectors' own keys are not here: each connector brings its `config_class`.
"""

import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Self, TypeAlias

from pydantic import BaseModel, Field, SecretStr, SerializeAsAny, StringConstraints, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from gateway.connector import ConnectorConfig, StrictModel
from gateway.coordination import CacheConfig
from gateway.errors import StoreError
from gateway.schedules import ScheduleConfig, ScheduleName

Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Of an instance or a connector: it stands in rows, metrics and URLs."""
HandlerName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f]{1,255}$")]
Target: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
"""`module:attribute`."""

DEFAULT_DATABASE: Final = "sqlite:///gateway.db"


class AdminConfig(StrictModel):
    """The HTTP listener for health, metrics and the REST API."""

    listen: str = Field(
        default="127.0.0.1:8090", description="host:port; a token is required unless the host is loopback"
    )
    token: SecretStr | None = Field(default=None, min_length=1, description="asked for as 'Authorization: Bearer …'")

    @field_validator("listen")
    @classmethod
    def _is_host_and_port(cls, listen: str) -> str:
        host_and_port(listen)
        return listen

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if self.token is None and not is_loopback(self.host):
            raise ValueError("'token' is required, because 'listen' is not on loopback (127.0.0.1, ::1, localhost)")
        return self

    @property
    def host(self) -> str:
        """The host part of `listen`."""
        return host_and_port(self.listen)[0]

    @property
    def port(self) -> int:
        """The port part of `listen`; 0 lets the system choose."""
        return host_and_port(self.listen)[1]


class GatewayConfig(StrictModel):
    """The process as a whole."""

    name: Name = Field(
        default_factory=lambda: re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")[:64] or "gateway",
        description="name of this instance, written into each job it runs; default: the host's name",
    )
    admin: AdminConfig | None = Field(
        default_factory=AdminConfig, description="health, metrics and REST API; null switches them off"
    )
    grace: float = Field(
        default=25.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds that running jobs get to finish after SIGTERM",
    )


class DatabaseConfig(StrictModel):
    """Where jobs live."""

    url: SecretStr = Field(
        default=SecretStr(DEFAULT_DATABASE),
        description="sqlite:///file.db, postgresql://user:password@host/name, mysql://… or mariadb://…",
        json_schema_extra={"default": DEFAULT_DATABASE},
    )
    read_only_url: SecretStr | None = Field(
        default=None,
        description="where schedules' conditions are asked, such as a user who may only read; default: url",
    )
    pool_size: int = Field(default=10, ge=1, le=1000, description="most connections of this process (not SQLite)")
    statement_timeout: Seconds = Field(
        default=10.0, description="seconds after which a statement of the gateway is given up"
    )

    @field_validator("url", "read_only_url")
    @classmethod
    def _can_be_opened(cls, url: SecretStr | None) -> SecretStr | None:
        from gateway.store.url import engine_url

        if url is None:
            return None
        try:
            engine_url(url.get_secret_value())
        except StoreError as error:
            raise ValueError(str(error)) from None
        return url


class JobsConfig(StrictModel):
    """How jobs run."""

    enabled: bool = Field(
        default=True, description="false: this process stores messages, and leaves the jobs to others"
    )
    workers: int = Field(default=5, ge=1, le=1000, description="how many jobs run at the same time")
    poll_interval: Seconds = Field(default=5.0, description="seconds between looks for jobs that nobody announced")
    max_retries: int = Field(
        default=3, ge=0, le=1000, description="attempts after the first, unless an entry says otherwise"
    )
    retry_delay: Seconds = Field(
        default=2.0, description="seconds before the first retry; doubled for each further one"
    )
    retry_max_delay: Seconds = Field(default=300.0, description="seconds that the doubling stops at")
    timeout: Seconds = Field(default=300.0, description="seconds a handler may take, unless the handler says otherwise")
    lease: float = Field(
        default=10.0,
        ge=1,
        le=3600,
        allow_inf_nan=False,
        description="seconds without a heartbeat until others take over",
    )
    scheduler_check_interval: Seconds = Field(
        default=60.0, description="seconds until a changed schedule is seen at the latest"
    )
    job_history_retention_days: int = Field(
        default=90,
        ge=0,
        le=36_500,
        description="days that finished jobs and their histories are kept; 0: for ever",
    )
    enable_metrics: bool = Field(default=True, description="serve /metrics on the admin listener")


class Config(StrictModel):
    """A whole configuration, checked: every connector by its own model, every handler's name known."""

    gateway: GatewayConfig = Field(default_factory=GatewayConfig, description=GatewayConfig.__doc__)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig, description=DatabaseConfig.__doc__)
    cache: CacheConfig | None = Field(default=None, description=CacheConfig.__doc__)
    jobs: JobsConfig = Field(default_factory=JobsConfig, description=JobsConfig.__doc__)
    connectors: Mapping[Name, SerializeAsAny[ConnectorConfig]] = Field(
        default_factory=dict, description="connections to brokers by name, each with its type"
    )
    schedules: Mapping[ScheduleName, ScheduleConfig] = Field(
        default_factory=dict, description="schedules by name, written to the database at start when they were changed"
    )
    handlers: Mapping[HandlerName, Target] = Field(
        default_factory=dict, description="handlers beside the installed ones: name to module:attribute"
    )
    notes: SkipJsonSchema[tuple[str, ...]] = Field(
        default=(), exclude=True, description="what the file says without effect; not a key of the file"
    )

    def secrets(self) -> list[str]:
        """Return every secret value and every password in a URL, longest first: what no output may hold."""
        found = {text for secret in _secrets(self) for text in (secret, *_passwords(secret))}
        return sorted((text for text in found if len(text) > 3), key=len, reverse=True)


def host_and_port(listen: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`. Raises `ValueError` with what was expected."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]*)):([0-9]{1,5})", listen)
    if match is None or int(match[3]) > 65_535:
        raise ValueError("expected host:port, such as 127.0.0.1:8090 or [::1]:8090")
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104 - ':8090' means every address, as elsewhere


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach `host`. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _secrets(value: object) -> Iterator[str]:
    match value:
        case SecretStr():
            yield value.get_secret_value()
        case BaseModel():
            for name in type(value).model_fields:
                yield from _secrets(getattr(value, name))
        case Mapping():
            for item in value.values():
                yield from _secrets(item)
        case list() | tuple():
            for item in value:
                yield from _secrets(item)
        case _:
            return


def _passwords(text: str) -> list[str]:
    return re.findall(r"://[^:/@\s]*:([^@/\s]+)@", text)
