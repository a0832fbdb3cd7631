"""PostgreSQL."""

import pytest

from gateway.testing.store import StoreConformance


@pytest.mark.database
class TestPostgresql(StoreConformance):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url
