"""Messages become durable jobs: many calls share one commit, per connector and in order.

The coalescer has no timer: one flush is in flight per connector, and all that arrives meanwhile is the next one, so
that a lone message is stored at once and a flood in batches (Wolverine's lesson: a debounced timer cost it seconds).
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic

from gateway.arrival import Call, Conservation, Defaults, Held, Incoming, Item, Plan, admit, last_resorts, plan, size_of
from gateway.connector import InboundEntry, Inbox, Receipt, StoredPosition
from gateway.crashpoint import reach
from gateway.errors import DataRefused, Disconnected, PositionLost, StoreError
from gateway.message import Message
from gateway.store import Store
from gateway.telemetry import emit

MAX_PAUSE = 1.0
"""Seconds between two tries to reach a database that is away, so that it is used soon after it is back."""


class InboxWriter:
    """Makes the inbox of each connector. A flush holds at most `max_batch` messages and `max_bytes` of them.

    A single larger message is a flush of its own; a larger call is stored in parts, in order.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_batch: int = 500,
        max_bytes: int = 8 * 1024 * 1024,
        max_retries: Callable[[str], int] = lambda _: 3,
    ) -> None:
        self._store = store
        self._limits = (max_batch, max_bytes)
        self._max_retries = max_retries
        self._lanes: dict[str, _Lane] = {}
        self._stopping = asyncio.Event()

    def connection(
        self, name: str, protocol: str, *, method: str | None = None, on_ready: Callable[[], None] = lambda: None
    ) -> Inbox:
        """Return the inbox for one life of the connector of that name; `on_ready` is called by its `ready()`."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(name, self._store, self._limits)
        return _ConnectorInbox(lane, Defaults(name, protocol, method, self._max_retries), on_ready, self._stopping)

    @property
    def conservation(self) -> Mapping[str, Conservation]:
        """What became of the messages of each connector since the process began."""
        return {name: lane.counts for name, lane in self._lanes.items()}

    @property
    def waiting(self) -> str | None:
        """Why messages wait at this moment (the database is away), or None."""
        return next((lane.waiting for lane in self._lanes.values() if lane.waiting is not None), None)

    @property
    def beat(self) -> float:
        """When the slowest flush in flight began its present try (event loop time); now, if there is none."""
        now = asyncio.get_running_loop().time()
        return min((lane.beat for lane in self._lanes.values() if lane.busy), default=now)

    def stop(self) -> None:
        """Take nothing more: what has been received is still stored, further calls wait until they are cancelled."""
        self._stopping.set()

    async def close(self, grace: float = 5.0) -> None:
        """Stop, and store what waits within `grace` seconds. The rest stays unacknowledged at its source."""
        self.stop()
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _ConnectorInbox(Inbox):
    """One life of one connector: knows the positions that this life holds."""

    def __init__(
        self, lane: "_Lane", defaults: Defaults, on_ready: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        self._lane = lane
        self._defaults = defaults
        self._on_ready = on_ready
        self._stopping = stopping
        self._held: Held = {}

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def ready(self) -> None:
        self._on_ready()

    async def positions(self, cluster: str, topic: str, partitions: Iterable[int]) -> Mapping[int, StoredPosition]:
        wanted = list(partitions)
        stored = await self._lane.store.positions(self._lane.name, cluster, topic, wanted)
        for partition in wanted:
            self._held[cluster, topic, partition] = stored.get(partition)
        return stored

    async def receive(self, messages: Sequence[Message], entry: InboundEntry) -> Sequence[Receipt]:
        if self.stopping:
            await asyncio.get_running_loop().create_future()
        calls = self._lane.put([admit(message, entry, self._defaults) for message in messages], self._held)
        try:
            parts = await asyncio.gather(*(call.future for call in calls), return_exceptions=True)
        except asyncio.CancelledError:
            self._lane.drop(calls)
            if any(message.position is not None for message in messages):
                self._held.clear()  # or a later message would move the position over what was given up here
            raise
        receipts: list[Receipt] = []
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            receipts.extend(part)
        return receipts


class _Lane:
    """The queue of one connector, and the one flush that is in flight."""

    def __init__(self, name: str, store: Store, limits: tuple[int, int]) -> None:
        self.name = name
        self.store = store
        self.counts = Conservation()
        self.waiting: str | None = None
        self.beat = 0.0
        self.task: asyncio.Task[None] | None = None
        self._max_batch, self._max_bytes = limits
        self._queue: deque[Call] = deque()

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()

    def put(self, incoming: Sequence[Incoming], held: Held) -> list[Call]:
        """Queue messages as calls that each fit one flush, and see to it that somebody flushes."""
        loop = asyncio.get_running_loop()
        calls: list[Call] = []
        for each in incoming:
            if not calls or not self._fits(len(calls[-1].items) + 1, calls[-1].size + size_of(each.message)):
                calls.append(Call(held, loop.create_future()))
            calls[-1].add(each)
        self.counts.received += len(incoming)
        self.counts.in_flight += len(incoming)
        self._queue.extend(calls)
        if calls and not self.busy:
            self.beat = loop.time()
            self.task = loop.create_task(self._drain(), name=f"inbox {self.name}")
        return calls

    def drop(self, calls: Sequence[Call]) -> None:
        """Forget calls whose caller went away, unless they are being stored at this moment."""
        for call in calls:
            call.future.cancel()
            if call in self._queue:
                self._queue.remove(call)
                self.counts.reject(call.items)

    async def _drain(self) -> None:
        while self._queue:
            calls = self._take()
            try:
                await self._store_calls(calls)
            finally:
                for call in calls:
                    self._give_up(call, "the gateway is stopping")

    def _take(self) -> list[Call]:
        calls = [self._queue.popleft()]
        count, size = len(calls[0].items), calls[0].size
        while self._queue:
            count, size = count + len(self._queue[0].items), size + self._queue[0].size
            if not self._fits(count, size):
                break
            calls.append(self._queue.popleft())
        return calls

    async def _store_calls(self, calls: Sequence[Call]) -> None:
        """Store all calls at once; if one of them has lost its position, each for itself."""
        try:
            await self._store_items([item for call in calls for item in call.items])
        except PositionLost as lost:
            if len(calls) == 1:
                calls[0].held.clear()
                self._give_up(calls[0], str(lost))
                return
            for call in calls:
                await self._store_calls([call])
        for call in calls:
            call.complete()

    async def _store_items(self, items: Sequence[Item]) -> None:
        """Store all items at once; if one of them cannot be stored, halve until it stands alone."""
        try:
            await self._commit(items)
        except PositionLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is: one message must not stop the others
            if len(items) == 1:
                await self._dead_letter(items[0], error)
                return
            middle = len(items) // 2
            await self._store_items(items[:middle])
            await self._store_items(items[middle:])

    async def _dead_letter(self, item: Item, error: Exception) -> None:
        """Store a message as a Failed row, with as much of it as the database takes."""
        failures = 0
        while True:
            for job in last_resorts(item, error):
                item.job = job
                try:
                    await self._commit([item])
                except PositionLost:
                    raise
                except Exception as refused:  # noqa: BLE001 - the next resort keeps less of the message
                    emit("service.error", service=f"inbox {self.name}", error=refused)
                else:
                    return
            failures += 1
            await _pause(failures)

    async def _commit(self, items: Sequence[Item]) -> None:
        """Commit what is not settled yet; wait while the database is away. Raises what the data or a position cause."""
        failures = 0
        while True:
            planned = plan(self.name, [item for item in items if not item.settled])
            started = monotonic()
            self.beat = asyncio.get_running_loop().time()
            try:
                await self._ingest(planned)
            except (DataRefused, PositionLost):
                raise
            except StoreError as error:
                self.waiting = str(error)
                emit("inbox.waiting", connector=self.name, error=error)
                failures += 1
                await _pause(failures)
                self.counts.reject([item for item in planned.items if item.call.future.cancelled()])
            else:
                self.waiting = None
                self._settle(items, monotonic() - started)
                return

    async def _ingest(self, planned: Plan) -> None:
        if not planned.items and not planned.moves:
            return
        reach("inbox.before_commit")
        receipts = await self.store.ingest(self.name, [item.arrival for item in planned.items], planned.moves)
        reach("inbox.after_commit")
        for item, receipt in zip(planned.items, receipts, strict=True):
            item.receipt = receipt
        planned.keep()

    def _settle(self, items: Sequence[Item], seconds: float) -> None:
        """Count what was committed."""
        before = self._settled
        for item in items:
            if item.receipt is not None and not item.settled:
                self.counts.settle(item)
        stored, duplicate, dead, filtered = (now - then for now, then in zip(self._settled, before, strict=True))
        if stored or duplicate or dead or filtered:
            emit(
                "inbox.committed",
                connector=self.name,
                stored=stored,
                duplicate=duplicate,
                rejected=dead,
                filtered=filtered,
                seconds=seconds,
            )

    @property
    def _settled(self) -> tuple[int, int, int, int]:
        counts = self.counts
        return counts.stored, counts.duplicate, counts.dead_lettered, counts.filtered

    def _give_up(self, call: Call, reason: str) -> None:
        self.counts.reject(call.items)
        call.fail(Disconnected(reason))

    def _fits(self, count: int, size: int) -> bool:
        return count <= self._max_batch and size <= self._max_bytes


async def _pause(failures: int) -> None:
    await asyncio.sleep(min(MAX_PAUSE, 0.05 * 2.0 ** min(failures, 8)) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
