"""A whole gateway and its cache: what it shows of it, and that it runs without."""

import asyncio
import io
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway import Context, Gateway
from gateway.cli.check import _findings
from gateway.config import parse_config
from gateway.coordination import Coordinator
from gateway.job import JobStatus
from gateway.logs import logged
from gateway.testing.harness import until
from tests.brokers.caches import RedisServer
from tests.executor.bench import bench
from tests.services import free_port

HERE = "tests.coordination.test_gateway"


async def answer(context: Context) -> str:
    return "done"


@asynccontextmanager
async def gateway(folder, cache):
    """A gateway on SQLite, how to ask its admin listener, and what it logs."""
    admin = f"127.0.0.1:{free_port()}"
    document = {
        "gateway": {"name": "cached", "admin": {"listen": admin}},
        "database": {"url": f"sqlite:///{folder / 'gateway.db'}"},
        "cache": cache,
        "handlers": {"answer": f"{HERE}:answer"},
    }
    log = io.StringIO()
    config = parse_config(json.dumps(document))

    async def fetch(route):
        async with aiohttp.ClientSession() as session, session.get(f"http://{admin}{route}") as response:
            return await response.text()

    with logged(log, secrets=config.secrets()):
        async with Gateway.from_config(config) as made:
            yield made, fetch, log


async def completed(made, job):
    async with asyncio.timeout(15):
        while (await made.status(job)).status is not JobStatus.COMPLETED:  # noqa: ASYNC110 - a row has no event
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def guarded():
    server = RedisServer(login=True).start()
    yield server
    server.remove()


@pytest.mark.parametrize(
    ("cache", "reason"),
    [
        ({"url": "redis://127.0.0.1:1"}, "Connect call failed"),
        ({"url": "memcached://127.0.0.1:1"}, "refused"),
        ({"url": "redis://127.0.0.1:{port}", "password": "geheim"}, "invalid username-password pair"),
        ({"url": "redis://:geheim@127.0.0.1:{port}"}, "invalid username-password pair"),
        ({"url": "redis://127.0.0.1:{port}"}, "Authentication required"),
        ({"url": "rediss://127.0.0.1:{port}"}, ""),
        ({"url": "rediss://127.0.0.1:1", "tls": {"ca": "/absent"}}, ""),
    ],
)
async def test_with_a_cache_it_cannot_use_it_runs_and_says_so(tmp_path, guarded, cache, reason):
    cache = {**cache, "url": cache["url"].replace("{port}", str(guarded.port)), "timeout": 1}
    async with gateway(tmp_path, cache) as (made, fetch, log):
        job = await made.enqueue("answer")
        await completed(made, job)
        await until(lambda: made.facts["cache"]["state"] == "unavailable")
        shown = json.loads(await fetch("/health"))
        assert shown["ready"]
        assert reason in shown["cache"]["reason"]
        assert "gateway_cache_up 0.0" in (metrics := await fetch("/metrics"))
        assert "gateway_cache_failures_total" in metrics
        status = json.loads(await fetch(f"/api/jobs/{job}/status"))
        assert (status["status"], status["source"]) == ("completed", "database")
        assert await made.cached_status(job) is None
    (told,) = [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "cache.state"]
    assert (told["level"], told["state"]) == ("warning", "unavailable")
    assert "geheim" not in log.getvalue() + json.dumps(shown) + metrics


async def test_a_status_comes_from_the_cache_once_it_is_there(tmp_path, server):
    async with gateway(tmp_path, {"url": server.url, "timeout": 1}) as (made, fetch, _):
        await until(lambda: made.facts["cache"]["state"] == "connected")
        job = await made.enqueue("answer")
        await completed(made, job)
        while (found := json.loads(await fetch(f"/api/jobs/{job}/status")))["source"] == "database":
            assert found["status"] == "completed"
        assert (found["id"], found["status"], found["statusid"]) == (job, "completed", 3)
        assert (await made.cached_status(job)).instance.startswith("cached/")
        assert "gateway_cache_up 1.0" in await fetch("/metrics")
        assert json.loads(await fetch("/api/jobs/unknown/status"))["error"]
    assert isinstance(found["modifiedon"], str)


async def test_without_one_the_database_answers_and_no_metric_shows(tmp_path):
    async with gateway(tmp_path, None) as (made, fetch, _):
        job = await made.enqueue("answer")
        await completed(made, job)
        assert json.loads(await fetch(f"/api/jobs/{job}/status"))["source"] == "database"
        assert "gateway_cache" not in (await fetch("/metrics")).replace("gateway_cache_failures", "")
        assert json.loads(await fetch("/health"))["cache"] == {"type": "none", "state": "none", "reason": None}


async def test_check_asks_the_cache(tmp_path, server):
    for url, state, text in ((server.url, "ok", "connected"), ("redis://:geheim@127.0.0.1:1", "failed", "redis at")):
        document = {"database": {"url": f"sqlite:///{tmp_path / 'no.db'}"}, "cache": {"url": url}}
        config = parse_config(json.dumps(document))
        (found,) = [finding for finding in await _findings(config, offline=False) if finding.part == "cache"]
        assert (found.state, found.text[: len(text)]) == (state, text)
        assert "geheim" not in found.text
        (found,) = [finding for finding in await _findings(config, offline=True) if finding.part == "cache"]
        assert found.state == "ok"


class Metronome(Coordinator):
    """Notes who asked for a turn, and gives it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, float]] = []

    async def pace(self, name: str, rate: float) -> float:
        self.asked.append((name, rate))
        return 0.0


async def test_handlers_wait_for_their_turns_where_they_say_so(tmp_path):
    metronome = Metronome()
    async with bench(f"sqlite:///{tmp_path / 'gateway.db'}") as b:

        async def call(context):
            await context.smooth("erp", rate=5)

        def plain(context):
            context.smooth("crm", 0.5)

        async def nonsense(context):
            await context.smooth("erp", rate=0)

        for function, status in (
            (call, JobStatus.COMPLETED),
            (plain, JobStatus.COMPLETED),
            (nonsense, JobStatus.FAILED),
        ):
            assert (await b.run(function, executor={"coordinator": metronome})).status is status
    assert metronome.asked == [("erp", 5), ("crm", 0.5)]
