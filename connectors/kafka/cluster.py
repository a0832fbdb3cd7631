"""A Kafka cluster as seen over one connection of our own: who it is, which topics it has, and whether it answers.

The client library gives no reason when it cannot start, and knows neither the cluster's nor the topics' ids.
"""

import asyncio
import logging
import random
import re
import ssl
import uuid
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar, TypeVar

from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

from connectors.kafka.config import KafkaConfig, Tokens
from gateway.errors import ConfigError, Disconnected

T = TypeVar("T")
LEADER_NOT_AVAILABLE = 5
"""The code of a topic that is there, but is just being made."""


class _Uuid:
    """The one type that the library's protocol lacks."""

    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))

    @classmethod
    def repr(cls, value: uuid.UUID) -> str:
        return str(value)


_TEXT, _TAGS = CompactString("utf-8"), ("tags", TaggedFields)


class _Response12(Response):  # type: ignore[misc]  # the library has no types
    API_KEY, API_VERSION = 3, 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), _TAGS)),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)), _TAGS,
                    ),
                ),
                ("authorized_operations", Int32),
                _TAGS,
            ),
        ),
        _TAGS,
    )  # fmt: skip


class _Request12(RequestStruct):  # type: ignore[misc]  # the library has no types
    FLEXIBLE_VERSION = True
    API_KEY, API_VERSION, RESPONSE_TYPE = 3, 12, _Response12
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("topic", _TEXT), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        _TAGS,
    )


class _Response4(Response):  # type: ignore[misc]  # the library has no types
    API_KEY, API_VERSION = 3, 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16), ("topic", String("utf-8")), ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                    ),
                ),
            ),
        ),
    )  # fmt: skip


class _Request4(RequestStruct):  # type: ignore[misc]  # the library has no types
    API_KEY, API_VERSION, RESPONSE_TYPE = 3, 4, _Response4
    SCHEMA = Schema(("topics", Array(String("utf-8"))), ("allow_auto_topic_creation", Boolean))


class _Metadata(Request[_Request4 | _Request12]):  # type: ignore[misc]  # the library has no types
    """Version 12 has the topics' ids (Kafka 3.1); what is older is asked without them."""

    API_KEY: ClassVar[int] = 3

    def __init__(self, topics: Iterable[str], *, create: bool) -> None:
        self._topics, self._create = list(topics), create

    def build(self, struct: Any) -> Any:
        if struct is _Request12:
            return struct([(uuid.UUID(int=0), name, {}) for name in self._topics], self._create, False, {})
        return struct(self._topics, self._create)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as its cluster describes it. `id` is another one once it was deleted and created again; '' if unknown."""

    id: str
    partitions: int
    error: int = 0


class Cluster:
    """One connection to any broker of a cluster. Not for many requests at once: it asks one after the other."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._security = config.security()
        self._connection: AIOKafkaConnection | None = None
        self._lock = asyncio.Lock()
        self._known: set[tuple[str, int]] = set()
        self.id = ""
        self.brokers = 0
        self.where = ""

    @property
    def client(self) -> dict[str, Any]:
        """The arguments that every client object of this cluster takes."""
        return {
            "bootstrap_servers": [
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self._hosts()
            ],
            "client_id": self._config.client_id,
            "request_timeout_ms": int(self._config.request_timeout * 1000),
            "metadata_max_age_ms": 10_000,
            **self._security,
        }

    async def describe(self, topics: Iterable[str], *, create: bool = False) -> dict[str, Topic]:
        """Return what the cluster says of topics; one that does not exist has `error`.

        `create` lets a broker that makes topics by itself do so. Raises `Disconnected` if no broker answers, and
        `ConfigError` if the login or the certificate is refused.
        """
        async with self._lock:
            request = _Metadata(topics, create=create)
            try:
                response = await (await self._connected()).send(request)
            except (errors.KafkaError, OSError, TimeoutError):  # that broker went away: others may be there
                self._drop()
                try:
                    response = await (await self._connected()).send(request)
                except (errors.KafkaError, OSError, TimeoutError) as error:
                    self._drop()
                    raise Disconnected(f"{self.where} does not answer: {reason(error)}") from error
        if not response.brokers:
            self._drop()
            raise self._unknown_here()
        self.id, self.brokers = response.cluster_id or "", len(response.brokers)
        self._known |= {(broker[1], broker[2]) for broker in response.brokers}
        return dict(_topic(each, ids=response.API_VERSION == _Response12.API_VERSION) for each in response.topics)

    async def close(self) -> None:
        """Close the connection."""
        closing = self._drop()
        if closing is not None:
            await asyncio.wait({asyncio.ensure_future(closing)}, timeout=1)

    def _unknown_here(self) -> ConfigError | Disconnected:
        """Return why: a broker that refuses a token tells nobody, it only gives empty answers."""
        if self._config.sasl == "OAUTHBEARER":
            return ConfigError([f"{self.where} does not accept the token{Tokens(self._config).age()}"])
        return Disconnected(f"{self.where} knows of no brokers")

    def _drop(self) -> "asyncio.Future[None] | None":
        connection, self._connection = self._connection, None
        return None if connection is None else connection.close()

    def _hosts(self) -> list[tuple[str, int]]:
        """Return the configured addresses, and those that the cluster told of, in case those are gone."""
        return [*self._config.addresses, *sorted(self._known - set(self._config.addresses))]

    async def _connected(self) -> AIOKafkaConnection:
        if self._connection is not None and self._connection.connected():
            return self._connection
        self._drop()
        hosts = self._hosts()
        random.shuffle(hosts)
        reasons: list[str] = []
        timeout = int(self._config.request_timeout * 1000 / 2)
        for host, port in hosts:
            self.where = f"{host}:{port}"
            try:
                self._connection = await create_conn(
                    host, port, client_id=self._config.client_id, request_timeout_ms=timeout, **self._security
                )
            except (
                errors.AuthenticationFailedError,
                errors.SaslAuthenticationFailed,
                errors.UnsupportedSaslMechanismError,
                ssl.SSLCertVerificationError,
            ) as error:
                raise ConfigError([f"{self.where} refused or was refused: {reason(error)}"]) from error
            except (errors.KafkaError, OSError, TimeoutError, ValueError, AssertionError, KeyError) as error:
                reasons.append(f"{self.where}: {reason(error)}")
            else:
                return self._connection
        raise Disconnected(f"no broker can be reached ({'; '.join(reasons)})")


