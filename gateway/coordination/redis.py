"""Redis: wake-ups by publish and subscribe, turns by a script on the server's own clock."""

from collections.abc import Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.coordination.pacing import MOST
from gateway.coordination.remote import CONNECT, RemoteCoordinator
from gateway.coordination.settings import CacheConfig, CacheTls
from gateway.errors import Disconnected

SILENCE = 4.0
"""Seconds without a message after which the subscription is asked whether it is still there."""

TURN = """local t = redis.call('TIME')
local now, most, gap = t[1] * 1000000 + t[2], tonumber(ARGV[1]), tonumber(ARGV[2])
local due = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
due = math.min(math.max(due, now), now + most)
local kept = string.format('%.0f', (due - now + gap) / 1000 + 1000)
redis.call('SET', KEYS[1], string.format('%.0f', due + gap), 'PX', kept)
return string.format('%.0f', due - now)"""


class RedisCoordinator(RemoteCoordinator):
    """Hints over Redis 5 or newer, or what speaks its protocol."""

    type = "redis"
    default_port = 6379

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self._pool: BlockingConnectionPool = BlockingConnectionPool(
            max_connections=8,
            timeout=CONNECT,
            connection_class=SSLConnection if config.secure else Connection,
            host=config.host,
            port=config.port or self.default_port,
            db=int(config.database or 0),
            username=config.user,
            password=config.secret,
            socket_timeout=max(config.timeout, CONNECT / 4),
            socket_connect_timeout=CONNECT,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **_encryption(config),
        )
        self._client: Redis = Redis(connection_pool=self._pool)
        self._channel = self._key("wake", "all")

    async def _get(self, key: str) -> bytes | None:
        found: Any = await self._client.get(key)
        return bytes(found) if isinstance(found, bytes) else None

    async def _put(self, values: Mapping[str, bytes], seconds: int) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for key, value in values.items():
            _ = pipeline.set(key, value, ex=seconds)
        await pipeline.execute()

    async def _add(self, key: str, value: bytes, seconds: int) -> bool:
        return bool(await self._client.set(key, value, ex=seconds, nx=True))

    async def _turn(self, key: str, rate: float) -> float:
        micro = await self._client.eval(TURN, 1, key, str(MOST * 1e6), str(1e6 / rate))
        return float(micro) / 1e6

    async def _tell(self) -> None:
        await self._client.publish(self._channel, self._me)

    async def _hear(self) -> None:
        subscription = self._client.pubsub()
        asked = False
        try:
            await subscription.subscribe(self._channel)
            while True:
                message = await subscription.get_message(timeout=SILENCE)
                if message is not None:
                    asked = False
                    theirs = message["type"] == "message" and message["data"] != self._me.encode()
                    if theirs or message["type"] == "subscribe":
                        self._heard()
                elif asked:
                    raise Disconnected("the subscription does not answer")
                else:
                    await subscription.ping()
                    asked = True
        finally:
            await subscription.aclose()  # type: ignore[no-untyped-call] # the library leaves it out

    async def _ping(self) -> str:
        await self._client.ping()
        return f"redis at {self._place}"

    async def _disconnect(self) -> None:
        await self._pool.disconnect(inuse_connections=True)


def _encryption(config: CacheConfig) -> dict[str, Any]:
    """Return how to encrypt; the library verifies the server and its name unless it is told not to."""
    tls = config.tls or CacheTls.model_validate({})
    wanted = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    return wanted if config.secure else {}
