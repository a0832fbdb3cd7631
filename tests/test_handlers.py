import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from sqlalchemy import text

from gateway import handlers, plugins
from gateway.handler import Handler
from gateway.janitor import Upkeep
from gateway.job import JobStatus, NewJob
from gateway.testing import run_handler
from tests.executor.bench import bench

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TO = {"connector": "shop", "topic": "sensors.{device}", "key": "{device}"}


@asynccontextmanager
async def receiver(answer):
    """Serve one answer, and collect the requests."""
    seen = []

    async def receive(request):
        seen.append((request.method, request.rel_url.raw_path_qs, dict(request.headers), await request.read()))
        return answer

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gateway.log", handlers.log),
        ("gateway.forward", handlers.forward),
        ("gateway.http", handlers.call),
        ("system.cleanup.histories", handlers.cleanup_histories),
        ("system.retry.failed", handlers.retry_failed),
    ],
)
def test_the_built_in_handlers_are_found_by_name(name, function):
    assert plugins.handler(name) is function


async def test_a_logged_message_shows_its_size_and_never_its_body(caplog):
    caplog.set_level(logging.INFO)
    run = await run_handler(handlers.log, b"secret", topic="floor", key=b"\xff")
    assert run.result == {"topic": "floor", "bytes": 6}
    (record,) = [record for record in caplog.records if record.name == "gateway.handlers"]
    assert (record.topic, record.bytes, record.key) == ("floor", 6, "\\xff")
    assert "secret" not in caplog.text


async def test_a_message_is_forwarded_with_its_body_headers_and_key():
    run = await run_handler(
        handlers.forward,
        b"\x00\xff",
        parameters={"device": "d1"},
        content_type="image/png",
        headers=[("Trace", b"\xfe"), ("Authorization", "Basic x"), ("message-id", "old"), ("H", "old")],
        metadata={"to": {**TO, "headers": {"h": "new"}}},
    )
    (message,) = run.published
    assert (message.topic, message.key, message.body) == ("sensors.d1", b"d1", b"\x00\xff")
    assert message.content_type == "image/png"
    assert message.headers == (("Trace", b"\xfe"), ("h", b"new"), ("gateway-hops", b"1"))
    assert run.result["connector"] == "shop"


async def test_a_tombstone_is_forwarded_as_one_and_to_its_own_topic_and_key():
    run = await run_handler(handlers.forward, None, topic="orders", key=b"k", metadata={"to": {"connector": "shop"}})
    (message,) = run.published
    assert (message.topic, message.key, message.tombstone) == ("orders", b"k", True)


async def test_a_loop_of_forwards_ends():
    run = await run_handler(
        handlers.forward, b"", headers={"Gateway-Hops": "16"}, metadata={"to": {"connector": "shop"}}
    )
    assert (run.job.status, run.published) == (JobStatus.FAILED, [])
    assert "loop" in run.job.last_error


@pytest.mark.parametrize(
    ("function", "metadata", "reason"),
    [
        (handlers.forward, {}, "no usable `to`"),
        (handlers.forward, {"to": {"conector": "x"}}, "to.conector"),
        (handlers.forward, {"to": {"topic": "x"}}, "needs to.connector"),
        (handlers.forward, {"to": TO}, "no captures"),
        (handlers.call, {"to": {"connector": "x"}}, "needs to.url"),
        (handlers.call, {"to": {"url": "http://{device}/x"}}, "cannot choose it"),
        (handlers.call, {"to": {"url": "http://u:p@{device}:80?x"}}, "cannot choose it"),
        (handlers.call, {"to": {"url": "file:///etc/passwd"}}, "not allowed"),
        (handlers.call, {"to": {"url": "//x"}}, "not allowed"),
        (handlers.call, {"to": {"url": "http://h:99999/"}}, "no URL"),
        (handlers.cleanup_histories, {}, "only inside a gateway"),
        (handlers.retry_failed, {}, "only inside a gateway"),
    ],
)
async def test_a_target_that_cannot_work_fails_the_job_for_good(function, metadata, reason):
    run = await run_handler(function, b"", metadata=metadata, max_retries=3)
    assert run.job.status is JobStatus.FAILED
    assert reason in run.job.last_error


