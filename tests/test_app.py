import asyncio
import contextlib
import sqlite3
import uuid

import aiohttp
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from connectors.memory import MemoryBroker
from connectors.mqtt.config import MqttConfig, MqttEntry
from gateway import ConfigError, Gateway, JobStatus, Message, telemetry
from gateway.config import parse_config
from gateway.errors import GatewayError, MigrationError, StoreUnavailable
from gateway.lifecycle import load_handlers
from tests import app_handlers
from tests.faulty import until, until_it_is, without_schedules
from tests.services import free_port


class Stop:
    """A wish to stop, without a signal."""

    def __init__(self):
        self.requested = False
        self._event = asyncio.Event()

    def request(self):
        self.requested = True
        self._event.set()

    async def wait(self):
        await self._event.wait()


@pytest.fixture
def broker():
    return MemoryBroker.named(f"broker-{uuid.uuid4()}")


@pytest.fixture
def settings(tmp_path, broker):
    name = next(name for name, each in MemoryBroker._named.items() if each is broker)
    port = free_port()

    def make(**jobs):
        options = "".join(f", {key}: {value}" for key, value in jobs.items())
        return parse_config(
            f"""
gateway: {{name: test, grace: 0.2, admin: {{listen: "127.0.0.1:{port}"}}}}
database: {{url: "sqlite:///{without_schedules(tmp_path / "gateway.db")}"}}
jobs: {{workers: 2{options}}}
connectors:
  bus:
    type: memory
    broker: {name}
    inbound: [{{topic: questions, handler: test.answer}}]
handlers:
  test.answer: tests.app_handlers:answer
  test.hang: tests.app_handlers:hang
"""
        )

    make.admin = f"http://127.0.0.1:{port}"
    return make


async def get(url):
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def is_completed(gateway, job_id):
    job = await gateway.status(job_id)
    return job is not None and job.status is JobStatus.COMPLETED


async def test_a_message_is_received_handled_and_answered(settings, broker):
    async with Gateway.from_config(settings()) as gateway:
        broker.put(Message(topic="questions", body=b"abc"))
        await until(lambda: broker.published)

        assert [(m.topic, m.body) for m in broker.published] == [("answers", b"cba")]
        await until_it_is(lambda: _all_done(gateway, 2))
    assert [message.body for message in broker.acknowledged] == [b"abc"]


async def _all_done(gateway, count):
    return (await gateway.statistics()).status_counts == {int(JobStatus.COMPLETED): count}


async def test_an_application_enqueues_and_looks(settings):
    async with Gateway.from_config(settings()) as gateway:
        job_id = await gateway.enqueue("test.answer", {"a": 1}, priority=3)
        await until_it_is(lambda: is_completed(gateway, job_id))

        assert (await gateway.status(job_id)).result == '{"length":7}'
        [attempt] = await gateway.history(job_id)
        assert attempt.status is JobStatus.COMPLETED
        assert await gateway.status("nobody") is None


async def test_many_jobs_are_enqueued_in_order_or_not_at_all(settings):
    async with Gateway.from_config(settings(enabled="false")) as gateway:
        ids = await gateway.enqueue_many("test.answer", [b"1", "2", {"n": 3}, None])

        jobs = [await gateway.status(job_id) for job_id in ids]
        assert [job.payload for job in jobs] == [b"1", b"2", b'{"n":3}', None]
        assert [job.parent_id for job in jobs] == [None] * 4
        with pytest.raises(GatewayError):
            await gateway.enqueue_many("test.answer", [b"1", float("nan")])
        assert sum((await gateway.statistics()).status_counts.values()) == 4


async def test_a_job_enqueued_on_a_connection_shares_its_transaction(settings, tmp_path):
    mine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    async with Gateway.from_config(settings()) as gateway:
        async with mine.connect() as connection:
            lost = await gateway.enqueue("test.answer", "no", connection=connection)
            await connection.rollback()
            kept = await gateway.enqueue("test.answer", "yes", connection=connection)
            assert await gateway.status(kept) is None
            await connection.commit()

        await until_it_is(lambda: is_completed(gateway, kept), 2)
        assert await gateway.status(lost) is None
    await mine.dispose()


async def test_jobs_are_cancelled_and_retried(settings):
    async with Gateway.from_config(settings()) as gateway:
        job_id = await gateway.enqueue("test.answer", delay=60)
        assert (await gateway.cancel(job_id)).status is JobStatus.CANCELLED
        assert (await gateway.retry(job_id)).status is JobStatus.PENDING
        await until_it_is(lambda: is_completed(gateway, job_id))


async def test_without_jobs_it_only_stores(settings, broker):
    async with Gateway.from_config(settings(enabled="false")) as gateway:
        broker.put(Message(topic="questions", body=b"abc"))
        await until(lambda: broker.acknowledged)

        assert (await gateway.statistics()).status_counts == {int(JobStatus.PENDING): 1}


