"""The store: its verbs, each a script run by the database's driver."""

import asyncio
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from importlib import metadata
from time import monotonic
from typing import Self

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.connector import Receipt
from gateway.crashpoint import reach
from gateway.effects import Lock
from gateway.errors import CommitUnknown, PositionLost, StoreError, StoreUnavailable
from gateway.job import JobStatus, NewJob, QueueJob
from gateway.message import Json
from gateway.outcome import Completed, Retry
from gateway.store import locks, operate, positions, upkeep
from gateway.store.claim import Claim, Cursor, claim_jobs, claimed_jobs, new_token
from gateway.store.driver import Driver, Presence
from gateway.store.ending import JobTransaction, finish_all
from gateway.store.ingest import Batch, ingest, owners, single, stored
from gateway.store.insert import insert_jobs
from gateway.store.migrate import check_version
from gateway.store.opening import open_driver
from gateway.store.rows import encode_document, needs_clock
from gateway.store.timetable import Timetable
from gateway.store.values import Arrival, Finish, Lane, PositionMove, Promotion, Report, Rescue, SourcePosition
from gateway.store.within import Caller, enqueue_within
from gateway.telemetry import emit

POSTPONE_SECONDS = 1.0
"""How often rows inserted by hand for a later time are looked for."""
FORGOTTEN_SECONDS = 5.0
"""After what time a job claimed here that nobody here holds is made ready again; a claim's answer may take as long."""
LEAVE_SECONDS = 1.0
"""How long the last jobs in this process's name may take to be given back as it ends."""


async def _verify(driver: Driver, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds), driver.engine.connect() as connection:
            await check_version(connection)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"cannot read the schema's version: {error}") from error


