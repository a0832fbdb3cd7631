"""What a driver's error means is asked of the driver's own error, however SQLAlchemy has wrapped it."""

import asyncpg
import pytest
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import InterfaceError

from gateway.store.postgresql import WIRE
from gateway.store.wire import Fault

LOST = [
    asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    ConnectionResetError("reset by peer"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_lost_connection_is_an_outage_also_inside_the_adapters_error(error: Exception) -> None:
    adapter = PGDialect_asyncpg.import_dbapi()
    adapted = adapter.InternalClientError("the adapter's text")
    adapted.__cause__ = error

    assert WIRE.fault(error) is Fault.UNAVAILABLE
    assert WIRE.fault(adapted) is Fault.UNAVAILABLE
    assert WIRE.fault(InterfaceError("INSERT …", {}, adapted)) is Fault.UNAVAILABLE
