"""How many jobs to claim ahead: enough to keep the workers busy over one round trip, never so many as to hoard them."""

from collections.abc import Sequence

from gateway.job import QueueJob

AHEAD = 0.1
"""Seconds of work to hold in memory."""
MOST = 200
MOST_BYTES = 16 * 1024 * 1024


class Appetite:
    """Knows how long handlers take lately, and how large their payloads are."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._seconds = 1.0
        self._bytes = 0.0

    def ended(self, seconds: float) -> None:
        """Learn how long one handler took."""
        self._seconds += (seconds - self._seconds) * 0.2

    def claimed(self, jobs: Sequence[QueueJob]) -> None:
        """Learn how large jobs are."""
        for job in jobs:
            self._bytes += (len(job.payload or b"") - self._bytes) * 0.2

    def ahead(self, youngest: float) -> int:
        """Return how many jobs to hold beyond the free workers; `youngest` is the age of the newest running handler.

        When even that one has run for long, the workers are not about to become free.
        """
        count = self._workers * AHEAD / max(self._seconds, youngest, 1e-6)
        return int(min(count, MOST, MOST_BYTES / max(self._bytes, 1.0)))
