"""The services that other tests stand on."""

import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.services import PostgreSQL, Server


@pytest.mark.database
def test_a_database_is_fresh(database_url: str) -> None:
    assert urlsplit(database_url).path.strip("/")


@pytest.mark.database
def test_a_killed_server_comes_back_on_its_port_with_its_data() -> None:
    server: Server = PostgreSQL().start()
    try:
        asyncio.run(_execute(server, "CREATE TABLE kept AS SELECT 7 AS value"))
        port = server.port
        server.kill()
        assert not server.answers()
        server.start()
        assert server.port == port
        assert asyncio.run(_execute(server, "SELECT value FROM kept")) == 7
        server.stop()
        assert not server.answers()
    finally:
        server.remove()
    assert not server.folder.exists()


async def _execute(server: Server, statement: str) -> object:
    session = await asyncpg.connect(f"{server.url}/postgres")
    try:
        return await session.fetchval(statement)
    finally:
        await session.close()