async def test_a_url_is_called_with_the_body_and_a_stable_id():
    async with receiver(web.Response(text="ta")) as (url, seen):
        to = {"url": f"{url}/a/{{device}}?q={{device}}", "method": "PUT", "headers": {"X-Shop": "1"}}
        run = await run_handler(
            handlers.call,
            b"\x00\xff",
            content_type="image/png",
            headers={"traceparent": TRACE, "x-other": "not sent on"},
            parameters={"device": "d/1 &ä"},
            metadata={"to": to},
        )
    assert run.job.status is JobStatus.COMPLETED, run.job.last_error
    assert run.result == {"answer": "ta"}
    ((method, path, headers, body),) = seen
    assert (method, path, body) == ("PUT", "/a/d%2F1%20%26%C3%A4?q=d%2F1%20%26%C3%A4", b"\x00\xff")
    assert (headers["Idempotency-Key"], headers["X-Shop"]) == (run.job.id, "1")
    assert headers["Content-Type"] == "image/png"
    assert headers["traceparent"] == TRACE
    assert "x-other" not in headers


@pytest.mark.parametrize(
    ("status", "headers", "again", "wait"),
    [
        (404, {}, JobStatus.FAILED, None),
        (301, {"Location": "/elsewhere"}, JobStatus.FAILED, None),
        (503, {"Retry-After": "7"}, JobStatus.RETRYING, 7),
        (429, {"Retry-After": "9"}, JobStatus.RETRYING, 9),
        (500, {}, JobStatus.RETRYING, None),
    ],
)
async def test_an_answer_says_whether_to_call_again_and_when(status, headers, again, wait):
    async with receiver(web.Response(status=status, headers=headers)) as (url, seen):
        run = await run_handler(handlers.call, b"", metadata={"to": {"url": url}}, max_retries=1)
    assert (run.job.status, len(seen)) == (again, 1)
    assert str(status) in run.job.last_error
    if wait is not None:
        due = run.job.scheduled_at - datetime.now(UTC)
        assert wait - 5 < due.total_seconds() <= wait


async def test_a_url_that_nobody_answers_is_called_again_later():
    async with receiver(web.Response()) as (url, _):
        gone = url
    run = await run_handler(handlers.call, b"", metadata={"to": {"url": gone}}, max_retries=1)
    assert run.job.status is JobStatus.RETRYING


async def test_a_capture_cannot_lead_to_another_path():
    run = await run_handler(
        handlers.call, b"", parameters={"a": ".."}, metadata={"to": {"url": "http://127.0.0.1:1/x/{a}/y"}}
    )
    assert "another path" in run.job.last_error


async def test_finished_jobs_are_deleted_and_failed_ones_tried_again_on_schedule(sqlite_url):
    async with bench(sqlite_url) as b:

        async def fail(_):
            raise ValueError

        b.handlers["fails"] = Handler.of("fails", fail)
        old, failed = (NewJob(handler="fails", max_retries=0) for _ in range(2))
        await b.store.enqueue([old, failed])
        await b.executor().once()
        while (await b.store.get(failed.id)).status is not JobStatus.FAILED:
            await b.executor().once()
        async with b.store.engine.begin() as connection:
            at = (datetime.now(UTC) - timedelta(days=9)).strftime("%Y-%m-%d %H:%M:%S.%f")
            await connection.execute(
                text("UPDATE queue_jobs SET completedat = :at WHERE id = :id"), {"at": at, "id": old.id}
            )
        del b.handlers["fails"]

        maintained = {"executor": {"maintenance": Upkeep(b.store, 90)}}
        retried = await b.run(handlers.retry_failed, **maintained)
        assert retried.result == '{"retried":1}'
        assert (await b.store.get(failed.id)).status is JobStatus.PENDING
        assert (await b.run(handlers.cleanup_histories, **maintained)).result == '{"deleted":0}'
        deleted = await b.run(handlers.cleanup_histories, metadata={"days": 7}, **maintained)
        assert deleted.result == '{"deleted":1}'
        assert await b.store.get(old.id) is None
