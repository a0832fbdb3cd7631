"""Every ready job is claimed once, in order, whatever stands in the rows."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import pytest
from sqlalchemy.exc import DBAPIError

from gateway.job import JobStatus, NewJob
from gateway.outcome import Retry
from gateway.store import JobFilter, Lane, Store
from gateway.testing.store.harness import Database, Suite, finished, jobs, until

STRANGE: Mapping[str, str] = {
    "createdon": "'20000-01-01'",
    "modifiedon": "'0044-03-15 BC'",
    "completedat": "'infinity'",
    "scheduledat": "'-infinity'",
    "metadata": f"'{'[' * 3000 + ']' * 3000}'",
    "result": f"'{'9' * 5000}'",
    "progress": "'{'",
    "payload": "'no base64', payloadencoding = 'base64'",
    "priority": "-2147483647",
    "typeid": "4711",
    "referenceid": f"""'{{"a": {"9" * 5000}}}', metadata = '{{"a": {"9" * 5000}}}'""",
}
"""What people can write into columns and Python, or the gateway, has no value for."""


class Claiming(Suite):
    """Claims."""

    async def test_many_claimers_get_each_job_once(self, database: Database, store: Store) -> None:
        stores = [store, *[await database.open() for _ in range(3 if self.shared else 0)]]
        new = jobs(600)
        await store.enqueue(new)
        claimed: list[str] = []

        async def take(from_store: Store, limit: int) -> None:
            while batch := await self.claim(from_store, limit):
                claimed.extend(job.id for job in batch)
                for error in await from_store.finish([finished(job) for job in batch]):
                    assert error is None

        await asyncio.gather(*(take(stores[n % len(stores)], 7 + n) for n in range(8)))

        assert sorted(claimed) == sorted(job.id for job in new)
        assert (await store.statistics()).status_counts == {JobStatus.COMPLETED: 600}

    async def test_a_claim_marks_the_job_as_this_processs(self, store: Store) -> None:
        first, second = await self.claim_one(store), await self.claim_one(store)

        row = await store.get(first.id)

        assert row == first
        assert first.status is JobStatus.PROCESSING
        assert first.started_at is not None
        assert first.claimed_by == store.incarnation
        assert first.claim_token
        assert first.claim_token != second.claim_token

    async def test_every_attempt_has_a_token_of_its_own(self, store: Store) -> None:
        await store.enqueue(jobs(3))
        first = await self.claim(store)
        assert await store.release(first) == 3

        again = await self.claim(store)

        assert len({job.claim_token for job in [*first, *again]}) == 6

    async def test_higher_priority_comes_first_then_age(self, store: Store) -> None:
        new = [NewJob(handler="h", priority=priority) for priority in (0, 5, -5, 5, 0, 9)]
        await store.enqueue(new)

        claimed = [*await self.claim(store, 2), *await self.claim(store, 2), *await self.claim(store, 10)]

        assert [job.id for job in claimed] == [new[n].id for n in (5, 1, 3, 0, 4, 2)]

    async def test_a_newcomer_of_higher_priority_is_next(self, store: Store) -> None:
        await store.enqueue(jobs(20))
        await self.claim(store, 5)
        urgent = NewJob(handler="h", priority=1)

        await store.enqueue([urgent])

        assert [job.id for job in await self.claim(store, 1)] == [urgent.id]

    async def test_an_urgent_row_by_hand_is_soon_next(self, database: Database, store: Store) -> None:
        await store.enqueue(jobs(300))
        await self.claim(store, 1)
        await database.sql("INSERT INTO queue_jobs (id, handler, priority) VALUES ('urgent', 'h', 9)")

        async def found() -> bool:
            return (await self.claim(store, 1))[0].id == "urgent"

        await until(found, 5)

    async def test_what_comes_back_to_an_earlier_place_is_claimed(self, store: Store) -> None:
        await store.enqueue(jobs(50))
        first = await self.claim(store, 5)
        await self.claim(store, 5)

        await store.release(first)

        assert [job.id for job in await self.claim(store, 5)] == [job.id for job in first]

    async def test_an_unknown_handlers_job_is_left_and_counted(self, store: Store) -> None:
        await store.enqueue([NewJob(handler="unknown"), NewJob(handler="known"), NewJob(handler="Known")])

        claimed = await store.claim(Lane.RUN, 10, {"known", "other"})

        assert [job.handler for job in claimed] == ["known"]
        assert (await store.statistics()).ready_handlers == {"unknown": 1, "Known": 1}
        assert await store.claim(Lane.RUN, 10, []) == []

    async def test_lanes_do_not_mix(self, store: Store) -> None:
        await store.enqueue(
            [
                NewJob(handler="h"),
                NewJob(handler="gateway.publish", metadata={"connector": "a"}),
                NewJob(handler="gateway.publish", metadata={"connector": "b"}),
                NewJob(handler="gateway.publish"),
            ]
        )

        claims = [
            await self.claim(store, 9, lane) for lane in (Lane.RUN, Lane.send("a"), Lane.send("b"), Lane.send(""))
        ]

        assert [len(claim) for claim in claims] == [1, 1, 1, 1]
        assert await self.claim(store, 9, Lane.ALONE) == []

    async def test_rows_by_hand_with_nothing_but_nulls_run(self, database: Database, store: Store) -> None:
        await database.sql("INSERT INTO queue_jobs (id, handler) VALUES ('one', 'h')")
        await database.sql(
            "INSERT INTO queue_jobs (id, handler, metadata, payload, protocol, direction, createdby, scheduledat)"
            " VALUES ('two', 'h', NULL, NULL, NULL, NULL, NULL, NULL)"
        )
        await database.sql("INSERT INTO queue_jobs (id, handler, metadata) VALUES ('three', 'h', '[1, 2]')")
        await database.sql("INSERT INTO queue_jobs (id, handler, metadata) VALUES ('four', 'h', '\"text\"')")
        await database.sql(
            "INSERT INTO queue_jobs (id, handler, payload, payloadencoding)"
            " VALUES ('five', 'h', 'no base64!', 'base64')"
        )
        await database.sql("INSERT INTO queue_jobs (id, handler, metadata) VALUES ('six', 'gateway.publish', NULL)")

        claimed = await self.claim(store)
        sending = await self.claim(store, 9, Lane.send(""))
        errors = await store.finish([finished(job) for job in [*claimed, *sending]])

        assert [job.id for job in claimed] == ["one", "two", "three", "four", "five"]
        assert [job.metadata for job in claimed] == [{}] * 5
        assert claimed[4].payload == b"no base64!"
        assert errors == [None] * 6

    async def test_a_row_by_hand_for_later_waits_and_is_set_apart(self, database: Database, store: Store) -> None:
        await database.sql("INSERT INTO queue_jobs (id, handler, scheduledat) VALUES ('x', 'h', '2999-01-01 00:00:00')")
        await database.sql("INSERT INTO queue_jobs (id, handler, scheduledat) VALUES ('y', 'h', '2001-01-01 00:00:00')")

        assert [job.id for job in await self.claim(store)] == ["y"]
        promotion = await store.promote()

        assert (await store.list(JobFilter(status=JobStatus.SCHEDULED)))[0].id == "x"
        assert promotion.count == 0
        assert promotion.next_due is not None
        assert promotion.next_due > 1e9

    async def test_an_inactive_row_is_not_touched(self, database: Database, store: Store) -> None:
        await store.enqueue(jobs(2))
        await database.sql(
            "UPDATE queue_jobs SET active = FALSE"
            " WHERE seq = (SELECT s FROM (SELECT min(seq) AS s FROM queue_jobs) AS x)"
        )

        assert len(await self.claim(store)) == 1

    async def test_an_ordering_key_runs_one_after_the_other(self, store: Store) -> None:
        new = [NewJob(handler="h", ordering_key=key) for key in ("a", "a", "b", "a")]
        await store.enqueue([*new, NewJob(handler="h")])

        first = await self.claim(store)
        assert [job.ordering_key for job in first] == ["a", "b", None]
        assert await self.claim(store) == []
        await store.finish([finished(first[0])])

        second = await self.claim(store)
        assert [job.id for job in second] == [new[1].id]

    async def test_a_retry_blocks_its_ordering_key_and_no_other(self, store: Store) -> None:
        await store.enqueue([NewJob(handler="h", ordering_key=key) for key in ("a", "b", "a", "b")])
        first = await self.claim(store)

        await store.finish([finished(first[0], Retry(1000, "again")), finished(first[1])])

        assert [job.ordering_key for job in await self.claim(store)] == ["b"]

    @pytest.mark.parametrize("moment", ["before", "after"])
    async def test_a_lost_commit_of_a_claim_loses_no_job(self, database: Database, moment: str) -> None:
        store, lossy = await database.open_lossy()
        await store.enqueue(jobs(3))
        lossy.lose = moment  # type: ignore[assignment]

        claimed = [*await self.claim(store), *await self.claim(store)]

        assert len({job.id for job in claimed}) == len(claimed) == 3
        assert await store.finish([finished(job) for job in claimed]) == [None] * 3

    async def test_no_row_that_people_can_write_holds_up_a_lane(self, database: Database, store: Store) -> None:
        for column, value in STRANGE.items():
            await database.sql("INSERT INTO queue_jobs (id, handler) VALUES (:id, 'h')", id=column)
            with suppress(DBAPIError):  # then the database refuses it
                await database.raw(f"UPDATE queue_jobs SET {column} = {value} WHERE id = '{column}'")  # noqa: S608 - as people do
        await store.enqueue(jobs(2))

        claimed = await self.claim(store)

        assert {job.id for job in claimed} >= STRANGE.keys()
        assert len(claimed) == len(await store.list(JobFilter())) == len(STRANGE) + 2
        assert await store.finish([finished(job) for job in claimed]) == [None] * len(claimed)

    async def test_a_claim_moves_on_through_a_long_queue(self, store: Store) -> None:
        await store.enqueue(jobs(400))
        seen: list[int] = []

        while batch := await self.claim(store, 37):
            seen.extend(job.sequence for job in batch)

        assert seen == sorted(seen)
        assert len(seen) == 400
