"""The processes that share a database see each other as they are."""

from gateway.job import PUBLISH, NewJob
from gateway.store import Orphaned, Report, Store
from gateway.testing.store.harness import Database, Suite, jobs, until


class Instances(Suite):
    """Who is there, who lives, and what none of them would run."""

    async def test_instances_are_seen_alive(self, database: Database, store: Store) -> None:
        others = [await database.open()] if self.shared else []

        rows = await store.instances()

        assert {row.id for row in rows} == {store.incarnation, *(other.incarnation for other in others)}
        assert all(row.name == "test" and 0 <= row.age < 10 and row.alive for row in rows)

    async def test_what_no_living_instance_would_run_is_counted(self, database: Database, store: Store) -> None:
        other = await database.open() if self.shared else None
        await store.enqueue([*jobs(2, "mine"), *jobs(3, "other's"), *jobs(4, "nobody's")])
        await store.enqueue([NewJob(handler=PUBLISH, metadata={"connector": name}) for name in ("here", "gone")])
        store.tell(Report(running=1, workers=2, connectors={"here": {"state": "failed"}}, handlers=["mine", PUBLISH]))
        if other is not None:
            assert (await store.statistics()).orphaned.handlers == {}, "one has not told yet what it knows"
            other.tell(Report(running=0, workers=2, connectors={}, handlers=["other's", PUBLISH]))

        async def told() -> bool:
            return all(row.handlers is not None for row in await store.instances())

        await until(told)
        nobodys = {"nobody's": 4} if self.shared else {"other's": 3, "nobody's": 4}
        orphaned = (await store.statistics()).orphaned
        assert orphaned == Orphaned(living=1 + self.shared, handlers=nobodys, connectors={"gone": 1})
        [row] = [row for row in await store.instances() if row.id == store.incarnation]
        assert (row.running, row.workers, row.connectors) == (1, 2, {"here": {"state": "failed"}})
        assert row.report_age is not None
        assert 0 <= row.report_age < 10

    async def test_an_instance_is_dead_once_its_jobs_would_be_rescued(self, database: Database, store: Store) -> None:
        await store.enqueue(jobs(1, "theirs"))
        columns = "id, name, version, host, pid, startedat, heartbeatat, sessionlock, handlers"
        for name, locks, beat in (("cut", False, 2001), ("killed", True, 2999), ("lockless", False, 2999)):
            await database.sql(
                f"INSERT INTO gateway_instances ({columns})"  # noqa: S608 - the test's own
                f" VALUES (:id, 'x', '1', 'h', 1, :started, :beat, {str(locks).upper()}, '[\"theirs\"]')",
                id=name,
                started=await self.moment(database, "2001-01-01 00:00:00"),
                beat=await self.moment(database, f"{beat}-01-01 00:00:00"),
            )
        store.tell(Report(running=0, workers=2, connectors={}, handlers=[]))

        async def told() -> bool:
            return any(row.handlers == [] for row in await store.instances())

        await until(told)
        alive = {row.id for row in await store.instances() if row.alive}
        assert alive == ({store.incarnation, "lockless"} if self.shared else {store.incarnation})
        assert (await store.statistics()).orphaned.handlers == ({} if self.shared else {"theirs": 1})

    async def test_those_that_run_are_told_from_those_that_are_gone(self, database: Database, store: Store) -> None:
        old = await self.moment(database, "2001-01-01 00:00:00")
        await database.sql(
            "INSERT INTO gateway_instances (id, name, version, host, pid, sessionlock, startedat)"
            " VALUES ('dead', 'x', '1', 'h', 1, TRUE, :old)",
            old=old,
        )
        late = "" if self.locks else " WHERE id = 'dead'"
        await database.sql(f"UPDATE gateway_instances SET heartbeatat = :old{late}", old=old)  # noqa: S608 - as above
        watcher = await database.open(present=False)

        assert [row.id for row in await watcher.running()] == [store.incarnation]
        await store.close()
        assert list(await watcher.running()) == []
