"""The contract for users: what a handler is, and what it gets.

A handler is `async def f(context: Context)` or `def f(context: PlainContext)`; the second runs in a thread, never
blocks the others and uses the same names as plain calls. What it returns is the job's result (JSON or None). What
it raises fails the attempt; `Retry`, `Discard` and `Cancel` say more exactly what becomes of the job. Everything
done through the context commits together with that outcome, exactly once, or not at all.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql.base import Executable
from sqlalchemy.util import await_only

from gateway.effects import Effects, EnqueueOptions, Lock, PublishOptions
from gateway.errors import ConfigError, TransactionRefused
from gateway.job import QueueJob
from gateway.message import Message

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Commit = Literal["auto", "group"]
_LOCK_WIDTH = 255
_LONGEST = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """What `@handler(...)` says about a function; None leaves it to the configuration."""

    timeout: float | None = None
    """Seconds one attempt may take; it is cancelled then, and fails with `HandlerTimeout`."""
    max_retries: int | None = None
    """Attempts after the first, for jobs whose source does not say."""
    commit: Commit = "auto"
    """`auto` chooses per job; `group` allows the job to share its transaction with other jobs."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"a handler's timeout is more than 0 seconds, not {self.timeout!r}")
        if self.max_retries is not None and self.max_retries < 0:
            raise ValueError(f"a handler's max_retries is 0 or more, not {self.max_retries!r}")
        if self.commit not in ("auto", "group"):
            raise ValueError(f"a handler's commit is 'auto' or 'group', not {self.commit!r}")


