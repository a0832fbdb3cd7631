"""The keys of an MQTT connector, and what must fit together in them."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from connectors.mqtt.topics import Filter, complaint, overlapping, parse_filter
from gateway.connector import ConnectorConfig, InboundEntry, StrictModel

_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


class Address(NamedTuple):
    """Where a broker is, and how it is spoken to."""

    host: str
    port: int
    tls: bool
    path: str | None
    """Of the websocket; None is plain TCP."""

    def __str__(self) -> str:
        """Return it without anything secret, for people."""
        return f"{self.host}:{self.port}"


class MqttTls(StrictModel):
    """Whom to trust, and the own certificate if the broker wants one."""

    ca: str | None = Field(None, description="file: certificates to trust, PEM; default: the system's")
    certificate: str | None = Field(None, description="file: own certificate and its chain, PEM")
    key: str | None = Field(None, description="file: its private key, PEM")
    key_password: SecretStr | None = Field(None, description="of the private key")
    verify: bool = Field(default=True, description="false takes any certificate: anybody can be the broker")


class MqttWill(StrictModel):
    """What the broker publishes when the connection is lost without a goodbye."""

    topic: str = Field(description="topic of the will")
    payload: str = Field("", description="its body, as text")
    qos: Literal[0, 1] = Field(1, description="quality of service of the will")
    retain: bool = Field(default=False, description="the broker keeps it for later subscribers")

    @field_validator("topic")
    @classmethod
    def _is_topic(cls, topic: str) -> str:
        if reason := complaint(topic):
            raise ValueError(f"not a topic to publish to: {reason}")
        return topic


class MqttEntry(InboundEntry):
    """One subscription. Its captures in braces become the message's parameters."""

    topic: str = Field(description="topic filter with +, # and captures, as in sensors/{device}/temperature")
    share: str | None = Field(None, description="group of a shared subscription: each message goes to one member")
    qos: Literal[0, 1, 2] = Field(1, description="0 may lose messages; 2 is served as 1, redeliveries told apart")
    retained: Literal["receive", "skip"] = Field(
        "receive", description="what the broker had kept before: a job with the header mqtt-retained, or nothing"
    )
    no_local: bool = Field(default=False, description="not what this connection itself has published (MQTT 5)")

    @field_validator("topic")
    @classmethod
    def _is_filter(cls, topic: str) -> str:
        parse_filter(topic)
        return topic

    @field_validator("share")
    @classmethod
    def _is_group(cls, share: str | None) -> str | None:
        if share is not None and not re.fullmatch(r"[^/+#\x00-\x1f]{1,200}", share):
            raise ValueError("the name of a group has 1 to 200 characters, without '/', '+' and '#'")
        return share

    @property
    def filter(self) -> Filter:
        """The filter, read."""
        return parse_filter(self.topic)

    @property
    def subscription(self) -> str:
        """What the broker is asked for."""
        return f"{self.filter}" if self.share is None else f"$share/{self.share}/{self.filter}"


