"""Real caches: one of the module's own each, to be stopped and started again."""

from collections.abc import Iterator

import pytest

from gateway.coordination import CacheConfig, Coordinator, coordinator_for
from gateway.testing.coordinators import CoordinatorHarness
from tests.brokers.caches import CacheServer
from tests.conftest import missing
from tests.connectors.conftest import certificates  # noqa: F401 - a fixture
from tests.services import ServiceMissing, make


def cache(url: str, **keys: object) -> CacheConfig:
    return CacheConfig.model_validate({"url": url, **keys})


class Cache(CoordinatorHarness):
    """A server, and coordinators on it; a deadline that a busy machine does not miss by itself."""

    def __init__(self, server: CacheServer) -> None:
        self.server = server

    def coordinator(self, **keys: object) -> Coordinator:
        return coordinator_for(cache(self.server.url, **{"timeout": 0.5, **keys}))

    async def stop(self) -> None:
        self.server.kill()

    async def start(self) -> None:
        self.server.start()


def started(name: str) -> Iterator[CacheServer]:
    try:
        server = make(name)
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    assert isinstance(server, CacheServer)
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[CacheServer]:
    yield from started("redis")


@pytest.fixture(scope="module")
def memcached_server() -> Iterator[CacheServer]:
    yield from started("memcached")


@pytest.fixture(params=["redis", "memcached"])
def server(request: pytest.FixtureRequest) -> CacheServer:
    """Each cache in turn."""
    found = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(found, CacheServer)
    return found
