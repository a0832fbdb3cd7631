"""The coordinators: without a cache, on Redis and on Memcached."""

import pytest

from gateway.coordination import Coordinator
from gateway.testing.coordinators import CoordinatorConformance, CoordinatorHarness
from tests.coordination.conftest import Cache


class Nothing(CoordinatorHarness):
    def coordinator(self):
        return Coordinator()


class TestNone(CoordinatorConformance):
    tells = False

    @pytest.fixture
    def harness(self):
        return Nothing()


class TestRedis(CoordinatorConformance):
    @pytest.fixture
    def harness(self, redis_server):
        return Cache(redis_server)


class TestMemcached(CoordinatorConformance):
    @pytest.fixture
    def harness(self, memcached_server):
        return Cache(memcached_server)
