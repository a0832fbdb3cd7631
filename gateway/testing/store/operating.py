"""What operators see is true, and what they do wins over what runs."""

from dataclasses import replace

from gateway.errors import LeaseLost
from gateway.job import JobStatus, NewJob, Schedule
from gateway.outcome import Cancel, Completed, Discard, Outcome, Retry
from gateway.store import JobFilter, Store
from gateway.testing.store.harness import Database, Suite, finished, jobs


class Operating(Suite):
    """Look, cancel, retry, count."""

    async def test_a_job_that_is_not_there_is_none(self, store: Store) -> None:
        assert await store.get("no") is None
        assert await store.history("no") == []
        assert await store.cancel("no", "x") is None
        assert await store.retry("no") is None

    async def test_jobs_are_listed_by_what_they_are_newest_first(self, store: Store) -> None:
        await store.enqueue([*jobs(3, "a"), *jobs(2, "b", parent_id="p"), *jobs(1, "b", delay=100)])

        everything = await store.list(JobFilter())
        page = await store.list(JobFilter(before=everything[1].sequence, limit=2))

        assert [job.handler for job in everything] == ["b", "b", "b", "a", "a", "a"]
        assert page == everything[2:4]
        assert len(await store.list(JobFilter(handler="b", status=JobStatus.PENDING))) == 2
        assert len(await store.list(JobFilter(parent_id="p", direction="internal"))) == 2
        assert await store.list(JobFilter(direction="outbound")) == []

    async def test_a_waiting_job_can_be_cancelled(self, store: Store) -> None:
        new = NewJob(handler="h")
        await store.enqueue([new])

        job = await store.cancel(new.id, "not wanted")

        assert job is not None
        assert (job.status, job.last_error, job.completed_at is not None) == (JobStatus.CANCELLED, "not wanted", True)
        assert await self.claim(store) == []
        assert await store.history(new.id) == []

    async def test_a_running_job_that_is_cancelled_cannot_commit(self, store: Store) -> None:
        job = await self.claim_one(store)

        await store.cancel(job.id, "not wanted")

        assert isinstance((await store.finish([finished(job)]))[0], LeaseLost)
        (history,) = await store.history(job.id)
        assert (history.status, history.execution_id) == (JobStatus.CANCELLED, job.claim_token)

    async def test_a_finished_job_cannot_be_cancelled(self, store: Store) -> None:
        job = await self.claim_one(store)
        await store.finish([finished(job)])

        row = await store.cancel(job.id, "too late")

        assert row is not None
        assert (row.status, row.last_error) == (JobStatus.COMPLETED, None)

    async def test_a_retry_by_hand_gives_one_more_attempt(self, store: Store) -> None:
        job = await self.claim_one(store, max_retries=0)
        await store.finish([finished(job, Discard("no"))])

        row = await store.retry(job.id)

        assert row is not None
        assert (row.status, row.retry_count, row.max_retries, row.completed_at) == (JobStatus.PENDING, 1, 1, None)
        (again,) = await self.claim(store)
        assert again.retry_count == again.max_retries
        assert await store.retry(job.id) == again

    async def test_progress_is_seen_and_fenced(self, store: Store) -> None:
        job = await self.claim_one(store)

        await store.report(job, {"fraction": 0.5, "note": "half"})
        row = await store.get(job.id)
        await store.release([job])
        await store.report(job, {"fraction": 1})

        assert row is not None
        assert row.progress == {"fraction": 0.5, "note": "half"}
        assert (await self.claim(store))[0].progress == {"fraction": 0.5, "note": "half"}

    async def test_statistics_count_what_is_there(self, store: Store) -> None:
        empty = await store.statistics()
        await store.enqueue([*jobs(3, "a"), *jobs(1, "b"), *jobs(1, "a", delay=100)])
        await store.enqueue([NewJob(handler="gateway.publish", metadata={"connector": "x"})])
        first, second = (await self.claim(store))[:2]
        await store.finish([finished(first), finished(second, Retry(100, "again"))])
        await store.enqueue(jobs(2, "c"))

        counted = await store.statistics()

        assert (empty.status_counts, empty.ready, empty.oldest_ready) == ({}, {}, None)
        assert counted.status_counts == {0: 3, 2: 2, 3: 1, 5: 1, 7: 1}
        assert counted.ready == {"run": 2, "send:x": 1}
        assert counted.ready_handlers == {"c": 2, "gateway.publish": 1}
        assert counted.oldest_ready is not None
        assert 0 <= counted.oldest_ready < 10

    async def test_due_schedules_and_their_lag_are_counted(self, database: Database, store: Store) -> None:
        await database.sql("DELETE FROM jobs")
        await store.put_schedule(Schedule(name="s", handler="h", interval=3600))
        unplanned = await store.statistics()
        await store.plan(0.0)
        planned = await store.statistics()
        at = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql("UPDATE jobs SET nextrunat = :at", at=at)

        due = await store.statistics()

        assert [(each.due_schedules, each.schedule_lag) for each in (unplanned, planned)] == [(0, None), (0, None)]
        assert due.due_schedules == 1
        assert due.schedule_lag is not None
        assert due.schedule_lag > 86_400

    async def test_only_what_another_attempt_may_mend_is_retriable(self, database: Database, store: Store) -> None:
        used_up = Discard("no luck", retriable=True)
        outcomes: dict[str, tuple[int, Outcome]] = {
            "retriable": (3, used_up), "early": (2, used_up), "discarded": (3, Discard("never")), "tired": (9, used_up),
            "done": (3, Completed()), "old": (3, used_up), "cancelled": (3, Cancel("unwanted")),
            "inactive": (3, used_up),
        }  # fmt: skip
        ids = {}
        for name, (failures, outcome) in outcomes.items():
            job = await self.claim_one(store)
            ids[name] = job.id
            await database.sql("UPDATE queue_jobs SET retrycount = :n WHERE id = :id", n=failures, id=job.id)
            await store.finish([finished(replace(job, retry_count=failures), outcome)])
        at = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql("UPDATE queue_jobs SET completedat = :at WHERE id = :id", at=at, id=ids["old"])
        await database.sql("UPDATE queue_jobs SET active = FALSE WHERE id = :id", id=ids["inactive"])

        found = await store.retriable(seconds=3600, attempts=10, limit=100)

        assert list(found) == [ids["retriable"]]
        assert await store.retriable(seconds=3600, attempts=4, limit=100) == []
        await store.retry(ids["retriable"])
        assert await store.retriable(seconds=3600, attempts=10, limit=100) == []
        (again,) = await self.claim(store)
        await store.finish([finished(again, used_up)])
        assert list(await store.retriable(seconds=3600, attempts=10, limit=100)) == [ids["retriable"]]

    async def test_the_database_answers_and_is_judged(self, store: Store) -> None:
        await store.ping()

        assert all(isinstance(line, str) for line in await store.durability())
