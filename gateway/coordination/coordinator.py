"""Hints between the instances of one database.

Nothing here decides anything: what is promised comes from the database alone. A hint that is lost, late, repeated or
a lie may cost time or work, and nothing else; whoever asks for one must hold to that.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from gateway.coordination.pacing import Pacing
from gateway.coordination.settings import CacheConfig
from gateway.job import JobStatus


@dataclass(frozen=True, slots=True)
class CacheState:
    """How a cache is at this moment."""

    state: Literal["none", "connecting", "connected", "unavailable"]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """A job's status as an instance told it. Only Completed is known to hold still."""

    status: JobStatus
    instance: str
    at: datetime


class Coordinator:
    """The coordinator of an instance without a cache, and the contract of all others, which are its subclasses.

    No method raises, and none takes longer than the cache's deadline. `pace` and `leads` answer as if there were no
    other instance when the cache does not.
    """

    type = "none"

    def __init__(self, config: CacheConfig | None = None) -> None:
        self._config = config
        self._pacing = Pacing()

    @property
    def state(self) -> CacheState:
        """How the cache is."""
        return CacheState("none")

    def start(self, secret: str, instance: str, on_wake: Callable[[], None]) -> None:
        """Begin, on the running loop, without waiting for the cache.

        `on_wake` is called on the loop, at most a hundred times a second, when another instance has called `wake`,
        and whenever one may have done so unheard.
        """

    async def close(self) -> None:
        """Leave no task, thread or connection behind. Bounded."""

    async def check(self) -> str:
        """Connect once and say in one line what answered. Raises `Disconnected`, with the reason."""
        return "none is configured"

    def wake(self) -> None:
        """Tell the other instances soon that there is work. Cheap: many calls within some milliseconds are one."""

    def remember(self, job_id: str, status: JobStatus) -> None:
        """Tell soon what a job's status became, in a commit that is over. Cheap; left out under load."""

    async def recall(self, job_id: str) -> Remembered | None:  # noqa: ARG002 - part of the contract
        """Return what was told of a job: not more than ten seconds old, unless it is Completed, which stays true."""
        return None

    async def leads(self, task: str, seconds: float) -> bool:  # noqa: ARG002 - part of the contract
        """Say whether to be the eager one at a task for the next `seconds`; others may believe so as well."""
        return True

    async def pace(self, name: str, rate: float) -> float:
        """Return the seconds (30 at most) to wait for a turn, so that turns of that name come to `rate` per second."""
        return self._pacing.turn(name, rate, asyncio.get_running_loop().time())
