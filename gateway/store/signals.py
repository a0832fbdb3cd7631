"""What all verbs that change something share: their named points, and whom they wake."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from gateway.crashpoint import reach
from gateway.job import NewJob
from gateway.store.claim import Cursor
from gateway.store.driver import Driver
from gateway.store.script import T
from gateway.store.values import Lane
from gateway.store.views import Views
from gateway.store.wire import Make

OnReady = Callable[[set[str]], None]


def _nobody(_lanes: set[str]) -> None:
    """Wake nobody."""


class Signals(Views):
    """Runs verbs, and tells who waits for what they have made ready."""

    def __init__(self, driver: Driver, *, lease: float) -> None:
        super().__init__(driver, lease=lease)
        self.on_ready: OnReady = _nobody
        self._cursors = defaultdict[str, Cursor](Cursor)

    async def _run(self, verb: str, make: Make[T], *, retry: bool = False, single: bool = False) -> T:
        """Run a verb's script between its two named points."""
        reach(f"{verb}.start")
        value = await self._driver.run(make, retry=retry, single=single)
        reach(f"{verb}.committed")
        return value

    def _ready(self, jobs: Sequence[NewJob]) -> None:
        """Tell who waits, and look at the front again if a job belongs before where claiming has got to."""
        lanes = set[str]()
        for job in jobs:
            if job.delay > 0 or job.scheduled_at is not None:
                lanes.add(Lane.DUE)
            if job.delay <= 0 and not job.status.final:
                lane = Lane.of(job)
                lanes.add(lane)
                cursor = self._cursors.get(lane)
                if cursor is not None and -job.priority < cursor.place[0]:
                    cursor.rewind()
        self._wake(lanes)

    def _wake(self, lanes: set[str]) -> None:
        if lanes:
            self.on_ready(lanes)
            self._driver.notify()

    def _moved(self, lanes: set[str]) -> None:
        """Rows have come back that may stand before where claiming has got to."""
        for lane in lanes & self._cursors.keys():
            self._cursors[lane].rewind()
        self._wake(lanes)
