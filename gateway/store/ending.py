"""How attempts end: many in one shared transaction, or one in the handler's own."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.crashpoint import reach
from gateway.errors import CommitUnknown, LeaseLost, StoreError, StoreUnavailable
from gateway.store import transaction
from gateway.store.dialect import Dialect
from gateway.store.driver import Driver
from gateway.store.finish import finish_jobs, read_back
from gateway.store.script import Script
from gateway.store.transaction import JobSession
from gateway.store.values import Finish

ROUNDS = 4
"""How often a group is tried whose commit was lost, or which some lost jobs spoilt."""


class JobTransaction:
    """A handler's transaction; it opens at its first use. For one task at a time, but for `rollback`."""

    def __init__(
        self, inner: transaction.JobTransaction, dialect: Dialect, finished: Callable[[Sequence[Finish]], None]
    ) -> None:
        self._inner, self._dialect, self._finished = inner, dialect, finished

    @property
    def opened(self) -> bool:
        """Whether the handler has used it."""
        return self._inner.opened

    @property
    def outage(self) -> StoreError | None:
        """Set if the database went away underneath: the handler's failure is then no fault of its own."""
        return self._inner.outage

    @property
    def session(self) -> JobSession:
        """The one session of this transaction."""
        return self._inner.session

    async def connection(self) -> AsyncConnection:
        """Return the connection that `session` uses. Raises `StoreUnavailable`."""
        return await self._inner.connection()

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo alone what fails inside."""
        async with self._inner.savepoint():
            yield

    async def finish(self, finish: Finish) -> None:
        """Commit the handler's writes together with how its attempt ended, or raise and keep nothing of both.

        A lost COMMIT is read back. Raises `LeaseLost`, `TransactionPoisoned`, `TransactionRefused`, `DataRefused`,
        `StoreUnavailable`, the errors of deferred writes, and `CommitUnknown` if the database could not be asked.
        """

        def resolve() -> Script[bool]:
            return (yield from read_back(self._dialect, [finish])).of(finish) is True

        reach("own.start")
        await self._inner.finish(lambda: finish_jobs(self._dialect, [finish]), resolve=resolve)
        reach("own.committed")
        self._finished([finish])

    async def rollback(self) -> None:
        """Roll back and give the connection back. Idempotent, bounded."""
        await self._inner.rollback()


async def finish_all(driver: Driver, finishes: Sequence[Finish]) -> list[Exception | None]:
    """Finish attempts in one transaction, or in as few as it takes to find what fails.

    Per item None or why nothing of it was written; `StoreUnavailable` where that could not be decided. Safe to
    repeat with the same values: what was committed before counts as written.
    """
    results: dict[str, Exception | None] = {}
    parts = [(list(finishes), ROUNDS)]
    while parts:
        part, rounds = parts.pop()
        try:
            await driver.run(lambda part=part: finish_jobs(driver.dialect, part))  # type: ignore[misc]
        except (CommitUnknown, LeaseLost) as error:
            again = await _decided(driver, part, error, results)
            if again and rounds:
                parts.append((again, rounds - 1))
            results.update((finish.history_id, _undecided(error)) for finish in again if not rounds)
        except StoreUnavailable as error:
            results.update((finish.history_id, error) for finish in part)
        except StoreError as error:
            if len(part) == 1:
                again = await _decided(driver, part, error, results)
                results.update((finish.history_id, error) for finish in again)
            else:
                middle = len(part) // 2
                parts += [(part[middle:], rounds), (part[:middle], rounds)]
        else:
            results.update((finish.history_id, None) for finish in part)
    return [results[finish.history_id] for finish in finishes]


async def _decided(
    driver: Driver, part: list[Finish], error: StoreError, results: dict[str, Exception | None]
) -> list[Finish]:
    """Note what is known of each; return those that are still held and not written, to be tried again."""
    again = []
    try:
        verdicts = await driver.run(lambda: read_back(driver.dialect, part), retry=True)
    except StoreError:
        results.update((finish.history_id, _undecided(error)) for finish in part)
        return []
    for finish in part:
        verdict = verdicts.of(finish)
        if verdict is False:
            again.append(finish)
        else:
            results[finish.history_id] = None if verdict is True else verdict
    return again


def _undecided(error: StoreError) -> StoreUnavailable:
    unavailable = StoreUnavailable(f"it is not known yet whether this was written: {error}")
    unavailable.__cause__ = error
    return unavailable
