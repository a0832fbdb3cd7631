"""What comes in is stored once, whole and in order."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.connector import StoredPosition
from gateway.errors import DataRefused, PositionLost
from gateway.job import JobStatus, NewJob
from gateway.store import Arrival, Dedupe, JobFilter, PositionMove, SourcePosition, Store
from gateway.testing.store.harness import Database, Suite, jobs

NOTHING, BODY, OTHER = bytes(16), b"0123456789abcdef", b"another body's 16"[:16]
HOSTILE = {
    "empty": b"",
    "tombstone": None,
    "NUL": b"a\x00b",
    "invalid UTF-8": b"\xff\xfe\x80",
    "half a character": "ü".encode()[:1],
    "all bytes": bytes(range(256)),
    "quotes": b"'\"\\%s ? $1 :x {} \r\n\t",
    "emoji": "🜁 \U0010ffff \u202e".encode(),
    "looks like base64": b"AAECAw==",
    "spaces": b"  x  ",
}


def arrival(key: str | None = None, body: bytes = BODY, scope: str = "") -> Arrival:
    """Return a message, with a dedupe key if one is given."""
    dedupe = None if key is None else Dedupe(scope=scope, key=key, body_hash=body)
    return Arrival(job=NewJob(handler="h"), dedupe=dedupe)


def move(held: int | None, next_offset: int, partition: int = 0) -> PositionMove:
    """Return a move of the position of one log."""
    return PositionMove(
        connector="c", cluster="k", topic="t", partition=partition, topic_id="i", held=held, next_offset=next_offset
    )


class Ingesting(Suite):
    """Ingest and enqueue."""

    async def test_jobs_are_enqueued_in_order(self, store: Store) -> None:
        new = jobs(500)

        await store.enqueue(new)

        assert [job.id for job in await self.claim(store, 1000)] == [job.id for job in new]

    async def test_enqueuing_is_all_or_nothing(self, store: Store) -> None:
        refused = NewJob(handler=None)  # type: ignore[arg-type]

        with pytest.raises(DataRefused):
            await store.enqueue([*jobs(10), refused])

        assert await store.list(JobFilter()) == []

    @pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
    async def test_a_payload_comes_back_byte_for_byte(self, store: Store, payload: bytes | None) -> None:
        await store.ingest("c", [Arrival(job=NewJob(handler="h", payload=payload))])

        (job,) = await self.claim(store)

        assert job.payload == payload
        assert job.message.tombstone is (payload is None)

    async def test_a_large_payload_comes_back(self, store: Store) -> None:
        payloads = [b"x" * self.largest, os.urandom(self.largest)]

        for payload in payloads:
            await store.ingest("c", [Arrival(job=NewJob(handler="h", payload=payload))])

        assert [job.payload for job in await self.claim(store)] == payloads

    async def test_text_stays_readable_in_sql_and_nothing_else_is_text(self, database: Database, store: Store) -> None:
        await store.enqueue([NewJob(handler="h", payload="größer".encode()), NewJob(handler="h", payload=b"a\x00b")])

        rows = await database.sql("SELECT payload, payloadencoding FROM queue_jobs ORDER BY seq")
        assert rows == [("größer", None), ("YQBi", "base64")]

    async def test_metadata_that_no_database_takes_is_made_harmless(self, store: Store) -> None:
        job = await self.claim_one(
            store, metadata={"nul\x00": "a\x00b", "half": "\ud800", "list": [1, None, {"x": 1.5}]}
        )

        assert job.metadata == {"nul\ufffd": "a\ufffdb", "half": "?", "list": [1, None, {"x": 1.5}]}

    async def test_every_field_of_a_new_job_is_stored(self, store: Store) -> None:
        new = NewJob(
            handler="h", method="POST", protocol="http", priority=-3, max_retries=7, parent_id="p",
            reference_id="r", created_by="me", ordering_key="o",
        )  # fmt: skip

        await store.enqueue([new])

        job = await store.get(new.id)
        assert job is not None
        fields = ("method", "protocol", "priority", "max_retries", "parent_id", "reference_id", "created_by")
        assert [getattr(job, name) for name in fields] == [getattr(new, name) for name in fields]
        assert (job.ordering_key, job.direction, job.type) == ("o", "internal", 0)

    async def test_a_batch_ingested_again_makes_nothing_twice(self, store: Store) -> None:
        batch = [arrival(), arrival("a"), arrival("b")]

        first = await store.ingest("c", batch)
        again = await store.ingest("c", batch)

        assert first == again
        assert not any(receipt.duplicate for receipt in again)
        assert len(await self.claim(store)) == 3

    @pytest.mark.parametrize("moment", ["before", "after"])
    async def test_a_lost_commit_of_an_ingest_is_resolved(self, database: Database, moment: str) -> None:
        store, lossy = await database.open_lossy()
        await store.ingest("c", [arrival()], [move(None, 1)])
        lossy.lose = moment  # type: ignore[assignment]

        receipts = await store.ingest("c", [arrival("a"), arrival("b")], [move(1, 3)])

        assert [receipt.duplicate for receipt in receipts] == [False, False]
        assert len(await self.claim(store)) == 3
        assert await store.positions("c", "k", "t", [0]) == {0: StoredPosition("i", 3)}

    async def test_a_redelivery_is_a_duplicate_of_its_job(self, store: Store) -> None:
        first = await store.ingest("c", [arrival("a"), arrival("b")])

        again = await store.ingest("c", [arrival("b"), arrival("new"), arrival("a")])

        assert [receipt.job_id for receipt in again][::2] == [first[1].job_id, first[0].job_id]
        assert [receipt.duplicate for receipt in again] == [True, False, True]
        assert not any(receipt.conflict for receipt in again)
        assert len(await self.claim(store)) == 3

    async def test_another_body_under_the_same_key_is_a_conflict(self, store: Store) -> None:
        (first,) = await store.ingest("c", [arrival("a")])

        (again,) = await store.ingest("c", [arrival("a", OTHER)])

        assert (again.job_id, again.duplicate, again.conflict) == (first.job_id, True, True)

    async def test_duplicates_within_one_batch_are_found(self, store: Store) -> None:
        receipts = await store.ingest("c", [arrival("a"), arrival("a"), arrival("a", OTHER), arrival("b")])

        assert [receipt.duplicate for receipt in receipts] == [False, True, True, False]
        assert [receipt.conflict for receipt in receipts] == [False, False, True, False]
        assert len(await self.claim(store)) == 2

    async def test_keys_are_told_apart_by_scope_and_connector(self, store: Store) -> None:
        await store.ingest("c", [arrival("a", scope="1"), arrival("a", scope="2"), arrival("1a")])

        (other,) = await store.ingest("d", [arrival("a", scope="1")])

        assert not other.duplicate
        assert len(await self.claim(store)) == 4

    async def test_many_at_once_with_one_key_become_one_job(self, store: Store) -> None:
        batches = [store.ingest("c", [arrival("x"), arrival("a"), arrival()]) for _ in range(20)]

        receipts = [batch[1] for batch in await asyncio.gather(*batches)]

        assert len({receipt.job_id for receipt in receipts}) == 1
        assert [receipt.duplicate for receipt in receipts].count(False) == 1
        assert len(await self.claim(store)) == 22

    async def test_a_position_moves_with_its_jobs(self, store: Store) -> None:
        await store.ingest("c", [arrival()], [move(None, 5), move(None, 7, partition=1)])
        await store.ingest("c", [arrival()], [move(5, 6), move(7, 9, partition=1)])

        stored = await store.positions("c", "k", "t", [0, 1, 2])

        assert stored == {0: StoredPosition("i", 6), 1: StoredPosition("i", 9)}
        assert await store.positions("other", "k", "t", [0]) == {}

    async def test_what_a_connector_keeps_beside_a_position_moves_with_it(self, store: Store) -> None:
        await store.ingest("c", [arrival()], [move(None, 5), replace(move(None, 7, partition=1), state="first")])
        assert (await store.positions("c", "k", "t", [1]))[1].state == "first"

        await store.ingest("c", [arrival()], [replace(move(7, 9, partition=1), state="next")])

        assert await store.positions("c", "k", "t", [1]) == {1: StoredPosition("i", 9, "next")}
        assert [p.partition for p in await store.all_positions("c")] == [0], "bookkeeping is listed"

    @pytest.mark.parametrize("held", [4, None])
    async def test_a_batch_at_a_wrong_position_fails_whole(self, store: Store, held: int | None) -> None:
        await store.ingest("c", [arrival()], [move(None, 5), move(None, 5, partition=1)])

        with pytest.raises(PositionLost):
            await store.ingest("c", [arrival("a"), arrival()], [move(5, 8, partition=1), move(held, 6)])

        assert len(await self.claim(store)) == 1
        assert await store.positions("c", "k", "t", [0, 1]) == {0: StoredPosition("i", 5), 1: StoredPosition("i", 5)}
        assert not (await store.ingest("c", [arrival("a")]))[0].duplicate

    async def test_a_position_moves_without_jobs_where_nothing_was_wanted(self, store: Store) -> None:
        await store.ingest("c", [], [move(None, 5), move(None, 7, partition=1)])
        assert await store.ingest("c", [], [move(5, 8)]) == []

        with pytest.raises(PositionLost):
            await store.ingest("c", [], [move(7, 9, partition=1), move(5, 9)])

        assert await store.positions("c", "k", "t", [0, 1]) == {0: StoredPosition("i", 8), 1: StoredPosition("i", 7)}

    async def test_positions_are_listed_with_all_they_are(self, store: Store) -> None:
        await store.ingest("c", [], [move(None, 7, partition=1), move(None, 5)])
        await store.set_position(SourcePosition(connector="b", cluster="k", topic="t", partition=0, next_offset=2**40))

        found = await store.all_positions()

        assert [(p.connector, p.partition, p.next_offset, p.topic_id) for p in found] == [
            ("b", 0, 2**40, ""), ("c", 0, 5, "i"), ("c", 1, 7, "i"),
        ]  # fmt: skip
        assert all(p.updated_at is not None and p.cluster == "k" and p.topic == "t" for p in found)
        assert await store.all_positions("c") == found[1:]
        assert await store.all_positions("nobody") == []

    async def test_a_position_set_by_hand_wins_over_what_a_consumer_holds(self, store: Store) -> None:
        await store.ingest("c", [arrival()], [move(None, 5)])
        wanted = SourcePosition(connector="c", cluster="k", topic="t", partition=0, next_offset=2)

        assert await store.set_position(wanted) == 5
        assert await store.set_position(replace(wanted, partition=9)) is None

        assert await store.positions("c", "k", "t", range(10)) == {0: StoredPosition("", 2), 9: StoredPosition("", 2)}
        with pytest.raises(PositionLost):
            await store.ingest("c", [arrival()], [move(5, 6)])
        await store.ingest("c", [arrival()], [move(2, 3)])
        assert await store.positions("c", "k", "t", [0]) == {0: StoredPosition("i", 3)}

    async def test_of_two_consumers_at_one_position_one_wins(self, store: Store) -> None:
        await store.ingest("c", [arrival()], [move(None, 5)])

        batches = [store.ingest("c", [arrival()], [move(5, 6)]) for _ in range(8)]
        results = await asyncio.gather(*batches, return_exceptions=True)

        assert sum(isinstance(result, PositionLost) for result in results) == 7
        assert len(await self.claim(store)) == 2

    async def test_what_can_never_run_is_stored_as_failed(self, store: Store) -> None:
        born = NewJob(handler="h", payload=b"\x00", status=JobStatus.FAILED, error="it is no message")

        await store.ingest("c", [Arrival(job=born), arrival()])

        job = await store.get(born.id)
        assert job is not None
        assert (job.status, job.last_error, job.payload) == (JobStatus.FAILED, "it is no message", b"\x00")
        assert job.completed_at is not None
        assert await store.history(born.id) == []
        assert len(await self.claim(store)) == 1

    @pytest.fixture
    def far_away(self) -> Iterator[None]:
        """Put the process's local time far from the database's."""
        before = os.environ.get("TZ")
        os.environ["TZ"] = "Pacific/Kiritimati"
        time.tzset()
        yield
        os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
        time.tzset()

    @pytest.mark.usefixtures("far_away")
    async def test_times_are_the_databases_own(self, database: Database) -> None:
        store = await database.open()
        new = NewJob(handler="h", delay=1000)
        await store.enqueue([new, NewJob(handler="now")])

        (now,) = await self.claim(store)
        promotion = await store.promote()

        job = await store.get(new.id)
        assert job is not None
        assert job.scheduled_at is not None
        assert job.created_at is not None
        assert abs((job.scheduled_at - job.created_at).total_seconds() - 1000) < 5
        assert abs(job.created_at.timestamp() - time.time()) < 60
        assert abs((promotion.next_due or 0) - 1000) < 5
        assert now.handler == "now"

    async def test_a_delay_beyond_all_time_is_the_end_of_time(self, store: Store) -> None:
        await store.enqueue([NewJob(handler="h", delay=1e300)])

        (job,) = await store.list(JobFilter())

        assert job.status is JobStatus.SCHEDULED

    async def test_jobs_can_join_a_transaction_of_the_caller(self, database: Database, store: Store) -> None:
        engine = database.engine
        async with engine.connect() as connection:
            async with connection.begin():
                await store.enqueue(
                    [NewJob(handler="kept", payload=b"\xff"), NewJob(handler="later", delay=60)], connection
                )
            transaction = await connection.begin()
            await store.enqueue([NewJob(handler="dropped")], connection)
            await transaction.rollback()
        async with AsyncSession(engine) as session, session.begin():
            await store.enqueue([NewJob(handler="session", metadata={"a": 1})], session)

        found = {job.handler: job for job in await store.list(JobFilter())}

        assert found.keys() == {"kept", "later", "session"}
        assert found["kept"].payload == b"\xff"
        assert found["later"].status is JobStatus.SCHEDULED
        assert found["session"].metadata == {"a": 1}

    async def test_who_waits_is_told_which_lanes_were_filled(self, store: Store) -> None:
        told: list[set[str]] = []
        store.on_ready = told.append

        await store.enqueue([NewJob(handler="h"), NewJob(handler="gateway.publish", metadata={"connector": "x"})])
        await store.ingest("c", [arrival()])

        assert told == [{"run", "send:x"}, {"run"}]
