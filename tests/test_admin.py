import asyncio
import io
import json

import aiohttp
import pytest
from sqlalchemy import text

from gateway import telemetry
from gateway.admin import Admin, Metrics
from gateway.errors import ConfigError, StoreUnavailable
from gateway.job import PUBLISH, JobStatus, NewJob
from gateway.outcome import Completed, Discard
from gateway.store import Finish, JobFilter, Lane, Report
from tests.admin_tools import Client, Running
from tests.faulty import Faulty, sqlite_store

TOKEN = "a-token-of-the-test"
ROUTES = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/api/jobs"),
    ("POST", "/api/jobs"),
    ("GET", "/api/jobs/1"),
    ("GET", "/api/jobs/1/history"),
    ("POST", "/api/jobs/1/cancel"),
    ("POST", "/api/jobs/1/retry"),
    ("GET", "/api/statistics"),
    ("GET", "/api/connectors"),
    ("POST", "/api/connectors/web/pause"),
    ("POST", "/api/connectors/web/resume"),
    ("GET", "/api/instances"),
    ("GET", "/api/schedules"),
    ("POST", "/api/schedules"),
    ("GET", "/api/schedules/x"),
    ("PUT", "/api/schedules/x"),
    ("PATCH", "/api/schedules/x"),
    ("DELETE", "/api/schedules/x"),
    ("POST", "/api/schedules/x/run"),
    ("POST", "/api/schedules/x/enable"),
    ("POST", "/api/schedules/x/disable"),
    ("GET", "/api/schedules/x/next"),
    ("GET", "/nothing"),
]


@pytest.fixture
async def store(tmp_path):
    async with sqlite_store(tmp_path) as store:
        yield Faulty(store)


@pytest.fixture
def running(store):
    return Running(store)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
async def client(running, metrics):
    async with (
        aiohttp.ClientSession() as session,
        Admin(running, ("127.0.0.1", 0), token=None, metrics=metrics) as admin,
    ):
        yield Client(session, admin.port)


@pytest.fixture
async def guarded(running):
    async with (
        aiohttp.ClientSession() as session,
        Admin(running, ("127.0.0.1", 0), token=TOKEN, metrics=None) as admin,
    ):
        yield Client(session, admin.port)


async def ended(store, outcome, **fields):
    await store.enqueue([NewJob(handler="known", **fields)])
    [job] = await store.claim(Lane.RUN, 1, ["known"])
    await store.finish([Finish(job=job, outcome=outcome)])
    return job.id


async def test_live_says_which_loop_is_stuck_and_knows_nothing_of_the_database(client, running):
    running._store = None
    assert await client("GET", "/live") == (200, {"status": "live", "stuck": {}})

    running.late = {"executor": 31.24}

    assert await client("GET", "/live") == (503, {"status": "stuck", "stuck": {"executor": 31.2}})


async def test_ready_depends_on_the_database_and_the_parts_that_take_messages(client, running, store):
    assert await client("GET", "/ready") == (200, {"status": "ready", "waiting_for": []})

    running.unready = {"inbox": "the database is away"}
    assert (await client("GET", "/ready"))[0] == 503

    running.unready = {}
    store.fail("ping", StoreUnavailable("away"))
    assert await client("GET", "/ready") == (503, {"status": "not ready", "waiting_for": ["database"]})


async def test_a_database_that_does_not_answer_is_not_waited_for(client, store, monkeypatch):
    monkeypatch.setattr("gateway.admin.status.DEADLINE", 0.05)
    store.hold("ping")

    async with asyncio.timeout(2):
        assert (await client("GET", "/ready"))[0] == 503


async def test_without_a_database_the_api_answers_503_with_retry_after(client, running):
    running._store = None

    async with client.session.get(client.url + "/api/jobs") as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == "unavailable"
    status, health = await client("GET", "/health")
    assert (status, health["database"]["state"], health["ready"]) == (200, "unavailable", False)
    assert health["waiting"] is None