class Store(Timetable):
    """One database, opened by one process. `on_ready` is called on the loop, after a commit, with the lanes it filled.

    Cancelling a verb leaves no transaction open; whether a COMMIT already sent took effect is then not known.
    """

    def __init__(self, driver: Driver, presence: Presence | None, *, incarnation: str, lease: float) -> None:
        self.incarnation = incarnation
        """`<instance>/<uuid4>`: in `claimedby` and `executedby`."""
        super().__init__(driver, lease=lease)
        self._presence = presence
        self._watch = upkeep.Watch(incarnation, lease, alone=driver.dialect.name == "sqlite")
        self._postponed = 0.0

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        instance: str,
        lease: float = 10.0,
        statement_timeout: float = 10.0,
        pool_size: int = 10,
        present: bool = True,
    ) -> Self:
        """Open a database whose schema is this program's, and be seen alive in it.

        `present`: whether this process runs jobs; commands that only look or enqueue do not. Raises
        `MigrationError`, `StoreUnavailable`, or `StoreError` for what cannot work.
        """
        driver = await open_driver(url, pool_size=pool_size, statement_timeout=statement_timeout)
        try:
            await _verify(driver, statement_timeout)
            incarnation = f"{instance[:200]}/{uuid.uuid4()}"
            presence = None
            if present:
                presence = driver.presence(
                    incarnation=incarnation, name=instance, version=metadata.version("ingestion-gateway"), lease=lease
                )
                await presence.start()
        except BaseException:
            await driver.close()
            raise
        return cls(driver, presence, incarnation=incarnation, lease=lease)

    async def close(self) -> None:
        """Be gone: jobs still claimed are given back; if that fails, others rescue them after the lease. Bounded."""
        try:
            if self._presence is not None:
                if self._presence.alive_since is not None:
                    await self._leave()
                await self._presence.stop()
        finally:
            await self._driver.close()

    @property
    def engine(self) -> AsyncEngine:
        """For handlers' own use only."""
        return self._driver.engine

    @property
    def alive_for(self) -> float:
        """For how many seconds this process has been seen alive without a gap."""
        since = None if self._presence is None else self._presence.alive_since
        return 0.0 if since is None else monotonic() - since

    def tell(self, report: Report) -> None:
        """Have the heartbeat show the others that; nothing if this process is not to be seen. Never waits."""
        if self._presence is not None:
            self._presence.tell(report)

    # -- in ------------------------------------------------------------------------------------------------------------

    async def ingest(
        self, connector: str, arrivals: Sequence[Arrival], moves: Sequence[PositionMove] = ()
    ) -> list[Receipt]:
        """Make jobs of what a connector received and move its positions, all or nothing. One receipt each, in order.

        To repeat it with the same job ids makes nothing twice. Raises `PositionLost`, `DataRefused`.
        """
        if not arrivals and not moves:
            return []
        batch = Batch(connector, arrivals, moves)
        for _ in range(3):
            if await self._ingest(batch):
                break
        else:
            raise StoreUnavailable("dedupe keys vanish as they are read; try again")
        self._ready(batch.stored())
        return batch.receipts()

    async def _ingest(self, batch: Batch) -> bool:
        """Return whether every key of the batch has its job: one that expired meanwhile has none."""
        try:
            one = single(self._dialect, batch)
            known = await self._run("ingest", lambda: ingest(self._dialect, batch), retry=True, single=one)
        except PositionLost:
            if not await self._driver.read(lambda: stored(self._dialect, batch)):
                raise
            known = not batch.mine
        return known or await self._driver.read(lambda: owners(self._dialect, batch))

    async def enqueue(self, jobs: Sequence[NewJob], connection: Caller | None = None) -> None:
        """Insert jobs, all or none, in order.

        With `connection`, of SQLAlchemy and on the same database, they become part of its transaction.
        """
        if not jobs:
            return
        if connection is not None:
            loop = asyncio.get_running_loop()

            def committing() -> None:
                """Wake a little later: the COMMIT itself is still to come."""
                loop.call_soon_threadsafe(loop.call_later, 0.01, self._ready, jobs)

            await enqueue_within(connection, jobs, committing)
            return
        one = self._dialect.arrays and not needs_clock(jobs)
        await self._run("enqueue", lambda: insert_jobs(self._dialect, jobs), retry=True, single=one)
        self._ready(jobs)

    # -- run -----------------------------------------------------------------------------------------------------------

    async def claim(self, lane: str, limit: int, handlers: Collection[str] | None) -> list[QueueJob]:
        """Claim a lane's first ready jobs whose handler is among these; None: any.

        Highest priority first, then oldest first; an ordering key's jobs one after the other. A job of higher
        priority that another process inserted may have to wait for 0.25 s behind a long queue.
        """
        if limit < 1 or (handlers is not None and not handlers):
            return []
        cursor = self._cursors[lane]
        after = cursor.start()
        claim = Claim(lane, limit, handlers, new_token(), self.incarnation)
        jobs = await self._claim(claim, after)
        if len(jobs) < limit and after != (start := Cursor().place):
            rest = Claim(lane, limit - len(jobs), handlers, new_token(), self.incarnation)
            try:
                jobs += await self._claim(rest, start)
            except StoreError:
                if not jobs:  # else what is claimed already would be forgotten
                    raise
        cursor.move(jobs, limit)
        return jobs

    async def _claim(self, claim: Claim, after: tuple[int, int]) -> list[QueueJob]:
        one = self._dialect.name != "mysql"
        try:
            return await self._run("claim", lambda: claim_jobs(self._dialect, claim, after), single=one)
        except CommitUnknown:
            return await self._driver.read(lambda: claimed_jobs(self._dialect, claim))

    def transaction(self) -> JobTransaction:
        """Return a handler's transaction; nothing is opened before its first use."""
        return JobTransaction(self._driver.transaction(), self._dialect, self._finished)

    async def finish(self, finishes: Sequence[Finish]) -> list[Exception | None]:
        """Write how attempts ended, in as few transactions as can be; per item None, or why nothing of it was written.

        `LeaseLost`: it is another's by now; `StoreUnavailable`: not decided, try again with the same value, which is
        safe; anything else is the fault of its own deferred writes or values. Raises `StoreUnavailable` if that is
        so for all of them.
        """
        if not finishes:
            return []
        reach("finish.start")
        errors = await finish_all(self._driver, finishes)
        reach("finish.committed")
        self._finished([finish for finish, error in zip(finishes, errors, strict=True) if error is None])
        if all(isinstance(error, StoreUnavailable) for error in errors):
            assert errors[0] is not None
            raise errors[0]
        return errors

    async def release(self, jobs: Sequence[QueueJob]) -> int:
        """Give claimed jobs back as if they had never been claimed. Returns how many were still held."""
        return await self._release(upkeep.held_by(jobs))

    async def reclaim(self, held: Collection[str]) -> int:
        """Give back what stands in this process's name for 5 s and whose claim token is not in `held`."""
        return await self._reclaim(set(held), FORGOTTEN_SECONDS)

    async def lock(self, name: str, job: QueueJob, seconds: float | None) -> Lock | None:
        """Take a lock for a job's claim; None: another claim holds it. It is free when the claim is over.

        After `seconds` another claim may take it, and this one can then not complete; None: not before its end.
        """
        return await self._run("lock", lambda: locks.acquire(self._dialect, name, job, seconds), retry=True)

    async def shared_secret(self, name: str) -> str:
        """Return a random text that all instances of this database have in common."""
        return await self._run("share", lambda: locks.share(self._dialect, name), retry=True)

    async def report(self, job: QueueJob, progress: Json) -> None:
        """Write a running job's progress, at once and apart from its transaction; nothing if its claim is lost."""
        text = encode_document(progress)
        await self._run("report", lambda: operate.report(self._dialect, job, text), retry=True, single=True)

    # -- upkeep --------------------------------------------------------------------------------------------------------

    async def promote(self, limit: int = 1000) -> Promotion:
        """Make ready what is due, at most `limit` jobs, and say when to look again."""
        if monotonic() - self._postponed >= POSTPONE_SECONDS:
            self._postponed = monotonic()
            await self._run("postpone", lambda: upkeep.postpone(self._dialect))
        moved = await self._run("promote", lambda: upkeep.promote(self._dialect, limit))
        self._moved(moved.lanes)
        return Promotion(moved.count, await self._driver.read(lambda: upkeep.next_due(self._dialect)))

    async def rescue(self) -> Rescue:
        """Give back the jobs of dead processes, in small batches, each crash counted against its jobs."""
        holders = await self._driver.read(lambda: upkeep.owners(self._dialect))
        dead = self._watch.dead(holders, self.alive_for)
        rescued = failed = 0
        nobody = [upkeep.Owner(None, 0.0, lock=False, held=False)] if any(owner.id is None for owner in holders) else []
        for owner in [*dead, *nobody]:
            spare = self._lease if owner.age is None and not self._watch.alone else 0.0
            moved = await self._rescue(owner.id, spare)
            rescued, failed = rescued + moved.rescued, failed + moved.failed
        return Rescue(rescued, failed)

    async def _rescue(self, owner: str | None, spare: float) -> upkeep.Rescued:
        total = upkeep.Rescued(0, 0, set())
        while True:
            moved = await self._run("rescue", lambda: upkeep.rescue(self._dialect, owner, older_than=spare))
            self._moved(moved.lanes)
            total = upkeep.Rescued(total.rescued + moved.rescued, total.failed + moved.failed, moved.lanes)
            if moved.rescued + moved.failed < upkeep.BATCH:
                return total

    async def prune(self, older_than: timedelta, limit: int) -> int:
        """Delete at most `limit` jobs finished longer ago than that, with their histories.

        Also expired dedupe keys and the rows of instances dead for a day. Returns how many jobs went.
        """
        count = await self._run("prune", lambda: upkeep.prune(self._dialect, older_than, limit))
        await self._run("forget", lambda: upkeep.forget(self._dialect, limit, self.incarnation))
        return count

    # -- operators -----------------------------------------------------------------------------------------------------

    async def cancel(self, job_id: str, reason: str) -> QueueJob | None:
        """Cancel a job unless it is finished; a running attempt can then not commit. Returns it as it now is."""
        return await self._run("cancel", lambda: operate.cancel(self._dialect, job_id, reason), retry=True)

    async def retry(self, job_id: str) -> QueueJob | None:
        """Make a Failed or Cancelled job Pending again, for one attempt at least. Returns it as it now is."""
        job = await self._run("retry", lambda: operate.retry(self._dialect, job_id), retry=True)
        if job is not None and job.status is JobStatus.PENDING:
            self._moved({Lane.of(job)})
        return job

    async def set_position(self, position: SourcePosition) -> int | None:
        """Set how far a source was stored; returns the offset that stood there before.

        A consumer that runs goes on there too, from its next message on: what it holds is the position of before.
        """
        return await self._run("position", lambda: positions.put(self._dialect, position), retry=True)

    # -- wake-ups ------------------------------------------------------------------------------------------------------

    def listen(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop when another process says that there is work. PostgreSQL only."""
        self._driver.listen(callback)

    def notify(self) -> None:
        """Tell the other processes that there is work. Cheap, and never one message per row."""
        self._driver.notify()

    async def _leave(self) -> None:
        """Give back what a claim or a release that was cancelled has left in this process's name."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._reclaim((), 0.0)
        except (StoreError, TimeoutError) as error:
            emit("store.unavailable", error=error)

    async def _reclaim(self, held: Collection[str], older_than: float) -> int:
        me = self.incarnation
        return await self._release(
            await self._driver.read(lambda: upkeep.forgotten(self._dialect, me, held, older_than=older_than))
        )

    async def _release(self, claims: Sequence[tuple[str, str]]) -> int:
        if not claims:
            return 0
        moved = await self._run("release", lambda: upkeep.release(self._dialect, claims), retry=True)
        self._moved(moved.lanes)
        return moved.count

    def _finished(self, finishes: Sequence[Finish]) -> None:
        for finish in finishes:
            if isinstance(finish.outcome, Completed):
                self._ready(finish.outgoing)
            elif isinstance(finish.outcome, Retry):
                self._wake({Lane.DUE})
        if any(finish.locks for finish in finishes):
            self._wake({Lane.LOCK})