class MqttConfig(ConnectorConfig):
    """A connection to an MQTT broker, to receive and to send."""

    type: Literal["mqtt"]
    url: str | None = Field(None, description="mqtt://host:1883, mqtts://host:8883, ws://host/mqtt or wss://host/mqtt")
    urls: Sequence[str] = Field(default=(), description="in place of url: several, tried in this order")
    version: Literal[5, "3.1.1"] = Field(5, description="MQTT version: 5, or 3.1.1, which has no headers")
    client_id: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="names the session, one per process, for good; default: gateway.name and the connector's name",
    )
    username: str | None = Field(None, description="name to log in with")
    password: SecretStr | None = Field(None, description="and its password")
    tls: MqttTls | None = Field(None, description="certificates, for mqtts and wss")
    session_expiry: int = Field(
        86_400, ge=0, le=0xFFFFFFFF, description="seconds for which the broker keeps the session while nobody is there"
    )
    keepalive: int = Field(20, ge=1, le=30, description="seconds without a sign of life until the broker is given up")
    connect_timeout: float = Field(10, gt=0, le=60, description="seconds to connect, log in and subscribe")
    inbound: Sequence[MqttEntry] = Field(default=(), description="what to subscribe to, and who handles it")
    receive_maximum: int = Field(1000, ge=1, le=65_535, description="received messages that wait to be stored")
    max_pending_bytes: int = Field(67_108_864, ge=1, description="and their bytes; beyond, nothing is read")
    max_inflight: int = Field(500, ge=1, le=65_535, description="sent messages that wait for their confirmation")
    publish_timeout: float = Field(10, gt=0, description="seconds until a message without confirmation has failed")
    retain: bool = Field(default=False, description="the broker keeps each sent message for later subscribers")
    will: MqttWill | None = Field(None, description="what the broker publishes when this connection is lost")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.url is None) == (not self.urls):
            raise ValueError("'url' or 'urls' is needed, one of them")
        addresses = self.addresses
        if self.tls is not None and not all(address.tls for address in addresses):
            raise ValueError("'tls' needs mqtts:// or wss:// in every address")
        if self.tls is not None and self.tls.key is not None and self.tls.certificate is None:
            raise ValueError("'tls.key' needs 'tls.certificate'")
        if self.password is not None and self.username is None:
            raise ValueError("'password' needs 'username'")
        if found := overlapping([entry.filter for entry in self.inbound]):
            first, second = (self.inbound[index].topic for index in found)
            raise ValueError(f"{first} and {second} may both take a message: give one of them its own connector")
        for entry in self.inbound:
            if entry.no_local and (entry.share is not None or self.version != 5):
                raise ValueError("'no_local' needs MQTT 5, and goes without 'share'")
        return self

    @property
    def addresses(self) -> Sequence[Address]:
        """The brokers, in the order in which they are tried."""
        return [parse_url(url) for url in ([self.url] if self.url is not None else self.urls)]

    @property
    def keeps_session(self) -> bool:
        """Whether the broker has to remember anything of this client."""
        return any(entry.qos for entry in self.inbound)

    def of_instance(self, instance: str, name: str) -> Self:
        """Give the session a name that stays, and that no other instance's connector has."""
        return self if self.client_id is not None else self.model_copy(update={"client_id": f"{instance}:{name}"})

    def warnings(self) -> list[str]:
        """Name what weakens the guarantee, and what is not as safe as it could be."""
        found = [
            f"{entry.topic}: qos 0 stores messages at most once, what is on its way may be lost"
            for entry in self.inbound
            if entry.qos == 0
        ]
        found += [
            f"{entry.topic}: qos 2 is served as qos 1; redeliveries are told apart, so that each makes one job"
            for entry in self.inbound
            if entry.qos == 2
        ]
        if self.keeps_session and self.session_expiry == 0:
            found.append("session_expiry 0: what is sent while this is not connected is lost")
        if self.tls is not None and not self.tls.verify:
            found.append("tls.verify is off: anybody on the way can be the broker")
        if self.password is not None and not all(address.tls for address in self.addresses):
            found += [f"the password goes to {each} unencrypted" for each in self.addresses if not _is_safe(each)]
        return found


def parse_url(url: str) -> Address:
    """Read a broker's address. Raises `ValueError` if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("an address is mqtt://, mqtts://, ws:// or wss:// and a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("user and password belong under 'username' and 'password', and an address has no ? and #")
    web = parts.scheme in ("ws", "wss")
    if not web and parts.path not in ("", "/"):
        raise ValueError("only ws:// and wss:// have a path")
    path = (parts.path if parts.path != "/" else "") or "/mqtt"
    return Address(
        parts.hostname, parts.port or _PORTS[parts.scheme], parts.scheme in ("mqtts", "wss"), path if web else None
    )


def _is_safe(address: Address) -> bool:
    return address.tls or address.host in ("localhost", "127.0.0.1", "::1")
