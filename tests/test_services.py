"""The services that other tests stand on."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.conftest import missing
from tests.services import PostgreSQL, Server

ROOT = Path(__file__).parent.parent


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


@pytest.mark.database
def test_a_mix_of_services_runs_until_it_is_interrupted() -> None:
    names = ["mosquitto", "postgresql"]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.services", *names], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read().decode()
        code = process.wait(30)
    if code == 3:
        missing(errors)
    addresses = {name: urlsplit(url) for name, url in json.loads(line).items()}
    assert (list(addresses), code, errors) == (names, 0, "")
    for address in addresses.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address.hostname), address.port or 0), timeout=1)


async def _execute(server: Server, statement: str) -> object:
    session = await asyncpg.connect(f"{server.url}/postgres")
    try:
        return await session.fetchval(statement)
    finally:
        await session.close()
