"""The configuration of a cache."""

import ssl
from typing import Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from gateway import plugins
from gateway.connector import StrictModel
from gateway.errors import ConfigError

TLS_SCHEMES: Final = {"rediss": "redis"}
"""Schemes that are another one over TLS."""


class CacheTls(StrictModel):
    """Whom to trust, and the own certificate if the server wants one. The server's name is always verified."""

    ca: str | None = Field(None, description="file: certificates to trust, PEM; default: the system's")
    certificate: str | None = Field(None, description="file: own certificate and its chain, PEM")
    key: str | None = Field(None, description="file: its private key, PEM")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("'key' needs 'certificate'")
        return self


class CacheConfig(StrictModel):
    """A cache by which instances wake each other and share hints. All that is promised holds without one."""

    url: SecretStr = Field(description="redis://host:6379/0, rediss://… (TLS) or memcached://host:11211")
    username: str | None = Field(None, min_length=1, description="name to log in with, in place of one in the url")
    password: SecretStr | None = Field(None, min_length=1, description="and its password")
    tls: CacheTls | None = Field(None, description="certificates, for rediss; memcached speaks TLS if this is there")
    prefix: str = Field(
        "gateway", pattern=r"^[A-Za-z0-9_.:-]{1,50}$", description="begins each key: one per group of instances"
    )
    timeout: float = Field(
        0.1, ge=0.01, le=1, allow_inf_nan=False, description="seconds for one call, after which it is done without"
    )

    @field_validator("url")
    @classmethod
    def _has_host(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            if not (parts.scheme and parts.hostname) or parts.port == 0:
                raise ValueError
        except ValueError:
            text = "expected redis://host:port/database, rediss://… or memcached://host:port"
            raise ValueError(text) from None
        kind, known = TLS_SCHEMES.get(parts.scheme, parts.scheme), plugins.names(plugins.COORDINATORS)
        if kind not in known:
            raise ValueError(f"'{kind}' is no cache{plugins.did_you_mean(kind, known) or f', there are: {known}'}")
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.tls is not None and self.scheme in TLS_SCHEMES.values():
            raise ValueError(f"'tls' needs {self.scheme}s:// in the url")
        if self.database and not self.database.isdecimal():
            raise ValueError("what follows the host in the url is the number of a database")
        if self.user is not None and self.secret is None:
            raise ValueError("'username' needs 'password'")
        return self

    @property
    def scheme(self) -> str:
        """What stands before `://`."""
        return self._parts.scheme

    @property
    def type(self) -> str:
        """Name of the coordinator that serves this url."""
        return TLS_SCHEMES.get(self.scheme, self.scheme)

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in TLS_SCHEMES or self.tls is not None

    @property
    def host(self) -> str:
        """Name or address of the server."""
        return self._parts.hostname or ""

    @property
    def port(self) -> int | None:
        """Its port, where the url says."""
        return self._parts.port

    @property
    def database(self) -> str:
        """What the url's path names."""
        return self._parts.path.strip("/")

    @property
    def user(self) -> str | None:
        """Name to log in with."""
        found = self.username or unquote(self._parts.username or "")
        return found or None

    @property
    def secret(self) -> str | None:
        """Password to log in with."""
        if self.password is not None:
            return self.password.get_secret_value()
        return unquote(self._parts.password or "") or None

    def context(self) -> ssl.SSLContext | None:
        """Return how to encrypt, None for not at all. Raises `ConfigError` for files that cannot be used."""
        if not self.secure:
            return None
        tls = self.tls or CacheTls.model_validate({})
        try:
            context = ssl.create_default_context(cafile=tls.ca)
            if tls.certificate is not None:
                context.load_cert_chain(tls.certificate, tls.key)
        except OSError as error:
            raise ConfigError([f"cache.tls: a file cannot be used: {error}"]) from error
        return context

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url.get_secret_value())
