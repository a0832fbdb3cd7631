from collections.abc import Iterator

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import missing
from tests.services import ServiceMissing


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """A Kafka of the module's own, to be stopped and started."""
    try:
        broker = Kafka()
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield broker.start()
    finally:
        broker.remove()
