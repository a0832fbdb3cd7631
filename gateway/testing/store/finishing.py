"""An attempt's end is written whole or not at all, and only by who holds the claim."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import bindparam, insert, text, update

from gateway.crashpoint import armed
from gateway.errors import DataRefused, LeaseLost, StoreError, StoreUnavailable
from gateway.job import JobStatus, NewJob, QueueJob
from gateway.outcome import Cancel, Completed, Discard, Outcome, Retry
from gateway.store import Deferred, Finish, JobFilter, Lane, Store
from gateway.testing.store.harness import Database, Suite, effects, finished, jobs, until


def effect(identity: str) -> Deferred:
    """Return a deferred write."""
    return Deferred(insert(effects), [{"id": identity, "n": 1}])


def full(job: QueueJob, identity: str | None = None) -> Finish:
    """Return a successful end with all that can belong to it."""
    outgoing = [NewJob(handler="gateway.publish", metadata={"connector": "x"}, parent_id=job.id)]
    return finished(job, Completed('{"a": 1}'), outgoing=outgoing, deferred=[effect(identity or job.id)], seconds=1.5)


class Finishing(Suite):
    """Finish, in a shared transaction and in the handler's own."""

    async def written(self, database: Database, store: Store, job_id: str) -> tuple[Any, ...]:
        """Return what there is of a finished job: status, histories, outgoing jobs, effects."""
        job = await store.get(job_id)
        assert job is not None
        outgoing = await store.list(JobFilter(parent_id=job_id))
        histories = await store.history(job_id)
        return job.status, len(histories), len(outgoing), (await database.effects()).count(job_id)

    @pytest.mark.parametrize("count", [1, 7])
    async def test_success_is_written_with_all_that_belongs_to_it(
        self, database: Database, store: Store, count: int
    ) -> None:
        await database.make_effects()
        await store.enqueue(jobs(count))
        claimed = await self.claim(store)

        assert await store.finish([full(job) for job in claimed]) == [None] * count

        for job in claimed:
            assert await self.written(database, store, job.id) == (JobStatus.COMPLETED, 1, 1, 1)
        row = await store.get(claimed[0].id)
        assert row is not None
        assert (row.result, row.claim_token, row.retry_count) == ('{"a": 1}', None, 0)
        assert row.completed_at is not None
        (history,) = await store.history(row.id)
        assert (history.status, history.duration, history.retry_attempt) == (JobStatus.COMPLETED, 1500, 0)
        assert history.execution_id == claimed[0].claim_token
        assert history.executed_by == store.incarnation
        assert history.output_data == '{"a": 1}'
        assert history.started_at == claimed[0].started_at
        assert len(await self.claim(store, 99, Lane.send("x"))) == count

    async def test_every_outcome_is_written_as_such(self, store: Store) -> None:
        await store.enqueue(jobs(4))
        claimed = await self.claim(store)
        outcomes: list[Outcome] = [Completed("1"), Retry(1000, "again"), Discard("never"), Cancel("unwanted")]

        await store.finish([finished(*pair, output="answer") for pair in zip(claimed, outcomes, strict=True)])

        rows = [await store.get(job.id) for job in claimed]
        assert [row.status for row in rows if row] == [JobStatus(n) for n in (3, 5, 4, 6)]
        assert [row.last_error for row in rows if row] == [None, "again", "never", "unwanted"]
        assert [row.completed_at is not None for row in rows if row] == [True, False, True, True]
        assert [row.retry_count for row in rows if row] == [0, 1, 1, 0]
        assert [row.priority for row in rows if row] == [0, -1, 0, 0]
        histories = [(await store.history(job.id))[0] for job in claimed]
        retried, failed = rows[1], histories[1]
        assert retried is not None
        assert retried.scheduled_at is not None
        assert failed.completed_at is not None
        assert 990 < (retried.scheduled_at - failed.completed_at).total_seconds() < 1010
        assert [history.status for history in histories] == [JobStatus(n) for n in (3, 4, 4, 6)]
        assert [history.result for history in histories] == ["Success", "Error: again", "Discarded: never", "Cancelled"]
        assert {history.output_data for history in histories} == {"answer"}

    async def test_a_retry_waits_for_its_time_and_comes_after_its_equals(self, store: Store) -> None:
        job = await self.claim_one(store)

        await store.finish([finished(job, Retry(0.3, "again"))])
        assert await self.claim(store) == []
        await store.enqueue(jobs(1))

        async def due() -> bool:
            return (await store.promote()).count == 1

        await until(due)
        again = await self.claim(store)
        assert [(j.attempt, j.priority) for j in again] == [(1, 0), (2, -1)]
        assert again[1].id == job.id
        assert again[1].scheduled_at is not None
        assert again[1].started_at is not None
        assert again[1].started_at >= again[1].scheduled_at
        await store.finish([finished(again[1])])
        assert [history.retry_attempt for history in await store.history(job.id)] == [0, 1]

    async def test_the_lowest_priority_can_fail_too(self, store: Store) -> None:
        job = await self.claim_one(store, priority=-(2**31) + 1)

        assert await store.finish([finished(job, Retry(0, "again"))]) == [None]

        row = await store.get(job.id)
        assert row is not None
        assert row.priority == -(2**31) + 1

    async def test_only_success_sends_and_writes(self, database: Database, store: Store) -> None:
        await database.make_effects()
        job = await self.claim_one(store)

        await store.finish([replace(full(job), outcome=Discard("no"))])

        assert await self.written(database, store, job.id) == (JobStatus.FAILED, 1, 0, 0)

    @pytest.mark.parametrize("count", [1, 3])
    async def test_what_breaks_off_before_the_commit_leaves_nothing(
        self, database: Database, store: Store, count: int
    ) -> None:
        await database.make_effects()
        await store.enqueue(jobs(count))
        claimed = await self.claim(store)

        def break_off(point: str) -> None:
            if point == "finish.written":
                raise StoreUnavailable("the test broke it off")

        with armed(break_off), pytest.raises(StoreUnavailable):
            await store.finish([full(job) for job in claimed])

        for job in claimed:
            assert await self.written(database, store, job.id) == (JobStatus.PROCESSING, 0, 0, 0)
        assert await store.finish([full(job) for job in claimed]) == [None] * count

    async def test_a_culprit_fails_alone(self, database: Database, store: Store) -> None:
        await database.make_effects()
        await database.sql("INSERT INTO effects (id, n) VALUES ('taken', 0)")
        await store.enqueue(jobs(20))
        claimed = await self.claim(store)
        names = {claimed[3].id: "taken", claimed[11].id: "taken"}

        errors = await store.finish([full(job, names.get(job.id)) for job in claimed])

        assert [n for n, error in enumerate(errors) if error is not None] == [3, 11]
        assert isinstance(errors[3], DataRefused)
        for n, job in enumerate(claimed):
            wanted = (JobStatus.PROCESSING, 0, 0, 0) if n in (3, 11) else (JobStatus.COMPLETED, 1, 1, 1)
            assert await self.written(database, store, job.id) == wanted

    async def test_a_wrong_statement_fails_alone(self, store: Store) -> None:
        await store.enqueue(jobs(4))
        claimed = await self.claim(store)
        wrong = Deferred(text("INSERT INTO no_such_table VALUES (1)"), [{}])

        errors = await store.finish(
            [finished(job, deferred=[wrong] if n == 2 else []) for n, job in enumerate(claimed)]
        )

        assert [error is None for error in errors] == [True, True, False, True]
        assert isinstance(errors[2], StoreError)

    async def test_deferred_writes_keep_each_jobs_order(self, database: Database, store: Store) -> None:
        await database.make_effects()
        await store.enqueue(jobs(3))

        def append(digit: int, identity: str) -> Deferred:
            change = update(effects).where(effects.c.id == bindparam("identity")).values(n=effects.c.n * 10 + digit)
            return Deferred(change, [{"identity": identity}])

        def writes(identity: str) -> list[Deferred]:
            return [effect(identity), *(append(digit, identity) for digit in (2, 3, 2))]

        finishes = [finished(job, deferred=writes(job.id)) for job in await self.claim(store)]
        assert await store.finish(finishes) == [None] * 3

        assert [row[0] for row in await database.sql("SELECT n FROM effects")] == [1232] * 3

    async def test_who_lost_the_claim_writes_nothing_and_the_others_commit(
        self, database: Database, store: Store
    ) -> None:
        await database.make_effects()
        await store.enqueue(jobs(6))
        claimed = await self.claim(store)
        await store.release(claimed[2:3])
        await database.sql("UPDATE queue_jobs SET claimtoken = 'another' WHERE id = :id", id=claimed[4].id)

        errors = await store.finish([full(job) for job in claimed])

        assert [isinstance(error, LeaseLost) for error in errors] == [False, False, True, False, True, False]
        assert await self.written(database, store, claimed[2].id) == (JobStatus.QUEUED, 0, 0, 0)
        assert await self.written(database, store, claimed[4].id) == (JobStatus.PROCESSING, 0, 0, 0)
        assert await self.written(database, store, claimed[5].id) == (JobStatus.COMPLETED, 1, 1, 1)

    async def test_a_claim_by_another_is_not_finished_by_the_first(self, store: Store) -> None:
        old = await self.claim_one(store)
        await store.release([old])
        (new,) = await self.claim(store)

        assert isinstance((await store.finish([finished(old)]))[0], LeaseLost)
        assert await store.finish([finished(new)]) == [None]
        assert isinstance((await store.finish([finished(new)]))[0], LeaseLost)

    async def test_finishing_again_with_the_same_value_is_harmless(self, database: Database, store: Store) -> None:
        await database.make_effects()
        finish = full(await self.claim_one(store))

        assert await store.finish([finish]) == [None]
        assert await store.finish([finish]) == [None]

        assert await self.written(database, store, finish.job.id) == (JobStatus.COMPLETED, 1, 1, 1)

    @pytest.mark.parametrize("moment", ["before", "after"])
    @pytest.mark.parametrize("count", [1, 5])
    async def test_a_lost_commit_of_a_finish_is_read_back(self, database: Database, moment: str, count: int) -> None:
        await database.make_effects()
        store, lossy = await database.open_lossy()
        await store.enqueue(jobs(count))
        claimed = await self.claim(store)
        lossy.lose = moment  # type: ignore[assignment]

        assert await store.finish([full(job) for job in claimed]) == [None] * count

        for job in claimed:
            assert await self.written(database, store, job.id) == (JobStatus.COMPLETED, 1, 1, 1)

    async def test_a_lost_commit_tells_the_lost_from_the_written(self, database: Database) -> None:
        store, lossy = await database.open_lossy()
        await store.enqueue(jobs(2))
        claimed = await self.claim(store)
        await store.release(claimed[1:])
        lossy.lose = "before"

        errors = await store.finish([finished(job) for job in claimed])

        assert errors[0] is None
        assert isinstance(errors[1], LeaseLost)

    async def test_a_handlers_own_transaction_ends_with_its_job(self, database: Database, store: Store) -> None:
        await database.make_effects()
        job = await self.claim_one(store)
        transaction = store.transaction()
        await transaction.session.execute(insert(effects).values(id="own", n=1))

        await transaction.finish(full(job))

        assert await database.effects() == sorted([job.id, "own"])
        assert await self.written(database, store, job.id) == (JobStatus.COMPLETED, 1, 1, 1)

    async def test_a_handlers_writes_go_with_a_lost_claim(self, database: Database, store: Store) -> None:
        await database.make_effects()
        job = await self.claim_one(store)
        transaction = store.transaction()
        await transaction.session.execute(insert(effects).values(id="own", n=1))
        await database.sql("UPDATE queue_jobs SET statusid = 1, claimtoken = NULL") if self.shared else None
        lost = job if self.shared else replace(job, claim_token="another")  # noqa: S106 - no secret

        with pytest.raises(LeaseLost):
            await transaction.finish(full(lost))

        assert await database.effects() == []
        assert await store.history(job.id) == []

    async def test_two_hundred_jobs_share_a_transaction(self, database: Database, store: Store) -> None:
        await database.make_effects()
        await store.enqueue(jobs(200))
        claimed = await self.claim(store, 200)
        results = ["x" * (n * 37 % 500) for n in range(200)]

        finishes = [
            finished(job, Completed(r), deferred=[effect(job.id)]) for job, r in zip(claimed, results, strict=True)
        ]
        assert await store.finish(finishes) == [None] * 200

        assert len(await database.effects()) == 200
        assert [row.result for row in reversed(await store.list(JobFilter(limit=200)))] == results
