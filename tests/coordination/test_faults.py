"""Caches that are slow, lie, or do not want us: nothing is answered wrongly, and nobody waits for long."""

import asyncio
import json
import pickle
import time
from pathlib import Path

import pytest

from gateway.coordination import coordinator_for
from gateway.errors import Disconnected
from gateway.job import JobStatus
from gateway.telemetry import subscribed
from gateway.testing.coordinators import members
from gateway.testing.harness import nothing_left, until
from tests.brokers.caches import PASSWORD, MemcachedServer, RedisServer
from tests.coordination.conftest import Cache, cache

KINDS = {"redis": RedisServer, "memcached": MemcachedServer}


async def test_a_cache_that_is_held_costs_its_deadline_a_few_times_and_then_nothing(server):
    harness = Cache(server)
    async with members(harness, "secret") as (member,):
        coordinator = member.coordinator
        await until_known(coordinator, "a")
        failed = []
        with server.paused(), subscribed(lambda event, _: failed.append(event)):
            for _ in range(200):
                async with asyncio.timeout(3):
                    assert await coordinator.recall("a") is None
            assert coordinator.state.state == "unavailable"
            assert failed.count("cache.failed") < 20, "the breaker does not spare the calls after the first"
        await until(lambda: coordinator.state.state == "connected")
        await until_known(coordinator, "a")


async def test_a_caller_that_is_cancelled_leaves_no_answer_to_the_next_one(server):
    async with members(Cache(server), "secret") as (member,):
        coordinator = member.coordinator
        for n in range(10):
            await until_known(coordinator, f"{n}", JobStatus.COMPLETED if n % 2 else JobStatus.FAILED)
        for turns in range(40):
            calls = [asyncio.create_task(coordinator.recall(f"{n}")) for n in range(6)]
            for _ in range(turns % 8):
                await asyncio.sleep(0)
            for call in calls[:5]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            for n in (7, 8):
                found = await coordinator.recall(f"{n}")
                assert found is None or found.status is (JobStatus.COMPLETED if n % 2 else JobStatus.FAILED)


async def test_what_others_wrote_is_no_value(server):
    async with members(Cache(server), "secret") as (member,):
        coordinator = member.coordinator
        good, key = await sealed(coordinator, "poisoned")
        forged = json.dumps({"status": 3, "instance_id": "me", "updated_at": time.time()}).encode()
        poison = [pickle.dumps({"status": 3}), b"", b"\xff" * 3000, b"0" * 32 + forged, good[:-1], good + b" ", b"7"]
        for value in [*poison, b"x" * 100_000]:
            await coordinator._put({key: value, "gateway:leader:a": value, "gateway:pace:a": value}, 60)
            assert await coordinator.recall("poisoned") is None
            assert 0 <= await coordinator.pace("a", 1e6) <= 30
            assert await coordinator.leads("a", 5) in (True, False)
        await coordinator._put({key: good, coordinator._key("job:status", "b"): good}, 60)
        assert (await coordinator.recall("poisoned")).status is JobStatus.COMPLETED
        assert await coordinator.recall("b") is None, "the value of another key was taken"


async def test_a_status_that_may_change_counts_for_ten_seconds_by_the_value_itself(server):
    async with members(Cache(server), "secret") as (member,):
        coordinator = member.coordinator
        for status, counts in ((JobStatus.FAILED, False), (JobStatus.COMPLETED, True)):
            key = coordinator._key("job:status", status.name)
            old = {"status": int(status), "instance_id": "x", "updated_at": time.time() - 60}
            await coordinator._put({key: coordinator._sealed(key, old)}, 60)
            assert (await coordinator.recall(status.name) is not None) == counts


async def test_a_status_from_before_a_pause_is_not_told(server, monkeypatch):
    monkeypatch.setattr("gateway.coordination.remote.STALE", -1.0)
    async with members(Cache(server), "secret") as (member,):
        member.coordinator.remember("old", JobStatus.PROCESSING)
        await until(lambda: not member.coordinator._statuses)
        monkeypatch.undo()
        await until_known(member.coordinator, "new", JobStatus.PROCESSING)
        assert await member.coordinator.recall("old") is None


@pytest.mark.parametrize("kind", KINDS)
async def test_it_logs_in_and_speaks_tls(kind, certificates, tmp_path):
    server = KINDS[kind](keys=Path(certificates["ca.pem"]).parent, login=True)
    scheme = "rediss" if kind == "redis" else kind
    url, who = f"{scheme}://127.0.0.1:{server.port}", {} if kind == "redis" else {"username": "gateway"}
    own = {"ca": certificates["ca.pem"], "certificate": certificates["own.pem"], "key": certificates["own.key"]}
    tls = {"ca": certificates["ca.pem"]} if kind == "memcached" else own
    try:
        server.start()
        async with nothing_left():
            assert "connected" in await coordinator_for(cache(url, password=PASSWORD, tls=tls, **who)).check()
            for wrong in (
                {"password": "no such", "tls": tls, **who},
                {"tls": tls},
                {"password": PASSWORD, "tls": {}, **who},
                {"password": PASSWORD, "tls": {**tls, "ca": str(tmp_path / "absent")}, **who},
            ):
                with pytest.raises(Disconnected) as caught:
                    await coordinator_for(cache(url, **wrong)).check()
                assert PASSWORD not in str(caught.value)
                assert "no such" not in str(caught.value)
        coordinator = coordinator_for(cache(url, password=PASSWORD, tls=tls, timeout=1, **who))
        coordinator.start("secret", "me", lambda: None)
        try:
            await until(lambda: coordinator.state.state == "connected")
            await until_known(coordinator, "a")
        finally:
            await coordinator.close()
    finally:
        server.remove()


async def until_known(coordinator, job_id, status=JobStatus.COMPLETED):
    """Tell it until it is known: a hint may be lost."""
    async with asyncio.timeout(15):
        while (found := await coordinator.recall(job_id)) is None or found.status is not status:
            coordinator.remember(job_id, status)
            await asyncio.sleep(0.01)
    await until(lambda: not coordinator._statuses and not coordinator._calls)  # nothing more will be told


async def sealed(coordinator, job_id):
    """Return the value that lies in the cache for a job, and its key."""
    await until_known(coordinator, job_id)
    key = coordinator._key("job:status", job_id)
    return await coordinator._get(key), key