@overload
def handler(function: F, /) -> F: ...
@overload
def handler(
    *, timeout: float | None = None, max_retries: int | None = None, commit: Commit = "auto"
) -> Callable[[F], F]: ...
def handler(
    function: F | None = None,
    /,
    *,
    timeout: float | None = None,
    max_retries: int | None = None,
    commit: Commit = "auto",
) -> F | Callable[[F], F]:
    """Attach options to a handler. The function itself comes back, so it can still be called and tested as it is.

    Optional: a function without it is a handler too. Raises `ValueError` where a value makes no sense.
    """
    options = HandlerOptions(timeout=timeout, max_retries=max_retries, commit=commit)

    def attach(target: F) -> F:
        target.__gateway_handler__ = options  # type: ignore[attr-defined]
        return target

    return attach if function is None else attach(function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A handler under the name that jobs know it by."""

    name: str
    function: Callable[[Any], Any]
    options: HandlerOptions = HandlerOptions()
    plain: bool = False
    """Whether it is a plain `def`, which runs in a thread and gets a `PlainContext`."""

    @classmethod
    def of(cls, name: str, target: object) -> "Handler":
        """Return `target` as the handler `name`. Raises `ConfigError` if it cannot be one, saying why."""
        if isinstance(target, Handler):
            return replace(target, name=name)
        if not callable(target) or isinstance(target, type):
            raise ConfigError([f"handler {name!r} is no function but {target!r}"])
        called = target if inspect.isroutine(target) or _is_partial(target) else type(target).__call__
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise ConfigError([f"handler {name!r} is a generator; a handler returns, it does not yield"])
        try:
            inspect.signature(target).bind(None)
        except TypeError as error:
            raise ConfigError([f"handler {name!r} must take the context as its only argument: {error}"]) from error
        options = getattr(target, "__gateway_handler__", HandlerOptions())
        return cls(name=name, function=target, options=options, plain=not inspect.iscoroutinefunction(called))


def _is_partial(target: object) -> bool:
    return hasattr(target, "func") and hasattr(target, "keywords")


class Transaction(Protocol):
    """The job's transaction as a handler sees it: it opens at its first use."""

    @property
    def opened(self) -> bool:
        """Whether it was used."""

    @property
    def session(self) -> AsyncSession:
        """The one session of this transaction."""

    async def connection(self) -> AsyncConnection:
        """Return the connection of this transaction."""

    def savepoint(self) -> AbstractAsyncContextManager[Any]:
        """Undo what is done inside, and nothing else, if it raises."""


class Maintenance(Protocol):
    """Upkeep for the gateway's own `system.*` handlers. Each call commits by itself, in small batches."""

    async def prune(self, days: int | None = None) -> int:
        """Delete what ended more than `days` days ago (None: as configured) and return how much."""

    async def retry_failed(self, *, hours: float, attempts: int) -> int:
        """Give jobs that failed in the last `hours` hours after fewer than `attempts` attempts one more."""


class Cluster(Protocol):
    """What a handler does together with those of all instances."""

    async def lock(self, name: str, job: QueueJob, *, ttl: float | None, wait: float) -> Lock:
        """Take a lock for a job's claim. Raises `LockBusy` after `wait` seconds."""

    async def smooth(self, name: str, rate: float) -> None:
        """Wait until it is this call's turn at about `rate` calls per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the gateway does for its handlers, apart from their transactions."""

    cluster: Cluster
    maintenance: Maintenance | None = None


class _Common:
    """What both contexts share."""

    __slots__ = ("_cluster", "_effects", "_message", "_transaction", "job", "maintenance")

    def __init__(self, job: QueueJob, transaction: Transaction, effects: Effects, services: Services) -> None:
        self.job = job
        self.maintenance = services.maintenance
        self._cluster = services.cluster
        self._transaction = transaction
        self._effects = effects
        self._message: Message | None = None

    @property
    def message(self) -> Message:
        """The message as it came in; its `message_id` is the job's id."""
        if self._message is None:
            self._message = self.job.message
        return self._message

    def defer(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> None:
        """Write with the outcome: `statement` (SQLAlchemy) runs when the handler has returned, and commits with it.

        The fast way: jobs that only defer share one commit, and equal statement objects become one batch. Keep
        the statement in a module's constant for that, its values in `parameters`. An error of it fails the attempt.
        """
        self._effects.defer(statement, parameters)

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Show how far the job is, 0 to 1. Never waits; written at most once a second, whatever becomes of the job."""
        self._effects.progress(fraction, note)

    async def _lock(self, name: str, ttl: float | None, wait: float) -> Lock:
        self._effects.require_open()
        if not 0 < len(name) <= _LOCK_WIDTH or (ttl is not None and not 0 < ttl <= _LONGEST):
            raise ValueError(f"a lock's name has 1 to {_LOCK_WIDTH} characters, its ttl is up to {_LONGEST:g} seconds")
        if name in self._effects.locks:
            return self._effects.locks[name]
        if self._transaction.opened:
            raise TransactionRefused(
                f"take the lock {name!r} before the session is first used: what it has read may be older than the lock"
            )
        lock = await self._cluster.lock(name, self.job, ttl=ttl, wait=wait)
        self._effects.locks[name] = lock
        return lock

    async def _smooth(self, name: str, rate: float) -> None:
        self._effects.require_open()
        if not name or not 0 < rate <= 1e6:
            raise ValueError(f"a rate has a name, and is more than 0 per second, not {rate!r}")
        await self._cluster.smooth(name, rate)


class Context(_Common):
    """What an `async def` handler gets. Everything done through it commits or rolls back with the outcome."""

    __slots__ = ()

    @property
    def session(self) -> AsyncSession:
        """A session in the job's transaction, which opens at its first statement. Never commit or roll it back.

        A database error in it fails the attempt, also when it is swallowed; only `savepoint()` survives one.
        """
        self._effects.require_open()
        return self._transaction.session

    async def connection(self) -> AsyncConnection:
        """Return the connection of the job's transaction, the one that `session` uses."""
        self._effects.require_open()
        return await self._transaction.connection()

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo the block's writes, messages and jobs, and nothing else, if it raises; the error goes on."""
        self._effects.require_open()
        with self._effects.undone_by_an_error():
            async with self._transaction.savepoint():
                yield

    async def publish(self, connector: str, *, topic: str, body: Any, **options: Unpack[PublishOptions]) -> str:
        """Send a message through `connector` once the job has committed; return its id, the stable message id.

        `body` is bytes, text, a JSON value, or None for a tombstone. With `key`, messages of one key keep their
        order. `delay` is in seconds. Raises `PayloadError` or `ValueError` at once for what could never be sent.
        """
        return self._effects.publish(connector, topic, body, options)

    async def enqueue(self, handler: str, payload: Any = None, **options: Unpack[EnqueueOptions]) -> str:
        """Add a child job for `handler` when this one commits; return its id.

        `delay` is in seconds, `at` an aware time. With `key`, jobs of that handler and key run one after the
        other. Raises `PayloadError` or `ValueError` at once for what could never run.
        """
        return self._effects.enqueue(handler, payload, options)

    @asynccontextmanager
    async def lock(self, name: str, *, ttl: float | None = None, wait: float = 10.0) -> AsyncIterator[Lock]:
        """Hold a lock that no other job of any instance holds, from here until this job's outcome has been committed.

        So the block's end does not give it back: the next holder sees all that this one wrote. It is free at once
        when the attempt fails, its process dies or its lease is lost. With `ttl` (seconds), another job may take it
        after that time; if one did, this attempt cannot commit any more and fails with `LockLost`. `lock.fence`
        grows with each holder, for good: hand it to systems that can refuse an older one. Take locks before the
        first use of `session`, else `TransactionRefused`; twice is once. Raises `LockBusy` after `wait` seconds,
        which gives the job back to the queue without using an attempt. A name keeps a row in the database for ever,
        so use a bounded set of them.
        """
        yield await self._lock(name, ttl, wait)

    async def smooth(self, name: str, rate: float) -> None:
        """Wait for this call's turn, so that calls of that name come to about `rate` per second, evenly.

        This smooths, it does not limit: counted over all instances while their cache answers, else over this
        process; and nobody waits longer than 30 seconds.
        """
        await self._smooth(name, rate)


class PlainContext(_Common):
    """What a plain `def` handler gets: the names of `Context` as plain calls, on the same transaction.

    Once the attempt has timed out or was cancelled, every later call raises `TransactionRefused`. Only the
    thread that runs the handler may use it.
    """

    __slots__ = ()

    @property
    def session(self) -> Session:
        """An ordinary session in the job's transaction; otherwise as `Context.session`."""
        self._effects.require_open()
        return self._transaction.session.sync_session

    def connection(self) -> Connection:
        """Return the connection of the job's transaction, the one that `session` uses."""
        connection = self._wait(self._transaction.connection).sync_connection
        assert connection is not None, "a connection that was opened has its plain side"
        return connection

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo the block's writes, messages and jobs, and nothing else, if it raises; the error goes on."""
        with self._effects.undone_by_an_error():
            savepoint = self._transaction.savepoint()
            self._wait(savepoint.__aenter__)
            try:
                yield
            except BaseException as error:
                raised = error
                self._wait(lambda: savepoint.__aexit__(type(raised), raised, raised.__traceback__))
                raise
            else:
                self._wait(lambda: savepoint.__aexit__(None, None, None))

    def publish(self, connector: str, *, topic: str, body: Any, **options: Unpack[PublishOptions]) -> str:
        """Send a message once the job has committed, as `Context.publish`."""
        return self._effects.publish(connector, topic, body, options)

    def enqueue(self, handler: str, payload: Any = None, **options: Unpack[EnqueueOptions]) -> str:
        """Add a child job when this one commits, as `Context.enqueue`."""
        return self._effects.enqueue(handler, payload, options)

    @contextmanager
    def lock(self, name: str, *, ttl: float | None = None, wait: float = 10.0) -> Iterator[Lock]:
        """Hold a lock until this job's outcome has been committed, as `Context.lock`."""
        yield self._wait(lambda: self._lock(name, ttl, wait))

    def smooth(self, name: str, rate: float) -> None:
        """Wait for this call's turn, as `Context.smooth`."""
        self._wait(lambda: self._smooth(name, rate))

    def _wait(self, make: Callable[[], Awaitable[T]]) -> T:
        self._effects.require_open()
        return await_only(make())
