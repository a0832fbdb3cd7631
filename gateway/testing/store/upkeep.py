"""Due jobs become ready, the dead's jobs run again, old ones go; the living are left alone."""

import asyncio
import signal
import sys
import time
from datetime import timedelta

import pytest

from gateway.errors import LeaseLost
from gateway.job import JobStatus, NewJob, QueueJob
from gateway.outcome import Discard, Retry
from gateway.store import Arrival, Dedupe, JobFilter, Lane, Promotion, Rescue, Store
from gateway.testing.store.harness import Database, Suite, finished, jobs, until

VICTIM = """
import asyncio, sys
from gateway.store import Store

async def main():
    store = await Store.open(sys.argv[1], instance="victim")
    print(len(await store.claim("run", 10, None)), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


class Upkeep(Suite):
    """Promote, rescue, reclaim, release and prune."""

    async def crash(self, database: Database) -> None:
        """Let everything that is claimed belong to an instance that is gone, for longer than any lease."""
        long_ago = "2001-01-01 00:00:00"
        await database.sql(
            "UPDATE queue_jobs SET claimedby = 'gone/1', startedat = :at WHERE statusid = 2",
            at=await self.moment(database, long_ago),
        )

    async def age(self, database: Database, where: str = "1 = 1") -> None:
        """Let jobs have been finished long ago."""
        at = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql(f"UPDATE queue_jobs SET completedat = :at WHERE completedat IS NOT NULL AND {where}", at=at)  # noqa: S608 - the test's own

    # -- promote -------------------------------------------------------------------------------------------------------

    async def test_promotion_says_when_the_next_job_is_due(self, store: Store) -> None:
        assert await store.promote() == Promotion(0, None)
        await store.enqueue([NewJob(handler="h", delay=100), NewJob(handler="h", delay=50)])

        promotion = await store.promote()

        assert promotion.count == 0
        assert promotion.next_due is not None
        assert 40 < promotion.next_due <= 50.1

    async def test_due_jobs_become_ready_in_batches(self, database: Database, store: Store) -> None:
        told: list[set[str]] = []
        await store.enqueue(jobs(5, delay=1000))
        at = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql("UPDATE queue_jobs SET scheduledat = :at", at=at)
        await database.sql("INSERT INTO queue_jobs (id, handler, statusid) VALUES ('no time', 'h', 5)")
        store.on_ready = told.append

        assert await store.promote(4) == Promotion(4, 0.0)
        assert await store.promote(4) == Promotion(2, None)

        assert told == [{"run"}, {"run"}]
        assert {job.status for job in await store.list(JobFilter())} == {JobStatus.QUEUED}
        assert len(await self.claim(store)) == 6

    # -- rescue --------------------------------------------------------------------------------------------------------

    async def test_jobs_of_the_living_are_left_alone(self, database: Database) -> None:
        store = await database.open(lease=2.0)
        other = await database.open(lease=2.0) if self.shared else store
        mine, others = await self.claim_one(store), await self.claim_one(other)

        async def looked() -> bool:
            assert await store.rescue() == Rescue(0, 0)
            assert await other.rescue() == Rescue(0, 0)
            return not self.shared or store.alive_for > 2.0

        await until(looked)

        assert await store.finish([finished(mine)]) == [None]
        assert await other.finish([finished(others)]) == [None]

    async def test_a_dead_ones_jobs_run_again_without_an_attempt_used(self, database: Database, store: Store) -> None:
        await store.enqueue(jobs(250))
        claimed = await self.claim(store, 250)
        await self.crash(database)

        assert await store.rescue() == Rescue(250, 0)

        again = await self.claim(store, 300)
        assert [job.id for job in again] == [job.id for job in claimed]
        assert {(job.crash_count, job.retry_count, job.attempt) for job in again} == {(1, 0, 1)}
        assert all(isinstance(error, LeaseLost) for error in await store.finish([finished(job) for job in claimed[:3]]))
        assert await store.history(claimed[0].id) == []

    @pytest.mark.parametrize(("beat", "rescued"), [("2001-01-01 00:00:00", 1), ("2999-01-01 00:00:00", 0)])
    async def test_without_a_session_lock_the_heartbeat_decides(
        self, database: Database, beat: str, rescued: int
    ) -> None:
        store = await database.open(lease=2.0)
        await self.claim_one(store)
        await database.sql("UPDATE queue_jobs SET claimedby = 'lockless/1'")
        await database.sql(
            "INSERT INTO gateway_instances (id, name, version, host, pid, sessionlock, heartbeatat)"
            " VALUES ('lockless/1', 'x', '1', 'h', 1, FALSE, :at)",
            at=await self.moment(database, beat),
        )
        await until(lambda: self._trusted(store)) if self.shared else None

        assert await store.rescue() == Rescue(rescued if self.shared else 1, 0)

    async def test_rows_claimed_by_nobody_are_rescued(self, database: Database, store: Store) -> None:
        await database.sql("INSERT INTO queue_jobs (id, handler, statusid) VALUES ('by hand', 'h', 2)")

        assert await store.rescue() == Rescue(1, 0)

        assert (await self.claim(store))[0].id == "by hand"

    async def test_an_unknown_owner_is_given_the_time_of_a_lease(self, database: Database, store: Store) -> None:
        await self.claim_one(store)
        await database.sql("UPDATE queue_jobs SET claimedby = 'unknown/1'")

        rescue = await store.rescue()

        assert rescue == (Rescue(0, 0) if self.shared else Rescue(1, 0))

    async def test_a_suspect_runs_alone_and_is_set_aside_after_three_crashes_alone(
        self, database: Database, store: Store
    ) -> None:
        suspect = await self.claim_one(store)
        lanes = []
        for _ in range(4):
            await self.crash(database)
            assert await store.rescue() == Rescue(1, 0)
            lanes.append([lane for lane in (Lane.RUN, Lane.ALONE) if await self.claim(store, 1, lane)])

        await self.crash(database)
        assert await store.rescue() == Rescue(0, 1)

        assert lanes == [[Lane.RUN], [Lane.ALONE], [Lane.ALONE], [Lane.ALONE]]
        row = await store.get(suspect.id)
        assert row is not None
        assert (row.status, row.crash_count, row.retry_count) == (JobStatus.FAILED, 5, 0)
        (history,) = await store.history(suspect.id)
        assert history.status is JobStatus.FAILED
        assert history.error == row.last_error
        assert "died" in (history.error or "")

    async def test_a_message_to_be_published_is_never_set_aside(self, database: Database, store: Store) -> None:
        await self.claim_one(store, handler="gateway.publish", metadata={"connector": "x"})
        for _ in range(7):
            await self.crash(database)
            assert await store.rescue() == Rescue(1, 0)
            assert len(await self.claim(store, 1, Lane.send("x"))) == 1

    async def test_a_killed_processs_jobs_are_back_within_two_seconds(self, database: Database) -> None:
        store = await database.open(lease=10.0 if self.locks else 3.0)
        await store.enqueue(jobs(5))
        if not self.shared:
            await store.close()
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VICTIM, database.url, stdout=asyncio.subprocess.PIPE
        )
        assert victim.stdout is not None
        assert await victim.stdout.readline() == b"5\n"
        await until(lambda: self._trusted(store)) if self.shared else None

        victim.send_signal(signal.SIGKILL)
        await victim.wait()
        died = time.monotonic()
        rescuer = store if self.shared else await database.open()
        again: list[QueueJob] = []

        async def claimed() -> bool:
            await rescuer.rescue()
            again.extend(await self.claim(rescuer))
            return len(again) == 5

        await until(claimed)
        assert time.monotonic() - died < (2.0 if self.locks else 5.0)
        assert {job.crash_count for job in again} == {1}

    async def _trusted(self, store: Store) -> bool:
        return store.alive_for > 1.1

    # -- release, reclaim ----------------------------------------------------------------------------------------------

    async def test_released_jobs_are_as_never_claimed(self, store: Store) -> None:
        await store.enqueue(jobs(3))
        claimed = await self.claim(store)

        assert await store.release(claimed) == 3
        assert await store.release(claimed) == 0

        again = await self.claim(store)
        assert [job.id for job in again] == [job.id for job in claimed]
        assert {(job.attempt, job.crash_count) for job in again} == {(1, 0)}
        assert await store.release([]) == 0

    async def test_a_finished_job_cannot_be_released(self, store: Store) -> None:
        job = await self.claim_one(store)
        await store.finish([finished(job)])

        assert await store.release([job]) == 0

        assert await self.claim(store) == []

    async def test_what_a_process_still_holds_when_it_ends_can_be_claimed_at_once(
        self, database: Database, store: Store
    ) -> None:
        job = await self.claim_one(store)
        await store.close()

        (again,) = await self.claim(await database.open())

        assert (again.id, again.attempt, again.crash_count) == (job.id, 1, 0)

    async def test_only_what_this_process_forgot_is_reclaimed(self, database: Database, store: Store) -> None:
        await store.enqueue(jobs(4))
        held, forgotten, others, fresh = await self.claim(store)
        old = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql("UPDATE queue_jobs SET startedat = :at WHERE id <> :fresh", at=old, fresh=fresh.id)
        await database.sql("UPDATE queue_jobs SET claimedby = 'another/1' WHERE id = :id", id=others.id)

        assert await store.reclaim([held.claim_token or ""]) == 1

        assert [job.id for job in await self.claim(store)] == [forgotten.id]

    # -- prune ---------------------------------------------------------------------------------------------------------

    async def test_prune_deletes_the_old_and_finished_only(self, database: Database, store: Store) -> None:
        await store.enqueue(jobs(8))
        claimed = await self.claim(store, 7)
        await store.finish([finished(job) for job in claimed[:3]])
        await store.finish([finished(claimed[3], Discard("no")), finished(claimed[4], Retry(1000, "again"))])
        await store.cancel(claimed[5].id, "no")
        await self.age(database, f"id <> '{claimed[2].id}'")
        at = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql("UPDATE queue_jobs SET completedat = :at WHERE statusid IN (0, 2, 5)", at=at)

        assert await store.prune(timedelta(days=1), 3) == 3
        assert await store.prune(timedelta(days=1), 3) == 1
        assert await store.prune(timedelta(days=1), 3) == 0

        left = await store.list(JobFilter())
        assert sorted(job.status for job in left) == [0, 2, 3, 5]
        owners = {row[0] for row in await database.sql("SELECT jobid FROM job_histories")}
        assert owners <= {job.id for job in left}

    async def test_prune_keeps_dedupe_keys_for_their_time(self, database: Database, store: Store) -> None:
        arrival = Arrival(job=NewJob(handler="h"), dedupe=Dedupe(scope="", key="k", body_hash=bytes(16)))
        await store.ingest("c", [arrival])

        await store.prune(timedelta(0), 100)
        assert await database.value("SELECT count(*) FROM inbound_dedupe") == 1
        at = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql("UPDATE inbound_dedupe SET expiresat = :at", at=at)
        await store.prune(timedelta(0), 100)

        assert await database.value("SELECT count(*) FROM inbound_dedupe") == 0

    async def test_prune_forgets_instances_dead_for_a_day(self, database: Database, store: Store) -> None:
        columns = "id, name, version, host, pid, sessionlock, heartbeatat"
        for name in ("dead", "holding"):
            await database.sql(
                f"INSERT INTO gateway_instances ({columns}) VALUES (:id, 'x', '1', 'h', 1, TRUE, :at)",  # noqa: S608 - the test's own
                id=name,
                at=await self.moment(database, "2001-01-01 00:00:00"),
            )
        await database.sql(
            "UPDATE gateway_instances SET heartbeatat = :at",
            at=await self.moment(database, "2001-01-01 00:00:00"),
        )
        await database.sql("INSERT INTO queue_jobs (id, handler, statusid, claimedby) VALUES ('x', 'h', 2, 'holding')")

        await store.prune(timedelta(days=1), 100)

        assert sorted(row.id for row in await store.instances()) == sorted(["holding", store.incarnation])
