"""Turns at an even pace: each one is due a gap after the one before, or now."""

MOST = 30.0
"""Seconds that anybody waits for a turn at most."""
NAMES = 1000


class Pacing:
    """Turns by name, within this process. Time is an argument, in seconds."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def turn(self, name: str, rate: float, now: float) -> float:
        """Take the next turn at `rate` per second and return the seconds until it comes."""
        due = min(max(now, self._due.pop(name, now)), now + MOST)
        if len(self._due) >= NAMES:
            self._due = {each: when for each, when in self._due.items() if when > now}
        self._due[name] = due + 1 / rate
        return min(MOST, due - now)