def reason(error: BaseException) -> str:
    """Return an error of the client library as words."""
    if isinstance(error, TimeoutError | errors.RequestTimedOutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = re.sub(r"^\[Error -?\d+\] (\w+: )?", "", str(error)) or type(error).__name__
    cause = error.__cause__
    return f"{text} ({reason(cause)})" if cause is not None and cause is not error else text


async def settled(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Run work of the client library that must not be cancelled half-way. Raises `TimeoutError` after `seconds`.

    When the caller is cancelled, the work still gets a moment to end in order; then, and after a time-out, it is
    cancelled: some calls of the library never end while a broker is away.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=min(seconds, 2.0))
        await _cancelled(task)
        raise
    if not done:
        await _cancelled(task)
    if not done or task.cancelled():  # it may cancel itself, when something of it was cancelled before
        raise TimeoutError
    return task.result()


class _Closing(dict[Any, AIOKafkaConnection]):
    """The connections of a client that is done: one that was still being made is closed as soon as it is."""

    def __setitem__(self, key: Any, connection: AIOKafkaConnection) -> None:
        super().__setitem__(key, connection)
        connection.close()


async def close(stopping: Any, client: Any) -> None:
    """Stop a client object within seconds. What the library leaves open is closed by force, at once or soon after."""
    with suppress(errors.KafkaError, TimeoutError, OSError):
        await settled(stopping, 3)
    client._conns = _Closing(client._conns)  # noqa: SLF001 - the library forgets what it is just connecting
    with suppress(errors.KafkaError, TimeoutError, OSError):
        await settled(client.close(), 1)


async def _cancelled(task: "asyncio.Future[Any]") -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)
    if task.done() and not task.cancelled():
        task.exception()


class _Rare(logging.Handler):
    """Passes on each message at most once in ten seconds: a client without a broker logs 10,000 a second."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = str(record.msg)
        if record.created >= self._next.get(text, 0):
            if len(self._next) > 1000:
                self._next.clear()
            self._next[text] = record.created + 10
            logging.getLogger().handle(record)


def calm_the_log() -> None:
    """Limit what the client library logs; done once."""
    logger = logging.getLogger("aiokafka")
    if not any(isinstance(handler, _Rare) for handler in logger.handlers):
        logger.addHandler(_Rare())
        logger.propagate = False


def _topic(described: Sequence[Any], *, ids: bool) -> tuple[str, Topic]:
    code, name = described[0], described[1]
    identity = described[2] if ids else uuid.UUID(int=0)
    partitions = described[4] if ids else described[3]
    return name, Topic(
        "" if identity.int == 0 else str(identity), len(partitions), 0 if code == LEADER_NOT_AVAILABLE else code
    )