async def test_it_says_how_it_is(settings):
    told = []
    with telemetry.subscribed(lambda event, fields: told.append((event, fields))):
        async with Gateway.from_config(settings()):
            assert (await get(settings.admin + "/ready"))[0] == 200
            assert (await get(settings.admin + "/live"))[0] == 200
            _, health = await get(settings.admin + "/health")
            await until_it_is(lambda: _is_connected(settings.admin))
            await until_it_is(lambda: _has_told_it(settings.admin))
            [instance] = (await get(settings.admin + "/api/instances"))[1]
    assert health["jobs"]["workers"] == 2
    assert (instance["alive"], instance["running"], instance["workers"]) == (True, 0, 2)
    assert {"test.answer", "gateway.publish", "system.retry.failed"} <= set(instance["handlers"])
    assert ("connector.configured", {"connector": "bus", "type": "memory", "guarantee": "at-most-once"}) in told
    assert [event for event, _ in told if event.startswith("gateway.")] == [
        "gateway.started",
        "gateway.stopping",
        "gateway.stopped",
    ]


async def test_a_connector_s_guarantee_is_that_of_its_configuration(settings):
    config = settings()
    entry = {"topic": "t", "handler": "test.answer", "qos": 0}
    lossy = MqttConfig(type="mqtt", url=f"mqtt://127.0.0.1:{free_port()}", inbound=[MqttEntry(**entry)])
    told = []
    with telemetry.subscribed(lambda event, fields: told.append((event, fields))):
        async with Gateway.from_config(config.model_copy(update={"connectors": {"floor": lossy}})):
            _, [listed] = await get(settings.admin + "/api/connectors")
    assert listed["guarantee"] == "at-most-once"
    assert ("connector.configured", {"connector": "floor", "type": "mqtt", "guarantee": "at-most-once"}) in told


async def _is_connected(admin):
    return (await get(admin + "/api/connectors"))[1][0]["state"] == "connected"


async def _has_told_it(admin):
    return (await get(admin + "/api/instances"))[1][0]["running"] is not None


async def test_a_stop_gives_back_what_does_not_end_without_an_attempt(settings, tmp_path):
    app_handlers.started = asyncio.Event()
    stop = Stop()
    gateway = Gateway.from_config(settings())
    serving = asyncio.create_task(gateway.serve(stop))
    await until(lambda: gateway._services is not None)
    job_id = await gateway.enqueue("test.hang")
    await app_handlers.started.wait()

    stop.request()
    async with asyncio.timeout(3):
        await serving

    with contextlib.closing(sqlite3.connect(tmp_path / "gateway.db")) as database:
        job = database.execute("SELECT statusid, retrycount, crashcount FROM queue_jobs WHERE id = ?", [job_id])
        assert job.fetchall() == [(JobStatus.QUEUED, 0, 0)]
        assert database.execute("SELECT count(*) FROM job_histories").fetchall() == [(0,)]


async def test_nothing_is_left_behind(settings):
    before = asyncio.all_tasks()
    for _ in range(3):
        async with Gateway.from_config(settings()):
            pass

    assert asyncio.all_tasks() == before


async def test_a_database_that_is_away_at_start_is_waited_for(settings):
    pytest.importorskip("asyncpg")
    away = settings().model_copy(
        update={
            "database": parse_config(f'database: {{url: "postgresql://nobody@127.0.0.1:{free_port()}/none"}}').database
        }
    )
    stop = Stop()
    told = []
    with telemetry.subscribed(lambda event, _: told.append(event)):
        gateway = Gateway.from_config(away)
        serving = asyncio.create_task(gateway.serve(stop))
        await until(lambda: "gateway.waiting" in told)

        assert (await get(settings.admin + "/live"))[0] == 200
        assert (await get(settings.admin + "/ready"))[0] == 503
        assert (await get(settings.admin + "/api/jobs"))[0] == 503
        with pytest.raises(StoreUnavailable):
            await gateway.enqueue("test.answer")
        stop.request()
        async with asyncio.timeout(3):
            await serving


async def test_a_schema_of_another_version_refuses_to_start(settings):
    async with Gateway.from_config(settings()) as gateway, gateway.store.engine.begin() as connection:
        await connection.execute(text("UPDATE gateway_version SET version_num = '9999'"))

    with pytest.raises(MigrationError):
        await Gateway.from_config(settings()).serve(Stop())


async def test_an_address_in_use_is_a_readable_error(settings):
    async with Gateway.from_config(settings()):
        with pytest.raises(GatewayError, match="admin listener"):
            async with Gateway.from_config(settings()):
                pass


def test_a_handler_that_does_not_exist_refuses_to_start(settings):
    with pytest.raises(ConfigError, match=r"tests\.nowhere"):
        load_handlers(settings().model_copy(update={"handlers": {"broken": "tests.nowhere:handler"}}))


def test_a_gateway_is_built_from_a_file(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text("connectors:\n  web: {type: http, listen: '127.0.0.1:0', inbond: []}\n")

    with pytest.raises(ConfigError, match="inbond"):
        Gateway.from_file(file)
