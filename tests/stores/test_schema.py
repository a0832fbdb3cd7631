"""The schema as people meet it with plain SQL."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, StatementError

from gateway.store import tables
from gateway.store.migrate import migrate
from gateway.store.url import engine_url
from tests.stores.databases import row, rows

BY_HAND = "INSERT INTO queue_jobs (id, handler) VALUES ('by-hand', 'order.process')"

HISTORY = """INSERT INTO job_histories (id, jobid, executionid, statusid, startedat)
 VALUES ('h', '{}', 'e', 3, '2030-01-01 00\\:00\\:00')"""


@pytest.fixture
async def migrated(database_url):
    await migrate(database_url)
    return database_url


async def test_a_row_inserted_by_hand_has_every_default(migrated):
    job = await row(migrated, BY_HAND, "SELECT * FROM queue_jobs")
    expected = {
        "typeid": 0, "statusid": 0, "priority": 0, "maxretries": 3, "retrycount": 0, "active": 1, "rowversionstamp": 1,
        "crashcount": 0, "readylane": "run", "readyorder": 0,
    }  # fmt: skip
    assert {name: job[name] for name in expected} == expected
    times = {"createdon", "modifiedon"}
    assert {name for name, value in job.items() if value is None} == set(job) - set(expected) - times - {
        "seq", "id", "handler",
    }  # fmt: skip
    assert job["seq"] > 0


async def test_explicit_nulls_are_taken_wherever_a_value_is_optional(migrated):
    job = await row(
        migrated,
        """INSERT INTO queue_jobs (id, typeid, method, protocol, direction, handler, metadata, payload, result,
        statusid, priority, maxretries, retrycount, scheduledat, startedat, completedat, lasterror, parentjobid, active,
        referenceid, createdby, createdon, modifiedby, modifiedon, rowversionstamp)
        VALUES ('n', 2, NULL, NULL, NULL, 'h', NULL, NULL, NULL, 0, 0, 3, 0, NULL, NULL, NULL, NULL, NULL, TRUE,
        NULL, NULL, CURRENT_TIMESTAMP, NULL, CURRENT_TIMESTAMP, 1)""",
        "SELECT readylane, payload FROM queue_jobs",
    )
    assert dict(job) == {"readylane": "run", "payload": None}
    schedule = await row(
        migrated,
        """INSERT INTO jobs (id, name, description, typeid, handler, cronexpression, intervalseconds, startat, endat,
        maxexecutions, enabled, priority, metadata, createdby)
        VALUES ('s', 'By hand', NULL, 1, 'h', NULL, 30, NULL, NULL, 0, TRUE, 0, NULL, NULL)""",
        "SELECT * FROM jobs WHERE id = 's'",
    )
    assert (schedule["timeout"], schedule["maxretries"], schedule["executioncount"]) == (300, 3, 0)
    assert schedule["nextrunat"] is None


async def test_the_queries_of_the_original_return_sense(migrated):
    history = """INSERT INTO job_histories (id, jobid, executionid, statusid, startedat, completedat, duration)
        VALUES ('h', 'by-hand', 'e', 4, '2030-01-01 00:00:00', '2030-01-01 00:00:01.5', 1500)"""
    failed = await row(
        migrated,
        BY_HAND,
        "UPDATE queue_jobs SET statusid = 4, lasterror = 'no such order' WHERE id = 'by-hand'",
        history,
        "SELECT id, lasterror FROM queue_jobs WHERE statusid = 4 AND active = TRUE",
    )
    assert dict(failed) == {"id": "by-hand", "lasterror": "no such order"}
    joined = await row(
        migrated,
        "SELECT q.handler, h.duration FROM job_histories h JOIN queue_jobs q ON q.id = h.jobid",
    )
    assert dict(joined) == {"handler": "order.process", "duration": 1500}


async def test_deleting_a_job_deletes_its_history(migrated):
    with pytest.raises(DBAPIError):
        await rows(migrated, HISTORY.format("nobody"))
    await rows(migrated, BY_HAND, HISTORY.format("by-hand"), "DELETE FROM queue_jobs")
    assert await rows(migrated, "SELECT id FROM job_histories") == []


async def test_the_two_sample_schedules_are_there(migrated):
    found = await rows(migrated, select(tables.jobs).order_by(tables.jobs.c.id))
    assert [(s["id"], s["name"], s["handler"], s["cronexpression"], s["priority"]) for s in map(original, found)] == [
        ("job-cleanup-old-histories", "Cleanup Old Job Histories", "system.cleanup.histories", "0 2 * * *", 1),
        ("job-retry-failed-jobs", "Retry Failed Jobs", "system.retry.failed", "*/15 * * * *", 5),
    ]
    assert all(s["typeid"] == 3 and s["enabled"] and s["createdby"] == "system" for s in map(original, found))


def original(found):
    return {column.name: found[column.name] for column in tables.jobs.c}


async def test_reserved_words_are_columns_all_the_same(migrated):
    await rows(
        migrated,
        insert(tables.jobs).values(id="c", name="c", handler="h", condition="1 = 1"),
        insert(tables.source_positions).values(
            connector="k", cluster="c", topic="t", partition=3, topic_id="x", next_offset=2**60
        ),
    )
    assert await rows(migrated, select(tables.jobs.c.condition).where(tables.jobs.c.id == "c")) == [
        {"condition": "1 = 1"}
    ]
    position = await row(migrated, select(tables.source_positions))
    assert (position["partition"], position["nextoffset"]) == (3, 2**60)


async def test_ids_handlers_and_keys_are_compared_letter_by_letter(migrated):
    await rows(migrated, *(insert(tables.queue_jobs).values(id=i, handler=i) for i in ("a", "A", "\u00e1")))
    assert len(await rows(migrated, "SELECT id FROM queue_jobs WHERE handler = 'a'")) == 1


# --- times


async def test_times_are_utc_whatever_the_session_says(migrated):
    zone = {"postgresql": "SET TIME ZONE 'Asia/Tokyo'", "mysql": "SET time_zone = '+09:00'", "sqlite": "SELECT 1"}
    family = engine_url(migrated).get_backend_name()
    await rows(migrated, zone[family], BY_HAND)
    found = await row(migrated, select(tables.queue_jobs.c.created_at, tables.queue_jobs.c.modified_at))
    for moment in found.values():
        assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)


async def test_times_keep_their_microseconds(migrated):
    moment = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    job = tables.queue_jobs
    await rows(migrated, insert(job).values(id="t", handler="h", scheduled_at=moment, status=7))
    assert await rows(migrated, select(job.c.scheduled_at, job.c.due_at)) == [{"scheduledat": moment, "dueat": moment}]
    await rows(migrated, *(insert(job).values(id=str(n), handler="h") for n in range(5)))
    if not migrated.startswith("sqlite"):
        created = await rows(migrated, select(job.c.created_at))
        assert any(r["createdon"].microsecond % 1000 for r in created)
    else:
        created = await rows(migrated, "SELECT createdon FROM queue_jobs")
        assert {len(r["createdon"]) for r in created} == {26}


async def test_a_time_without_zone_is_refused(migrated):
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 - the mistake under test
    with pytest.raises(StatementError, match="without zone"):
        await rows(migrated, insert(tables.queue_jobs).values(id="t", handler="h", scheduled_at=naive))


async def test_sqlite_refuses_a_time_that_would_never_come_due(sqlite_url):
    await migrate(sqlite_url)
    by_hand = "INSERT INTO queue_jobs (id, handler, scheduledat) VALUES ('t', 'h', {})"
    await rows(sqlite_url, by_hand.format("datetime('now', '+1 hour')"), "DELETE FROM queue_jobs")
    for wrong in ("'2030-01-01T00\\:00\\:00'", "'tomorrow'", "1893456000", "'2030-01-01'"):
        with pytest.raises(DBAPIError, match="scheduledat_is_like_2030-12-31 23:59:59"):
            await rows(sqlite_url, by_hand.format(wrong))


LONG_AGO = "2020-01-01 00:00:00"


@pytest.mark.parametrize("table", ["queue_jobs", "job_histories", "jobs"])
async def test_modifiedon_follows_every_update_unless_the_update_sets_it(migrated, table):
    await rows(migrated, BY_HAND, HISTORY.format("by-hand"))
    columns = tables.metadata.tables[table].c
    modified = select(columns.modified_at)
    await rows(migrated, f"UPDATE {table} SET modifiedon = '{LONG_AGO}'")
    assert {r["modifiedon"].year for r in await rows(migrated, modified)} == {2020}
    await rows(migrated, f"UPDATE {table} SET referenceid = 'touched'")
    assert {r["modifiedon"].year for r in await rows(migrated, modified)} != {2020}


# --- what finds jobs


READY = (
    ({}, "run", 0),
    ({"statusid": 1, "priority": 7}, "run", -7),
    ({"crashcount": 1}, "run", 0),
    ({"crashcount": 2}, "alone", 0),
    ({"handler": "gateway.publish", "metadata": '{"connector": "orders"}', "crashcount": 3}, "send:orders", 0),
    ({"handler": "gateway.publish", "metadata": '{"connector": "' + "x" * 300 + '"}'}, "send:" + "x" * 250, 0),
    ({"handler": "gateway.publish", "metadata": '{"connector": null}'}, "send:", 0),
    ({"handler": "gateway.publish", "metadata": "{}"}, "send:", 0),
    ({"handler": "gateway.publish", "metadata": "[1]"}, "send:", 0),
    ({"handler": "gateway.publish"}, "send:", 0),
    *(({"statusid": status}, None, None) for status in (2, 3, 4, 5, 6, 7)),
    ({"active": False}, None, None),
)


@pytest.mark.parametrize(("values", "lane", "order"), READY)
async def test_the_lane_of_a_job(migrated, values, lane, order):
    found = await row(migrated, by_hand(migrated, values), "SELECT readylane, readyorder FROM queue_jobs")
    assert dict(found) == {"readylane": lane, "readyorder": order}


def by_hand(url, values):
    columns = {"id": "x", "handler": "h", **values}
    shown = {name: f":{name}" for name in columns}
    if "metadata" in shown and url.startswith("postgresql"):
        shown["metadata"] = "CAST(:metadata AS jsonb)"
    return text(f"INSERT INTO queue_jobs ({', '.join(columns)}) VALUES ({', '.join(shown.values())})").bindparams(
        **columns
    )


async def test_metadata_that_is_no_json_does_not_break_sqlite(sqlite_url):
    await migrate(sqlite_url)
    values = {"handler": "gateway.publish", "metadata": "not json"}
    found = await row(sqlite_url, by_hand(sqlite_url, values), "SELECT readylane FROM queue_jobs")
    assert found["readylane"] == "send:"


async def test_when_a_job_is_due_and_what_it_keeps_waiting(migrated):
    job = tables.queue_jobs
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    await rows(
        migrated,
        *(
            insert(job).values(id=f"{s}", handler="h", status=s, scheduled_at=moment, ordering_key="k")
            for s in range(8)
        ),
        insert(job).values(id="soon", handler="h", status=5),
        insert(job).values(id="off", handler="h", status=7, active=False, ordering_key="k"),
    )
    found = {r["id"]: r for r in await rows(migrated, select(job.c.id, job.c.due_at, job.c.waiting_key))}
    assert {name for name, r in found.items() if r["dueat"] == moment} == {"5", "7"}
    assert found["soon"]["dueat"] == datetime(1970, 1, 1, tzinfo=UTC)
    assert found["off"]["dueat"] is None
    assert {name for name, r in found.items() if r["waitingkey"] == "k"} == {"0", "1", "2", "5", "7"}
