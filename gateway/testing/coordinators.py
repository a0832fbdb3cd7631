"""What every coordinator must do, as tests: subclass `CoordinatorConformance` and give it a `harness`.

    class TestRedis(CoordinatorConformance):
        @pytest.fixture
        async def harness(self): ...

The tests are coroutines: run them with pytest-asyncio in its automatic mode.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from gateway.coordination import Coordinator, Remembered
from gateway.job import JobStatus
from gateway.testing.harness import DEADLINE, nothing_left, until

__all__ = ["CoordinatorConformance", "CoordinatorHarness", "Member", "members"]

TOGETHER = "of the instances of one database"


class CoordinatorHarness(ABC):
    """What the suite needs to know of a cache."""

    @abstractmethod
    def coordinator(self) -> Coordinator:
        """Make a coordinator of one more instance; all share the cache."""

    async def stop(self) -> None:
        """End the cache, with what it holds."""
        raise NotImplementedError("there is no cache")

    async def start(self) -> None:
        """Start it again, empty, at the same address."""
        raise NotImplementedError("there is no cache")


class Member:
    """An instance: its coordinator, and how often it was woken."""

    def __init__(self, coordinator: Coordinator, name: str, secret: str) -> None:
        self.coordinator = coordinator
        self.woken = 0
        coordinator.start(secret, name, self._wake)

    def _wake(self) -> None:
        self.woken += 1


@asynccontextmanager
async def members(harness: CoordinatorHarness, *secrets: str) -> AsyncIterator[list[Member]]:
    """Have so many instances run, each with its secret, and close them afterwards."""
    made = [Member(harness.coordinator(), f"instance {n}", secret) for n, secret in enumerate(secrets)]
    try:
        await until(lambda: all(member.coordinator.state.state in ("none", "connected") for member in made))
        yield made
    finally:
        for member in made:
            await member.coordinator.close()


class CoordinatorConformance:
    """The tests. A coordinator without a cache answers as if it were alone."""

    tells: ClassVar[bool] = True
    """Instances reach each other."""

    @pytest.fixture
    def harness(self) -> CoordinatorHarness:
        """Override: a cache, and how to reach it."""
        raise NotImplementedError("a conformance test gives its harness")

    async def test_a_wake_up_reaches_the_others_and_many_are_few(self, harness: CoordinatorHarness) -> None:
        self._needs_others()
        async with members(harness, TOGETHER, TOGETHER, TOGETHER) as (teller, *others):
            await until(lambda: all(other.woken for other in others))  # each listens
            await until(lambda: teller.woken)
            before = [other.woken for other in others]
            for _ in range(1000):
                teller.coordinator.wake()
            repeated = 0
            for other, n in zip(others, before, strict=True):
                repeated += await _woken(teller, other, n)
            assert all(other.woken - n < 10 + repeated for other, n in zip(others, before, strict=True))

    async def test_what_was_told_of_a_job_is_known_to_all_who_share_the_secret(
        self, harness: CoordinatorHarness
    ) -> None:
        ids = ["01a2", "with space", "ü" * 255, "a" * 255, "line\nbreak", "x" * 101]
        async with members(harness, TOGETHER, TOGETHER, "another") as (teller, reader, stranger):
            assert await reader.coordinator.recall("01a2") is None
            for job_id in ids:
                teller.coordinator.remember(job_id, JobStatus.PROCESSING)
                teller.coordinator.remember(job_id, JobStatus.COMPLETED)
            if not self.tells:
                return
            for job_id in ids:
                found = await _told(teller, reader, job_id)
                assert (found.status, found.instance) == (JobStatus.COMPLETED, "instance 0")
                assert await stranger.coordinator.recall(job_id) is None
            assert await reader.coordinator.recall("never told") is None

    async def test_one_leads_and_stays_so(self, harness: CoordinatorHarness) -> None:
        async with members(harness, TOGETHER, TOGETHER) as (one, two):
            assert await one.coordinator.leads("tidying", 30)
            assert await two.coordinator.leads("tidying", 30) is not self.tells
            assert await one.coordinator.leads("tidying", 30)
            assert await two.coordinator.leads("something else", 30)

    async def test_turns_come_evenly_among_all(self, harness: CoordinatorHarness) -> None:
        async with members(harness, TOGETHER, TOGETHER) as group:
            started = time.monotonic()
            turns = [await group[n % 2].coordinator.pace("calls", 10.0) for n in range(20)]
            late = time.monotonic() - started
            wanted = 1.9 if self.tells else 0.9
            assert wanted - late - 0.05 <= turns[-1] <= wanted + 0.05
            assert sorted(turns) == pytest.approx(turns, abs=0.11 + late)
            crowd = [await group[0].coordinator.pace("slow", 0.1) for _ in range(20)]
            assert max(crowd) <= 30

    async def test_a_cache_that_goes_away_is_done_without_and_used_again(self, harness: CoordinatorHarness) -> None:
        self._needs_others()
        async with members(harness, TOGETHER, TOGETHER) as (one, two):
            await until(lambda: one.woken and two.woken)
            await harness.stop()
            try:
                for _ in range(20):
                    one.coordinator.wake()
                    one.coordinator.remember("a", JobStatus.COMPLETED)
                    assert await one.coordinator.recall("a") is None
                    assert await one.coordinator.leads("x", 30)
                    assert 0 <= await one.coordinator.pace("x", 1e6) < 1
                assert one.coordinator.state.state == "unavailable"
                assert one.coordinator.state.reason
                before = two.woken
            finally:
                await harness.start()
            await until(lambda: one.coordinator.state.state == two.coordinator.state.state == "connected")
            await until(lambda: two.woken > before)  # it listens again, and may have missed something
            await _woken(one, two, two.woken)
            await _told(one, two, "a")

    async def test_nothing_is_left_however_it_is_closed(self, harness: CoordinatorHarness) -> None:
        async with nothing_left():
            for _ in range(5):
                member = Member(harness.coordinator(), "short", TOGETHER)
                member.coordinator.wake()
                member.coordinator.remember("a", JobStatus.COMPLETED)
                calls = [asyncio.create_task(member.coordinator.recall(f"{n}")) for n in range(5)]
                await asyncio.sleep(0)
                calls[0].cancel()
                await member.coordinator.close()
                await asyncio.gather(*calls, return_exceptions=True)
            unused = harness.coordinator()
            await unused.close()

    async def test_it_says_what_answers(self, harness: CoordinatorHarness) -> None:
        assert await harness.coordinator().check()

    def _needs_others(self) -> None:
        if not self.tells:
            pytest.skip("without a cache, instances meet in the database alone")


async def _told(teller: Member, reader: Member, job_id: str) -> Remembered:
    """Tell that a job is completed until the reader knows: a hint may be lost."""
    async with asyncio.timeout(DEADLINE):
        while (found := await reader.coordinator.recall(job_id)) is None or found.status is not JobStatus.COMPLETED:
            teller.coordinator.remember(job_id, JobStatus.COMPLETED)
            await asyncio.sleep(0.01)
    return found


async def _woken(teller: Member, other: Member, before: int) -> int:
    """Wake the other one until it is, as a hint may be lost; return how often that was repeated."""
    repeated = 0
    async with asyncio.timeout(DEADLINE):
        while other.woken == before:
            await asyncio.sleep(0.3)
            teller.coordinator.wake()
            repeated += 1
    return repeated
