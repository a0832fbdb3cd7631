"""Publishing to a Kafka cluster, idempotently, each message confirmed by all replicas."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaProducer, errors

from connectors.kafka.cluster import Cluster, reason, settled
from connectors.kafka.config import KafkaConfig, check_topic
from connectors.kafka.producer import Producer
from gateway.errors import DeliveryError, Disconnected, NotConnected
from gateway.message import Message

REFUSED_BATCH = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTimestampError,
    errors.UnknownError,
)
"""A broker refuses a batch as a whole for one of its records; each is then sent alone to see which it was."""
BROKEN = (
    errors.OutOfOrderSequenceNumber,
    errors.ProducerFenced,
    errors.InvalidProducerIdMapping,
    errors.ProducerClosed,
)
"""What every later message of a producer gets whose batch was refused."""
TRIES = 3


class Sink:
    """Publishes through one producer at a time. One that saw a refusal is replaced: it refuses all that follows."""

    def __init__(self, config: KafkaConfig, cluster: Cluster) -> None:
        self._config, self._cluster = config, cluster
        self._producer: Producer | None = None
        self._topics: set[str] = set()
        self._making = asyncio.Lock()
        self._alone = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def publish(self, message: Message) -> str:
        """Return where it is once all replicas have it. Raises `DeliveryError` otherwise, at the latest in time.

        Raises `Disconnected` if the brokers cut the connection, `NotConnected` if none can be reached.
        """
        record = to_record(message, self._config.max_message)
        try:
            async with asyncio.timeout(self._config.delivery_timeout):
                await self._see_topic(message.topic)
                return await self._send(message.topic, record)
        except TimeoutError as error:
            self._replace(self._producer)
            text = f"{message.topic}: not confirmed within {self._config.delivery_timeout:g} s, it may still arrive"
            raise DeliveryError(text) from error
        except errors.KafkaConnectionError as error:
            raise NotConnected(f"{message.topic}: {reason(error)}") from error
        except errors.KafkaError as error:
            raise DeliveryError(f"{message.topic}: {reason(error)}", permanent=_is_permanent(error)) from error

    async def close(self) -> None:
        """Close every producer; messages not confirmed by now fail."""
        self._replace(self._producer)
        if self._closing:
            await asyncio.wait(self._closing, timeout=5)

    async def _send(self, topic: str, record: dict[str, Any]) -> str:
        for again in range(TRIES):
            producer = await self._ready_producer()
            try:
                return await producer.send(topic, record)
            except Disconnected:
                self._replace(producer)
                raise
            except errors.KafkaError as error:
                self._replace(producer)
                if isinstance(error, REFUSED_BATCH):
                    break
                if not isinstance(error, BROKEN) or again == TRIES - 1:
                    raise
        async with self._alone:
            producer = await self._new_producer()
            try:
                return await producer.send(topic, record)
            finally:
                self._end(producer)

    async def _see_topic(self, topic: str) -> None:
        """Ask for a topic before the producer does, which would wait for one that is missing, and for ever after."""
        if topic not in self._topics:
            found = (await self._cluster.describe([topic], create=True))[topic]
            if found.error:
                raise DeliveryError(f"the topic {topic} does not exist, or may not be seen (error {found.error})")
            self._topics.add(topic)

    async def _ready_producer(self) -> Producer:
        async with self._making:
            if self._producer is None:
                self._producer = await self._new_producer()
            return self._producer

    async def _new_producer(self) -> Producer:
        inner = AIOKafkaProducer(
            **self._cluster.client,
            enable_idempotence=True,
            acks="all",
            compression_type=self._config.compression,
            max_request_size=self._config.max_message,
            max_batch_size=min(262_144, self._config.max_message),
        )
        producer = Producer(inner)
        try:
            await settled(producer.start(), self._config.request_timeout)
        except BaseException:
            self._end(producer)
            raise
        return producer

    def _replace(self, producer: Producer | None) -> None:
        if producer is not None and producer is self._producer:
            self._producer = None
            self._end(producer)

    def _end(self, producer: Producer) -> None:
        task = asyncio.create_task(producer.close(), name="kafka producer closing")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def to_record(message: Message, limit: int) -> dict[str, Any]:
    """Return what the producer takes. Raises `DeliveryError` for what no broker takes: others would fail with it."""
    try:
        check_topic(message.topic)
    except ValueError as error:
        raise DeliveryError(str(error), permanent=True) from error
    value = None if message.tombstone else message.body
    if value is None and message.key is None:
        raise DeliveryError(f"{message.topic}: a tombstone needs a key", permanent=True)
    headers = [(name, content) for name, content in message.headers if name.lower() != "message-id"]
    if message.content_type is not None and message.header("content-type") is None:
        headers.append(("content-type", message.content_type.encode()))
    if message.message_id is not None:
        headers.append(("message-id", message.message_id.encode()))
    size = len(value or b"") + len(message.key or b"") + sum(len(n.encode()) + len(v) + 10 for n, v in headers) + 100
    if size > limit:
        raise DeliveryError(f"{message.topic}: {size} bytes are more than max_message ({limit})", permanent=True)
    return {"value": value, "key": message.key, "headers": headers, "timestamp_ms": _timestamp(message)}


def _timestamp(message: Message) -> int | None:
    if message.timestamp is None:
        return None
    if message.timestamp > datetime.now(UTC) + timedelta(minutes=59):
        raise DeliveryError(f"{message.topic}: its timestamp {message.timestamp} lies in the future", permanent=True)
    return max(0, int(message.timestamp.timestamp() * 1000))


def _is_permanent(error: errors.KafkaError) -> bool:
    permanent = (errors.MessageSizeTooLargeError, errors.InvalidTimestampError, errors.InvalidTopicError)
    return isinstance(error, permanent)
