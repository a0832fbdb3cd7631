"""A producer of the client library that notices when the broker hangs up on it again and again."""

import asyncio
import time
from collections import defaultdict, deque
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection, CloseReason

from connectors.kafka.cluster import close
from gateway.errors import Disconnected

BREAKS, WITHIN = 3, 5.0
"""A broker that cuts the connection so often in so many seconds will not take what it is sent."""


class Producer:
    """Sends idempotently. The library repeats what was on its way when a connection broke, for ever, and tells nobody.

    After `BREAKS` everything that is unconfirmed fails with `Disconnected`, and the producer is of no more use.
    """

    def __init__(self, inner: AIOKafkaProducer) -> None:
        self._inner = inner
        self._unconfirmed = set[asyncio.Future[Any]]()
        self._breaks: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=BREAKS))
        self._on_closed = inner.client._on_connection_closed  # noqa: SLF001 - the library offers no other way to see it
        inner.client._on_connection_closed = self._closed  # noqa: SLF001 - as above

    async def start(self) -> None:
        """Find the cluster, and get an id from it."""
        await self._inner.start()

    async def send(self, topic: str, record: dict[str, Any]) -> str:
        """Send a record; return where it is once it is confirmed. Raises the library's errors, and `Disconnected`."""
        answer = await self._inner.send(topic, **record)
        self._unconfirmed.add(answer)
        try:
            stored = await answer
        finally:
            self._unconfirmed.discard(answer)
        return f"{topic}[{stored.partition}]@{stored.offset}"

    async def close(self) -> None:
        """Stop it within seconds."""
        await close(self._inner.stop(), self._inner.client)

    def _closed(self, connection: AIOKafkaConnection, reason: CloseReason) -> None:
        self._on_closed(connection, reason)
        if reason is not CloseReason.CONNECTION_BROKEN:
            return
        where = f"{connection.host}:{connection.port}"
        breaks, now = self._breaks[where], time.monotonic()
        breaks.append(now)
        if len(breaks) == BREAKS and now - breaks[0] < WITHIN:
            for answer in self._unconfirmed:
                if not answer.done():
                    answer.set_exception(Disconnected(f"{where} cut the connection {BREAKS} times in a row"))
