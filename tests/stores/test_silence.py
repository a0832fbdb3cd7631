"""A process that falls silent in the middle of a transaction holds up nobody for long."""

import asyncio

import pytest

from gateway.crashpoint import armed, once
from gateway.errors import GatewayError
from gateway.job import QueueJob
from gateway.outcome import Completed
from gateway.store import Finish, Lane, Rescue, Store
from gateway.store.migrate import migrate
from gateway.store.upkeep import TRUSTED
from gateway.testing.harness import stays
from gateway.testing.store.harness import jobs, until
from tests.faults import FaultProxy
from tests.stores.test_driver import address, through


@pytest.mark.database
@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
async def test_a_commit_that_never_arrives_holds_up_no_rescue(
    server_database_url: str, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Before its COMMIT, a finish has locked the job's row, which a rescue must not wait for, and passes over."""
    for module in ("transaction", "mysql", "link", "finish"):
        monkeypatch.setattr(f"gateway.store.{module}.SILENCE", 2)
    await migrate(server_database_url)
    heir = await Store.open(server_database_url, instance="heir", lease=1.0)
    async with FaultProxy(*address(server_database_url)) as network:
        victim = await Store.open(through(server_database_url, network), instance="victim", statement_timeout=4.0)
        await heir.enqueue(jobs(1))
        (job,) = await victim.claim(Lane.RUN, 1, None)
        point = "own.before_commit" if own else "pool.before_commit"
        with armed(once(["finish.written", point], network.stall)):
            finishing = asyncio.create_task(finish(victim, job, own=own))
            rescues: list[Rescue] = []

            async def rescued() -> bool:
                rescues.append(await heir.rescue())
                return rescues[-1] == Rescue(1, 0)

            await until(rescued)
        assert rescues[0] == Rescue(0, 0)
        network.heal()
        network.reset()
        assert await finishing is not None
        (again,) = await heir.claim(Lane.RUN, 1, None)
        assert (again.id, again.attempt, again.crash_count) == (job.id, 1, 1)
        await victim.close()
        await heir.close()


@pytest.mark.database
async def test_one_whose_connections_are_reset_keeps_its_jobs(server_database_url: str) -> None:
    """It takes its session lock again before the others miss it for long."""
    await migrate(server_database_url)
    heir = await Store.open(server_database_url, instance="heir")

    async def trusted() -> bool:
        return heir.alive_for > TRUSTED

    async def left_alone() -> bool:
        return await heir.rescue() == Rescue(0, 0)

    async with FaultProxy(*address(server_database_url)) as network:
        victim = await Store.open(through(server_database_url, network), instance="victim")
        await heir.enqueue(jobs(1))
        (job,) = await victim.claim(Lane.RUN, 1, None)
        await until(trusted)
        for _ in range(2):
            network.reset()
            assert await stays(left_alone, 1.5)
        assert await victim.finish([Finish(job=job, outcome=Completed())]) == [None]
        await victim.close()
    await heir.close()


async def finish(store: Store, job: QueueJob, *, own: bool) -> Exception | None:
    """Finish a job in a transaction of its own, or in the shared one; return why that was not written."""
    done = Finish(job=job, outcome=Completed())
    if not own:
        return (await store.finish([done]))[0]
    transaction = store.transaction()
    try:
        _ = await transaction.connection()
        await transaction.finish(done)
    except GatewayError as error:
        return error
    finally:
        await transaction.rollback()
    return None
