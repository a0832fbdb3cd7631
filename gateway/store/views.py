"""The verbs that only look."""

from collections.abc import Iterable, Sequence

from gateway.connector import StoredPosition
from gateway.job import JobHistory, QueueJob
from gateway.store import instances, operate, positions
from gateway.store.dialect import Dialect
from gateway.store.driver import Driver
from gateway.store.values import InstanceRow, JobFilter, SourcePosition, Statistics


class Views:
    """What is in one database, as it was at one moment of each call."""

    def __init__(self, driver: Driver, *, lease: float) -> None:
        self._driver, self._lease = driver, lease

    async def get(self, job_id: str) -> QueueJob | None:
        """Return a job; None if there is none of that id."""
        return await self._driver.read(lambda: operate.get(self._dialect, job_id))

    async def history(self, job_id: str) -> list[JobHistory]:
        """Return a job's ended attempts, the first one first."""
        return await self._driver.read(lambda: operate.history(self._dialect, job_id))

    async def list(self, wanted: JobFilter) -> Sequence[QueueJob]:
        """Return one page of jobs, the newest first."""
        return await self._driver.read(lambda: operate.find(self._dialect, wanted))

    async def retriable(self, *, seconds: float, attempts: int, limit: int) -> Sequence[str]:
        """Return the ids of jobs that failed in the last `seconds`, for whom one more attempt might do.

        Their attempts, fewer than `attempts` in all, were used up by errors that are tried again.
        """
        return await self._driver.read(lambda: operate.retriable(self._dialect, seconds, attempts, limit))

    async def statistics(self) -> Statistics:
        """Count jobs."""
        occupied = self._driver.occupied()
        return await self._driver.read(lambda: operate.statistics(self._dialect, self._lease, occupied))

    async def instances(self) -> Sequence[InstanceRow]:
        """Return the processes that the database knows, dead ones for a day included."""
        occupied = self._driver.occupied()
        return await self._driver.read(lambda: instances.find(self._dialect, self._lease, occupied))

    async def running(self) -> Sequence[InstanceRow]:
        """Return those of them that may be alive: one that is cut off or was just killed counts for its lease."""
        if self._driver.occupied() is None:
            return await self._driver.read(lambda: instances.running(self._dialect, self._lease))
        return [row for row in await self.instances() if row.alive]

    async def positions(
        self, connector: str, cluster: str, topic: str, partitions: Iterable[int]
    ) -> dict[int, StoredPosition]:
        """Return the stored positions of a log's partitions; one never stored is left out."""
        source, wanted = (connector, cluster, topic), set(partitions)
        return await self._driver.read(lambda: positions.of_topic(self._dialect, source, wanted))

    async def all_positions(self, connector: str | None = None) -> Sequence[SourcePosition]:
        """Return every stored position, of one connector or of all, in order."""
        return await self._driver.read(lambda: positions.find(self._dialect, connector))

    async def ping(self) -> None:
        """Return if the database answers within 2 s, else raise `StoreUnavailable`."""
        await self._driver.ping()

    async def durability(self) -> Sequence[str]:
        """Return one line for each setting by which the database promises less than a commit that lasts."""
        return await self._driver.durability()

    @property
    def _dialect(self) -> Dialect:
        return self._driver.dialect
