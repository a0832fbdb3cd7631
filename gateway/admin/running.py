"""What the admin listener is shown of the running gateway."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from gateway.coordination import Remembered
from gateway.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorView:
    """One connector at this moment. `listens`: it waits for clients itself, so that readiness depends on it."""

    name: str
    type: str
    state: str
    reason: str | None
    since: datetime
    guarantee: str
    listens: bool
    counts: Mapping[str, int]
    """The conservation counters by their names."""


class Running(Protocol):
    """The gateway as a whole."""

    @property
    def instance(self) -> str:
        """Name of this instance."""

    @property
    def version(self) -> str:
        """Version of this program."""

    @property
    def store(self) -> Store:
        """The open store. Raises `StoreUnavailable` while it was not reached yet."""

    @property
    def handlers(self) -> Collection[str]:
        """Names of the handlers that this process knows."""

    @property
    def running(self) -> int:
        """How many handlers run now."""

    @property
    def late(self) -> Mapping[str, float]:
        """The loops that have not turned within their limit, and for how many seconds."""

    @property
    def unready(self) -> Mapping[str, str]:
        """The parts, apart from the database, that cannot take messages now, and why."""

    @property
    def connectors(self) -> Sequence[ConnectorView]:
        """All configured connectors."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What else `/health` shows: JSON values by part."""

    async def cached_status(self, job_id: str) -> Remembered | None:
        """Return a job's status as the cache has it; None if it does not."""

    def pause(self, connector: str, reason: str) -> bool:
        """End a connector's life until it is resumed. False: there is none of that name."""

    def resume(self, connector: str) -> bool:
        """Let a paused connector live again. False: there is none of that name."""
