"""Leaves alone what keeps failing, for a while that grows."""

import random

FAILURES = 3
"""In a row, until it is left alone."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0


class Breaker:
    """Decides whether to try. Time is an argument, in seconds."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether nothing is tried now, but for a first call after each pause."""
        return self._failures >= FAILURES

    def allows(self, now: float) -> bool:
        """Say whether to try now; after a pause that is true once."""
        if not self.open:
            return True
        if now < self._until:
            return False
        self._pause(now)
        return True

    def succeeded(self) -> None:
        """Count a call that was answered."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """Count a call that was not."""
        self._failures += 1
        if self.open:
            self._pause(now)

    def _pause(self, now: float) -> None:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - FAILURES, 16))
        self._until = now + longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads the instances
