"""What became of this process's jobs, as it tells the cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway.coordination.coordinator import Coordinator
from gateway.job import JobStatus
from gateway.telemetry import subscribed


@contextmanager
def remembering(coordinator: Coordinator) -> Iterator[None]:
    """Have the coordinator remember each attempt that begins or has been committed, while the block runs."""

    def note(event: str, fields: dict[str, Any]) -> None:
        if event == "job.finished":
            coordinator.remember(fields["job"], JobStatus[str(fields["status"]).upper()])
        elif event == "job.started":
            coordinator.remember(fields["job"], JobStatus.PROCESSING)

    with subscribed(note):
        yield