async def test_a_job_is_shown_by_its_columns_and_a_word_for_its_status(client, store):
    job_id = await ended(store, Completed('{"a":1}'), payload=b"hi", metadata={"topic": "t"}, method="POST")

    status, row = await client("GET", f"/api/jobs/{job_id}")

    assert status == 200
    assert {
        "statusid": 3, "status": "completed", "payload": "hi", "payloadencoding": None, "method": "POST",
        "metadata": {"topic": "t"}, "result": '{"a":1}', "retrycount": 0, "maxretries": 3, "handler": "known",
    }.items() <= row.items()  # fmt: skip
    async with store.engine.connect() as connection:
        columns = {row[1] for row in await connection.execute(text("PRAGMA table_xinfo(queue_jobs)"))}
    assert row.keys() - {"status"} == columns - {"claimtoken", "readylane", "readyorder", "dueat", "waitingkey"}


async def test_a_binary_payload_is_shown_as_base64(client, store):
    job_id = await ended(store, Completed(), payload=b"\xff\x00")

    _, row = await client("GET", f"/api/jobs/{job_id}")

    assert (row["payload"], row["payloadencoding"]) == ("/wA=", "base64")


async def test_the_history_lists_the_attempts(client, store):
    job_id = await ended(store, Discard("no luck"))

    status, [attempt] = await client("GET", f"/api/jobs/{job_id}/history")

    assert status == 200
    assert (attempt["jobid"], attempt["status"], attempt["errormessage"]) == (job_id, "failed", "no luck")


async def test_lists_are_filtered_and_paged_without_payloads(client, store):
    for n in range(5):
        await ended(store, Completed(), payload=b"%d" % n)
    await store.enqueue([NewJob(handler="other", payload=b"x")])

    _, everything = await client("GET", "/api/jobs")
    _, completed = await client("GET", "/api/jobs?status=completed&page_size=2&page=2")
    _, by_number = await client("GET", "/api/jobs?status=0")
    _, rest = await client("GET", f"/api/jobs?before={completed['next_before']}&status=3")

    assert len(everything["jobs"]) == 6
    assert all("payload" not in job for job in everything["jobs"])
    sequences = [job["seq"] for job in everything["jobs"]]
    assert sequences == sorted(sequences, reverse=True)
    assert [job["seq"] for job in completed["jobs"]] == sequences[3:5]
    assert [job["handler"] for job in by_number["jobs"]] == ["other"]
    assert [job["seq"] for job in rest["jobs"]] == sequences[5:]


@pytest.mark.parametrize(
    "query",
    [
        "status=done", "status=9", "page=0", "page=x", "page_size=101", "page_size=-1", "direction=sideways",
        "unknown=1", "status=0&status=1", "page=1000&page_size=100", "before=%00",
    ],
)  # fmt: skip
async def test_a_query_that_makes_no_sense_is_refused_as_json(client, query):
    status, body = await client("GET", f"/api/jobs?{query}")

    assert status == 400
    assert body["error"]["message"]


async def test_a_job_is_created_durable_and_manual(client, store):
    body = {"handler": "known", "payload": {"a": "é"}, "priority": 5, "maxretries": 1, "metadata": {"b": 2}}

    status, row = await client("POST", "/api/jobs", json=body)

    job = await store.get(row["id"])
    assert status == 201
    assert (job.payload, job.priority, job.max_retries, job.type) == ('{"a":"é"}'.encode(), 5, 1, 2)
    assert (job.metadata, job.created_by, job.status) == ({"b": 2}, "api", JobStatus.PENDING)


@pytest.mark.parametrize(
    "body",
    [
        "[]", "{", '{"handler": ""}', '{"handler": "gateway.publish"}', '{"handler": "h", "priority": "5"}',
        '{"handler": "h", "surprise": 1}', '{"handler": "h", "payload": NaN}', '{"handler": "h", "delay": -1}',
        '{"handler": "h", "priority": 1000000000}', "[" * 100_000,
    ],
)  # fmt: skip
async def test_a_job_that_makes_no_sense_is_refused_as_json(client, store, body):
    status, answer = await client("POST", "/api/jobs", data=body, headers={"Content-Type": "application/json"})

    assert status == 400
    assert answer["error"]["code"] == "bad_request"
    assert await store.list(JobFilter()) == []


