"""MariaDB."""

import pytest

from gateway.testing.store import StoreConformance


@pytest.mark.database
class TestMariadb(StoreConformance):
    largest = 7 * 1024 * 1024  # max_allowed_packet is 16 MiB by default, and binary bodies grow by a third

    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url
