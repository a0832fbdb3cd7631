from collections.abc import Iterator

import pytest

from tests.conftest import missing
from tests.services import Server, ServiceMissing, make
from tests.system.brokers import KINDS


def started(name: str) -> Iterator[Server]:
    try:
        server = make(name)
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
def kafka_server() -> Iterator[Server]:
    yield from started("kafka")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def a_url(request: pytest.FixtureRequest) -> str:
    """A fresh database in a file, and one on a server."""
    return str(request.getfixturevalue(f"{request.param}_url"))
