"""What every database must do, as tests: subclass `StoreConformance` and give it a `url`.

    class TestPostgresql(StoreConformance):
        @pytest.fixture
        def url(self): ...    # of a fresh, empty database

The tests are coroutines: run them with pytest-asyncio in its automatic mode.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"gateway.testing.store.{part}"
        for part in (
            "harness",
            "ingesting",
            "claiming",
            "finishing",
            "instances",
            "upkeep",
            "operating",
            "scheduling",
            "ticking",
        )
    )
)

from gateway.testing.store.claiming import Claiming  # noqa: E402 - asserts are rewritten at import
from gateway.testing.store.finishing import Finishing  # noqa: E402
from gateway.testing.store.harness import Database, Lossy  # noqa: E402
from gateway.testing.store.ingesting import Ingesting  # noqa: E402
from gateway.testing.store.instances import Instances  # noqa: E402
from gateway.testing.store.operating import Operating  # noqa: E402
from gateway.testing.store.scheduling import Scheduling  # noqa: E402
from gateway.testing.store.ticking import Ticking  # noqa: E402
from gateway.testing.store.upkeep import Upkeep  # noqa: E402

__all__ = ["Database", "Lossy", "StoreConformance"]


class StoreConformance(Ingesting, Claiming, Finishing, Instances, Upkeep, Operating, Scheduling, Ticking):
    """All of it."""
