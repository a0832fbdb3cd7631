from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import pytest

from tests.brokers.mosquitto import Mosquitto
from tests.conftest import missing
from tests.services import Server, ServiceMissing, make
from tests.system.brokers import KINDS


class OpenMosquitto(Mosquitto):
    """Without access lists, for which it would drop all that comes for a session that was not resumed after a start."""

    def _configuration(self) -> str:
        lines = super()._configuration().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("acl_file"))


def started(name: str) -> Iterator[Server]:
    try:
        server = OpenMosquitto() if name == OpenMosquitto.name else make(name)
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="module", params=KINDS)
def broker_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each broker in turn: one of the module's own, to be killed and started."""
    yield from started(request.param)


@pytest.fixture(scope="module")
def broker_servers() -> Iterator[Mapping[str, Server]]:
    """All of them at once."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(contextmanager(started)(name)) for name in KINDS}


@pytest.fixture(scope="module")
def kafka_server() -> Iterator[Server]:
    yield from started("kafka")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def a_url(request: pytest.FixtureRequest) -> str:
    """A fresh database in a file, and one on a server."""
    return str(request.getfixturevalue(f"{request.param}_url"))
