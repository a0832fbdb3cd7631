"""What a run costs: wall time, CPU of this process, CPU of the database server and all its children."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of `count` messages or jobs: how many a second, and microseconds of CPU for each."""

    what: str
    count: int
    seconds: float
    client: float
    server: float

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    def micros(self, seconds: float) -> float:
        return seconds / self.count * 1e6


class Meter:
    """Measures the block; `pid` is the database server's main process, None when it lives in this one."""

    def __init__(self, what: str, count: int, pid: int | None) -> None:
        self._what, self.count, self._pid = what, count, pid
        self.cost: Cost | None = None

    def __enter__(self) -> Self:
        self._server = _tree_cpu(self._pid)
        self._client = time.process_time()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._started
        if kind is None:
            self.cost = Cost(
                what=self._what,
                count=self.count,
                seconds=seconds,
                client=time.process_time() - self._client,
                server=_tree_cpu(self._pid) - self._server,
            )


def _tree_cpu(pid: int | None) -> float:
    """Return the CPU seconds of a process, its living descendants, and its children that have ended."""
    if pid is None:
        return 0.0
    ticks = 0
    waiting = [pid]
    while waiting:
        here = waiting.pop()
        try:
            fields = Path(f"/proc/{here}/stat").read_text().rsplit(")", 1)[1].split()
            children = [Path(task).read_text() for task in Path(f"/proc/{here}/task").glob("*/children")]
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
        waiting += [int(child) for line in children for child in line.split()]
    return ticks / TICK
