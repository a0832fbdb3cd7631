"""Pausing a connector of a running gateway: in a program, over the API, from the command line."""

import asyncio
import sys
import uuid

import aiohttp
import pytest

from connectors.memory import MemoryBroker
from gateway import Gateway, JobStatus, Message
from gateway.config import parse_config
from gateway.job import PUBLISH, Direction, NewJob
from tests.faulty import until, until_it_is, without_schedules
from tests.services import free_port

TOKEN = "a-token-of-this-test"


@pytest.fixture
def broker():
    return f"broker-{uuid.uuid4()}"


@pytest.fixture
def file(tmp_path, broker):
    path = tmp_path / "gateway.yaml"
    path.write_text(f"""
gateway: {{grace: 0.2, admin: {{listen: "127.0.0.1:{free_port()}", token: {TOKEN}}}}}
database: {{url: "sqlite:///{without_schedules(tmp_path / "gateway.db")}"}}
jobs: {{poll_interval: 0.05}}
connectors:
  bus: {{type: memory, broker: {broker}, inbound: [{{topic: t, handler: gateway.log}}]}}
  other: {{type: memory, broker: {broker}}}
""")
    return path


@pytest.fixture
async def gateway(file):
    async with Gateway.from_file(file) as gateway:
        await until(lambda: all(view.state == "connected" for view in gateway.connectors))
        yield gateway


def outbound(connector="bus"):
    return NewJob(
        handler=PUBLISH, payload=b"x", metadata={"connector": connector, "topic": "out"}, direction=Direction.OUTBOUND
    )


def state(gateway, name="bus"):
    return next((view.state, view.reason) for view in gateway.connectors if view.name == name)


async def test_a_paused_connector_neither_takes_nor_sends_and_loses_nothing(gateway, broker):
    bus = MemoryBroker.named(broker)
    assert gateway.pause("bus", "maintenance")
    assert not gateway.pause("nobody")
    assert not gateway.resume("nobody")
    job = outbound()
    await gateway.store.enqueue([job, outbound("other")])
    bus.put(Message(topic="t", body=b"1"))

    await until(lambda: len(bus.published) == 1)
    assert (state(gateway), state(gateway, "other")) == (("paused", "maintenance"), ("connected", None))
    assert bus.acknowledged == []
    await until_it_is(lambda: _waits(gateway, job.id))

    assert gateway.resume("bus")
    await until(lambda: len(bus.published) == 2 and bus.acknowledged)
    await until_it_is(lambda: _completed(gateway, 3))
    assert [(await gateway.status(job.id)).retry_count, len(bus.acknowledged)] == [0, 1]


async def _waits(gateway, job_id):
    """Whether it is there to be sent, without an attempt used; a sender may have held it when the pause began."""
    row = await gateway.status(job_id)
    return row.status in (JobStatus.PENDING, JobStatus.QUEUED) and row.retry_count == 0


async def _completed(gateway, count):
    return (await gateway.statistics()).status_counts.get(int(JobStatus.COMPLETED)) == count


async def test_the_api_pauses_and_resumes(gateway):
    url = f"http://127.0.0.1:{gateway._config.gateway.admin.port}/api/connectors"
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:

        async def post(path, **options):
            async with session.post(url + path, **options) as response:
                return response.status, await response.json()

        status, shown = await post("/bus/pause")
        assert (status, shown["name"], shown["state"], shown["reason"]) == (200, "bus", "paused", "paused over the API")
        status, shown = await post("/bus/pause", json={"reason": "why not"})
        assert (status, shown["reason"]) == (200, "why not")
        assert (await post("/bus/pause", json={"reason": 5}))[0] == 400
        assert (await post("/bus/pause", data=b"x"))[0] == 400
        assert (await post("/nobody/pause"))[0] == 404
        status, shown = await post("/bus/resume")
        assert (status, shown["state"]) == (200, "connecting")
        await until(lambda: state(gateway) == ("connected", None))
        assert (await post("/bus/resume"))[1]["state"] == "connected"
        assert (await post("/nobody/resume"))[0] == 404
    async with aiohttp.ClientSession() as stranger, stranger.post(f"{url}/bus/pause") as response:
        assert response.status == 401
    assert state(gateway) == ("connected", None)


async def test_commands_pause_and_resume(gateway, file):
    async def run(*arguments):
        command = [sys.executable, "-m", "gateway", "connectors", *arguments, "--config", str(file)]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            _, told = await process.communicate()
        return process.returncode, told.decode().strip()

    assert await run("pause", "bus", "--reason", "the plant is cleaned") == (
        0,
        "connector bus is paused: the plant is cleaned",
    )
    assert state(gateway) == ("paused", "the plant is cleaned")
    assert await run("resume", "bus") == (0, "connector bus is connecting")
    await until(lambda: state(gateway) == ("connected", None))
    assert await run("pause", "buss") == (3, "the gateway has no connector named 'buss', did you mean 'bus'?")
    file.write_text(file.read_text().replace(TOKEN, "another-token-than-its"))
    assert await run("pause", "bus") == (1, "the gateway refused: this needs the admin token")
    file.write_text("gateway: {admin: null}")
    assert await run("pause", "bus") == (1, "no gateway answers on the admin address of this configuration")
    assert state(gateway) == ("connected", None)


def test_without_services_there_is_nothing_to_pause():
    assert not Gateway.from_config(parse_config("")).pause("web")
