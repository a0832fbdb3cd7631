"""The verbs on schedules."""

from collections.abc import Mapping, Sequence

from gateway.job import Schedule, new_id
from gateway.store import schedules, ticks
from gateway.store.condition import checked
from gateway.store.signals import Signals
from gateway.store.turns import Asking, Turn, Verdict, check
from gateway.store.values import Lane, ScheduleFilter


class Timetable(Signals):
    """What people do with schedules, each change seen by the schedulers of all processes."""

    async def schedules(self, wanted: ScheduleFilter | None = None) -> Sequence[Schedule]:
        """Return one page of active schedules, in order of name."""
        chosen = wanted or ScheduleFilter()
        return await self._driver.read(lambda: schedules.find(self._dialect, chosen))

    async def schedule(self, key: str) -> Schedule | None:
        """Return the schedule of that name, else of that id; None if there is none."""
        return await self._driver.read(lambda: schedules.get(self._dialect, key))

    async def put_schedule(self, schedule: Schedule, *, replace: bool = True) -> Schedule | None:
        """Insert a schedule, or change the one of its name, which keeps its id and its counters.

        Returns it as it now is; None if the name is taken and not to be replaced. Raises `ConfigError` with every
        mistake in when it is to fire, or for a condition that may do more than look.
        """
        check(schedule)
        if schedule.condition is not None:
            checked(schedule.condition, self._dialect.name)
        made = await self._run(
            "schedule", lambda: schedules.put(self._dialect, schedule, replace=replace), retry=replace
        )
        self._wake({Lane.PLAN})
        return made

    async def configure_schedules(self, wanted: Mapping[str, Schedule]) -> Sequence[str]:
        """Write the schedules of a configuration, each under a digest of its text; returns the names of the changed.

        One whose digest is the one last written is left alone, whatever people have made of it since.
        """
        if not wanted:
            return []
        written = await self._run("schedule", lambda: schedules.configure(self._dialect, wanted), retry=True)
        self._wake({Lane.PLAN})
        return written

    async def delete_schedule(self, key: str) -> bool:
        """Delete the schedule of that name or id; its jobs stay. False: there was none."""
        gone = await self._run("schedule", lambda: schedules.remove(self._dialect, key))
        self._wake({Lane.PLAN})
        return gone

    async def enable_schedule(self, key: str, enabled: bool, *, by: str | None = None) -> Schedule | None:
        """Enable or disable a schedule; ticks while it was disabled are not made up for. Returns it as it now is."""
        row = await self._run("schedule", lambda: schedules.enable(self._dialect, key, enabled, by), retry=True)
        self._wake({Lane.PLAN})
        return row

    async def run_schedule(self, key: str, *, by: str | None = None) -> str | None:
        """Make one job of a schedule now, of type Manual, that counts as no tick. Returns its id; None: no such."""
        job_id = new_id()
        job = await self._run("schedule", lambda: schedules.run(self._dialect, key, job_id, by), retry=True)
        if job is None:
            return None
        self._ready([job])
        return job_id

    # -- the scheduler's own -------------------------------------------------------------------------------------------

    async def next_tick(self) -> float | None:
        """Return the seconds until a schedule is due or to be planned: 0 or less if one is; None: there is none."""
        return await self._driver.read(lambda: ticks.next_wake(self._dialect))

    async def plan(self, patience: float) -> Sequence[Turn]:
        """Find the next ticks of a batch of schedules that are new or were changed; makes no jobs.

        A tick between a change and now counts, unless the change was more than `patience` seconds ago.
        """
        return (await self._run("plan", lambda: ticks.plan_changed(self._dialect, patience))).turns

    async def asking(self) -> Sequence[Asking]:
        """Return a batch of schedules that are due and whose condition has to be asked first."""
        return await self._driver.read(lambda: ticks.asking(self._dialect))

    async def fire(self, verdicts: Mapping[str, Verdict] | None = None) -> Sequence[Turn]:
        """Make the jobs of a batch of due schedules, each tick one, and move them to their next ticks.

        Without `verdicts` those without a condition; with them, by their schedules' ids, those whose conditions were
        asked. If the answer to COMMIT is lost, the next call goes on from what was committed.
        """
        if verdicts is None:
            moved = await self._run("fire", lambda: ticks.fire(self._dialect))
        else:
            moved = await self._run("fire", lambda: ticks.fire_decided(self._dialect, verdicts))
        self._ready(moved.jobs)
        return moved.turns
