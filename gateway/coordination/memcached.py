"""Memcached: it cannot tell, so wake-ups are a number that everybody looks at, four times a second.

The library is a blocking one: its calls run in one thread, each with its socket's own deadline, so that none can be
cancelled between a command and its reply.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import Any, TypeVar

from pymemcache.client.base import Client

from gateway.coordination.pacing import MOST
from gateway.coordination.remote import CONNECT, RemoteCoordinator
from gateway.coordination.settings import CacheConfig
from gateway.errors import Disconnected

T = TypeVar("T")
LOOK = 0.25
"""Seconds between two looks at the number; it costs a hundredth of a percent of a small server each."""
LEAST = 5
"""Seconds that anything is kept at least: Memcached's second may be any part of one."""
TRIES = 4
COUNTED = 86_400


class _Bytes:
    """Values are bytes, whatever flags come with them: nothing is ever unpickled."""

    def serialize(self, _key: str, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, _key: str, value: bytes, _flags: int) -> bytes:
        return value


class _LoggedIn(Client):  # type: ignore[misc] # the library has no types
    """A connection that says who it is (`memcached --auth-file`) before its first command."""

    encryption: Callable[[], ssl.SSLContext | None] | None = None
    login: bytes | None = None
    tls_context: ssl.SSLContext | None

    def _connect(self) -> None:
        if self.encryption is not None and self.tls_context is None:
            self.tls_context = self.encryption()
        super()._connect()
        if self.login is not None and self.set("login", self.login, noreply=False) is not True:
            raise Disconnected("the name or the password was refused")


class MemcachedCoordinator(RemoteCoordinator):
    """Hints over Memcached 1.4 or newer."""

    type = "memcached"
    default_port = 11211

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        local = config.host == "localhost" and not config.secure  # the library tries the first address of a name only
        self._library = _LoggedIn(
            ("127.0.0.1" if local else config.host, config.port or self.default_port),
            serde=_Bytes(),
            connect_timeout=CONNECT,
            timeout=max(config.timeout, CONNECT / 4),
            no_delay=True,
            default_noreply=False,
        )
        self._library.encryption = config.context if config.secure else None
        if config.secret is not None:
            self._library.login = f"{config.user or ''} {config.secret}".encode()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memcached")
        self._counter = self._key("wake", "all")
        self._seen: int | None = None

    async def _get(self, key: str) -> bytes | None:
        found: bytes | None = await self._run(lambda: self._library.get(key))
        return found

    async def _put(self, values: Mapping[str, bytes], seconds: int) -> None:
        await self._run(lambda: self._library.set_many(values, max(LEAST, seconds), noreply=False))

    async def _add(self, key: str, value: bytes, seconds: int) -> bool:
        return bool(await self._run(lambda: self._library.add(key, value, max(LEAST, seconds), noreply=False)))

    async def _turn(self, key: str, rate: float) -> float:
        return await self._run(lambda: self._take_turn(key, rate))

    def _take_turn(self, key: str, rate: float) -> float:
        for _ in range(TRIES):
            found, unique = self._library.gets(key)
            now = time()
            due = min(max(now, _number(found) / 1e6), now + MOST)
            value, seconds = b"%d" % round((due + 1 / rate) * 1e6), round(MOST + 1 / rate) + LEAST
            if unique is None:
                taken = self._library.add(key, value, seconds, noreply=False)
            else:
                taken = self._library.cas(key, value, unique, seconds, noreply=False)
            if taken:
                return due - now
        raise Disconnected("too many take turns at once")

    async def _tell(self) -> None:
        told = await self._run(self._count)
        if self._seen is not None and told == self._seen + 1:
            self._seen = told

    def _count(self) -> int:
        """Count one up; where there is no number (any more), begin with one that was not there before."""
        told: int | None = self._library.incr(self._counter, 1, noreply=False)
        if told is None:
            self._library.add(self._counter, b"%d" % (time() * 1000), COUNTED, noreply=False)
            told = 0
        return told

    async def _hear(self) -> None:
        while True:
            number = await self._ask(self._look, None)
            if number is not None and number != self._seen:
                self._heard()
            self._seen = number
            await asyncio.sleep(LOOK)

    async def _look(self) -> int | None:
        return _number(await self._get(self._counter))

    async def _ping(self) -> str:
        version = await self._run(self._library.version)
        return f"memcached {bytes(version).decode('ascii', 'replace')} at {self._place}"

    async def _disconnect(self) -> None:
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._library.close)
        self._thread.shutdown(wait=False)
        await asyncio.wait({closing}, timeout=CONNECT)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _number(value: Any) -> int:
    """Return a counter's value; 0 for anything that is none."""
    text = bytes(value or b"").strip()
    return int(text) if text.isdigit() and len(text) < 20 else 0