async def test_a_body_that_is_too_large_is_refused(client):
    data = io.BytesIO(json.dumps({"handler": "h", "payload": "x" * 2_000_000}).encode())

    status, _ = await client("POST", "/api/jobs", data=data, headers={"Content-Type": "application/json"})

    assert status == 413


async def test_jobs_are_cancelled_and_retried_once_each(client, store):
    failed = await ended(store, Discard("no"))
    done = await ended(store, Completed())

    status, row = await client("POST", f"/api/jobs/{failed}/retry")
    assert (status, row["status"]) == (200, "pending")
    status, row = await client("POST", f"/api/jobs/{failed}/cancel")
    assert (status, row["status"]) == (200, "cancelled")

    assert (await client("POST", f"/api/jobs/{done}/retry"))[0] == 409
    assert (await client("POST", f"/api/jobs/{done}/cancel"))[0] == 409
    assert (await client("POST", "/api/jobs/nobody/cancel"))[0] == 404
    assert (await client("GET", "/api/jobs/nobody"))[0] == 404
    assert (await client("GET", "/api/jobs/nobody/history"))[0] == 404


async def test_connectors_are_listed_with_their_counters(client):
    assert await client("GET", "/api/connectors") == (
        200,
        [
            {
                "name": "web", "type": "http", "state": "connected", "reason": None, "since": "2026-01-02T00:00:00Z",
                "guarantee": "at-least-once", "received": 3, "stored": 2, "duplicate": 0, "filtered": 0,
                "dead_lettered": 0, "rejected": 0, "in_flight": 1,
            }
        ],
    )  # fmt: skip


async def test_statistics_name_the_handlers_nobody_here_knows(client, store):
    await store.enqueue([NewJob(handler="known"), NewJob(handler="stranger"), NewJob(handler="stranger")])

    _, statistics = await client("GET", "/api/statistics")

    assert statistics["status_counts"] == {"0": 3}
    assert statistics["statuses"] == {"pending": 3}
    assert statistics["unknown_handlers"] == {"stranger": 2}
    assert statistics["oldest_ready"] >= 0
    health = (await client("GET", "/health"))[1]
    assert health["waiting"]["unknown_handlers"] == {"stranger": 2}
    assert (health["waiting"]["ready"], health["waiting"]["living_instances"]) == (3, 1)


async def test_the_instances_are_listed_with_what_they_tell_of_themselves(client, store):
    _, [instance] = await client("GET", "/api/instances")

    assert (instance["id"], instance["name"], instance["self"]) == (store.incarnation, "test", True)
    assert (instance["alive"], instance["running"], instance["connectors"]) == (True, None, None)
    store.tell(Report(running=1, workers=5, connectors={"web": {"state": "connected"}}, handlers=["h"]))
    async with asyncio.timeout(10):
        while instance["running"] is None:
            _, [instance] = await client("GET", "/api/instances")
    assert (instance["running"], instance["workers"], instance["handlers"]) == (1, 5, ["h"])
    assert instance["connectors"] == {"web": {"state": "connected"}}
    assert 0 <= instance["reportage"] < 10


async def test_jobs_that_no_living_instance_would_run_are_counted_everywhere(client, store):
    store.tell(Report(running=0, workers=5, connectors={"web": {"state": "connected"}}, handlers=["known", "other"]))
    await store.enqueue([NewJob(handler=name) for name in ("known", "other", "nobodys")])
    await store.enqueue([NewJob(handler=PUBLISH, metadata={"connector": name}) for name in ("web", "gone")])
    async with asyncio.timeout(10):
        while not (await client("GET", "/api/statistics"))[1]["orphaned_handlers"]:
            pass
    _, statistics = await client("GET", "/api/statistics")
    assert (statistics["orphaned_handlers"], statistics["orphaned_connectors"]) == ({"nobodys": 1}, {"gone": 1})
    assert statistics["unknown_handlers"] == {"other": 1, "nobodys": 1}
    assert (await client("GET", "/health"))[1]["waiting"]["orphaned_handlers"] == {"nobodys": 1}
    lines = (await client("GET", "/metrics"))[1].splitlines()
    assert {"gateway_jobs_orphaned 2.0", "gateway_instances 1.0"} <= set(lines)


async def test_metrics_count_events_and_show_the_present(client, store, metrics):
    await store.enqueue([NewJob(handler="stranger")])
    with metrics.counting():
        telemetry.emit("inbox.committed", connector="web", stored=4, duplicate=1, rejected=0, seconds=0.01)
        telemetry.emit("job.finished", job="1", handler="h", attempt=1, status="COMPLETED", error=None, seconds=0.1)
        telemetry.emit("outbox.delivered", connector="web", count=7, seconds=0.1)
        telemetry.emit("schedule.fired", schedule="s", count=3, tick="2030-01-01T00:00:00+00:00")
        telemetry.emit("schedule.skipped", schedule="s", count=2, reason="missed", error=None)
        telemetry.emit("schedule.invalid", schedule="s", error="cron: no")

    status, text_ = await client("GET", "/metrics")

    assert status == 200
    for line in (
        'gateway_messages_received_total{connector="web"} 3.0',
        'gateway_messages_in_flight{connector="web"} 1.0',
        'gateway_ingest_batch_size_sum{connector="web"} 5.0',
        'gateway_jobs_finished_total{handler="h",status="completed"} 1.0',
        'gateway_outbound_confirmed_total{connector="web"} 7.0',
        'gateway_connector_state{connector="web",state="connected"} 1.0',
        'gateway_jobs{status="pending"} 1.0',
        "gateway_jobs_unknown_handler 1.0",
        "gateway_schedule_ticks_fired_total 3.0",
        'gateway_schedule_ticks_skipped_total{reason="missed"} 2.0',
        "gateway_schedules_invalid_total 1.0",
        "gateway_schedules_due 0.0",
        "gateway_schedule_lag_seconds 0.0",
        "gateway_database_up 1.0",
        "gateway_jobs_running 4.0",
    ):
        assert line in text_.splitlines()


async def test_metrics_are_there_without_a_database(client, running):
    running._store = None

    status, text_ = await client("GET", "/metrics")

    assert status == 200
    assert "gateway_database_up 0.0" in text_.splitlines()


async def test_labels_cannot_be_flooded(client, metrics):
    with metrics.counting():
        for n in range(5000):
            telemetry.emit("job.finished", job="1", handler=f"h{n}", attempt=1, status="failed", error="x", seconds=0.1)

    _, text_ = await client("GET", "/metrics")

    assert len([line for line in text_.splitlines() if line.startswith("gateway_jobs_finished_total")]) == 501
    assert 'gateway_jobs_finished_total{handler="other",status="failed"} 4500.0' in text_


async def test_without_the_token_everything_is_refused(guarded, store):
    for method, path in ROUTES:
        for header in (None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é", TOKEN, f"Bearer{TOKEN}"):
            headers = {} if header is None else {"Authorization": header}

            status, body = await guarded(method, path, headers=headers)

            assert (status, body["error"]["code"]) == (401, "unauthorized"), (method, path, header)
    assert store.calls == []


async def test_with_the_token_or_for_probes_the_way_is_open(guarded):
    assert (await guarded("GET", "/live"))[0] == 200
    assert (await guarded("GET", "/ready"))[0] == 200
    assert (await guarded("GET", "/api/jobs", headers={"Authorization": f"Bearer {TOKEN}"}))[0] == 200
    assert (await guarded("POST", "/live"))[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "rebound.example:8090"},
    ],
)
async def test_no_web_page_of_another_origin_changes_anything(client, store, headers):
    job_id = await ended(store, Discard("no"))

    status, _ = await client("POST", f"/api/jobs/{job_id}/retry", headers=headers)

    assert status == 403
    assert (await store.get(job_id)).status is JobStatus.FAILED


async def test_a_form_of_a_web_page_is_no_json(client):
    status, _ = await client("POST", "/api/jobs", data={"handler": "known"})

    assert status == 400


async def test_changes_are_made_by_post_alone(client):
    status, _ = await client("GET", "/api/jobs/1/cancel")

    assert status == 405


async def test_off_loopback_a_token_is_required(running):
    with pytest.raises(ConfigError, match="token"):
        Admin(running, ("0.0.0.0", 0), token=None, metrics=None)
