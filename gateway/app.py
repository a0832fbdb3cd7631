"""The gateway as a whole: built from a configuration, run by the command line or inside another program."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, Self, Unpack

from sqlalchemy.engine import make_url

from gateway.admin import Admin, ConnectorView, Metrics
from gateway.config import Config, load_config
from gateway.coordination import Coordinator, Remembered, Wakeup, coordinator_for, remembering
from gateway.coordination.loop import back_off
from gateway.effects import Effects, EnqueueOptions
from gateway.errors import GatewayError, StoreUnavailable
from gateway.job import PUBLISH, JobHistory, JobType, NewJob, QueueJob
from gateway.lifecycle import Services, load_handlers, max_retries
from gateway.store import Statistics, Store
from gateway.store.migrate import migrate
from gateway.store.within import Caller
from gateway.telemetry import emit

LAST_SECONDS = 5.0
"""After the grace: what a stop may still take before the process is ended by force."""


class Stop(Protocol):
    """A wish to stop."""

    @property
    def requested(self) -> bool:
        """Whether it was expressed."""

    async def wait(self) -> None:
        """Return when it is."""


class Gateway:
    """A running gateway. Use it as `async with gateway:`, which waits until the database can be reached.

    On exit it stops in order: nothing more is taken in, running jobs finish within the configured grace or are
    given back without using an attempt.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._handlers = load_handlers(config)
        self._wake = Wakeup()
        self._coordinator = Coordinator()
        self._store: Store | None = None
        self._services: Services | None = None
        self._open = AsyncExitStack()
        self._began = 0.0
        self._stopping = False

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Build a gateway. Raises `ConfigError` for handlers that the configuration names and that do not exist."""
        return cls(config)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Build a gateway from a YAML file. Raises `ConfigError` with all mistakes in it."""
        return cls(load_config(Path(path), imports=True))

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop(0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop(self._config.gateway.grace)

    async def serve(self, stop: Stop) -> None:
        """Run until `stop`, then stop in order.

        A handler that cannot be stopped does not hold it up: once everything else is in order, and soon after the
        grace at the latest, the process is ended by force. So this is for programs that do nothing else. Raises
        what keeps the gateway from starting, such as `MigrationError`.
        """
        force = _Force(stop, self._config.gateway.grace + LAST_SECONDS)
        stopping = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self._stop(self._config.gateway.grace)
            await force.in_order()

    async def enqueue(
        self,
        handler: str,
        payload: Any = None,
        *,
        connection: Caller | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> str:
        """Add a job and return its id. With `connection` it becomes part of the caller's own transaction.

        Options and errors are those of `Context.enqueue`.
        """
        return (await self.enqueue_many(handler, [payload], connection=connection, **options))[0]

    async def enqueue_many(
        self,
        handler: str,
        payloads: Iterable[Any],
        *,
        connection: Caller | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> list[str]:
        """Add one job per payload, all in one transaction or none; return their ids in order."""
        jobs = [self._new_job(handler, payload, options) for payload in payloads]
        await self.store.enqueue(jobs, connection)
        return [job.id for job in jobs]

    async def status(self, job_id: str) -> QueueJob | None:
        """Return a job's row as it is now, None if there is none."""
        return await self.store.get(job_id)

    async def cached_status(self, job_id: str) -> Remembered | None:
        """Return a job's status as the cache has it, for those who ask often; None: ask `status` instead.

        It may be up to ten seconds old, but for Completed, which is final. Only what has begun is remembered.
        """
        return await self._coordinator.recall(job_id)

    async def history(self, job_id: str) -> list[JobHistory]:
        """Return the attempts of a job that came to an end, in order."""
        return await self.store.history(job_id)

    async def statistics(self) -> Statistics:
        """Return counts of the active jobs."""
        return await self.store.statistics()

    async def cancel(self, job_id: str, reason: str = "cancelled by the application") -> QueueJob | None:
        """Cancel a job unless it has ended; a running attempt cannot commit then.

        Returns the row as it is now, None if there is none.
        """
        return await self.store.cancel(job_id, reason)

    async def retry(self, job_id: str) -> QueueJob | None:
        """Give a Failed or Cancelled job one more attempt. Returns the row as it is now, None if there is none."""
        return await self.store.retry(job_id)

    def pause(self, connector: str, reason: str = "paused by the application") -> bool:
        """Take nothing in and send nothing out through a connector of this process, until `resume` or a restart.

        What it holds unacknowledged stays at its source; what is published waits in the database. False: there is no
        connector of that name.
        """
        return self._services is not None and self._services.pause(connector, reason)

    def resume(self, connector: str) -> bool:
        """Connect a paused connector again; False: there is none of that name."""
        return self._services is not None and self._services.resume(connector)

    # -- what the admin listener is shown ------------------------------------------------------------------------

    @property
    def instance(self) -> str:
        """Name of this instance."""
        return self._config.gateway.name

    @property
    def version(self) -> str:
        """Version of this program."""
        return version("ingestion-gateway")

    @property
    def store(self) -> Store:
        """The open store. Raises `StoreUnavailable` while the database was not reached yet."""
        if self._store is None:
            raise StoreUnavailable("the gateway is not connected to its database")
        return self._store

    @property
    def handlers(self) -> Collection[str]:
        """Names of the handlers this process knows, the outbox's included."""
        return {*self._handlers, PUBLISH}

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return 0 if self._services is None else self._services.executor.running

    @property
    def late(self) -> Mapping[str, float]:
        """The loops that have not turned within their limit, and for how many seconds."""
        if self._services is None:
            return {}
        now = asyncio.get_running_loop().time()
        limit = max(30.0, 3 * self._config.database.statement_timeout)
        silent = {name: now - max(beat, self._began) for name, beat in self._services.clocks.items()}
        return {name: seconds for name, seconds in silent.items() if seconds > limit}

    @property
    def unready(self) -> Mapping[str, str]:
        """The parts, apart from the database, that cannot take messages now, and why."""
        if self._stopping:
            return {"gateway": "stopping"}
        if self._services is None:
            return {"gateway": "starting"}
        waiting = self._services.inbox.waiting
        closed = {
            f"connector {view.name}": view.reason or view.state
            for view in self._services.connectors
            if view.listens and view.state != "connected"
        }
        return closed if waiting is None else {"inbox": waiting, **closed}

    @property
    def connectors(self) -> Sequence[ConnectorView]:
        """All configured connectors."""
        return [] if self._services is None else self._services.connectors

    @property
    def facts(self) -> Mapping[str, Any]:
        """What else `/health` shows."""
        jobs = self._config.jobs
        cache = self._coordinator.state
        return {
            "cache": {"type": self._coordinator.type, "state": cache.state, "reason": cache.reason},
            "jobs": {"enabled": jobs.enabled, "workers": jobs.workers, "handlers": sorted(self._handlers)},
        }

    # -- start and stop ------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self._stopping = False
        await self._serve_admin()
        self._store = store = await self._open_store()
        self._open.push_async_callback(store.close)
        for reason in await store.durability():
            emit("store.weak", reason=reason)
        await self._coordinate(store)
        store.on_ready = self._wake_lanes
        store.listen(self._wake.set_all)
        self._services = Services(self._config, store, self._handlers, self._wake, self._coordinator)
        self._services.start()
        emit("gateway.started", instance=store.incarnation, version=self.version)

    def _wake_lanes(self, lanes: set[str]) -> None:
        for lane in lanes:
            self._wake.set(lane)
        self._coordinator.wake()

    async def _coordinate(self, store: Store) -> None:
        """Begin to exchange hints with the other instances, if a cache is configured; never wait for it."""
        if self._config.cache is None:
            return
        self._coordinator = coordinator_for(self._config.cache)
        self._coordinator.start(await self._shared_secret(store), store.incarnation, self._wake.set_all)
        self._open.push_async_callback(self._coordinator.close)
        self._open.enter_context(remembering(self._coordinator))

    async def _shared_secret(self, store: Store) -> str:
        failures = 0
        while True:
            try:
                return await store.shared_secret("cache")
            except StoreUnavailable as error:
                emit("gateway.waiting", error=error)
            failures += 1
            await asyncio.sleep(back_off(failures))

    async def _serve_admin(self) -> None:
        config = self._config.gateway.admin
        if config is None:
            return
        metrics = Metrics() if self._config.jobs.enable_metrics else None
        if metrics is not None:
            self._open.enter_context(metrics.counting())
        token = None if config.token is None else config.token.get_secret_value()
        admin = Admin(self, (config.host, config.port), token=token, metrics=metrics)
        try:
            await self._open.enter_async_context(admin)
        except OSError as error:
            raise GatewayError(f"the admin listener cannot use {config.listen}: {error.strerror}") from error

    async def _open_store(self) -> Store:
        database, failures = self._config.database, 0
        url = database.url.get_secret_value()
        while True:
            try:
                if make_url(url).get_backend_name() == "sqlite":
                    await migrate(url)
                return await Store.open(
                    url,
                    instance=self._config.gateway.name,
                    lease=self._config.jobs.lease,
                    statement_timeout=database.statement_timeout,
                    pool_size=database.pool_size,
                )
            except StoreUnavailable as error:
                emit("gateway.waiting", error=error)
            failures += 1
            await asyncio.sleep(back_off(failures))

    async def _stop(self, grace: float) -> None:
        if self._services is not None and not self._stopping:
            self._stopping = True
            emit("gateway.stopping", grace=grace)
            released, abandoned = await self._services.stop(grace)
            emit("gateway.stopped", released=released, abandoned=abandoned)
        self._stopping = True
        await self._open.aclose()
        self._services = self._store = None

    def _new_job(self, handler: str, payload: Any, options: EnqueueOptions) -> NewJob:
        """Return a job made by the same rules as a handler's `enqueue`, but nobody's child."""
        retries = partial(max_retries, self._handlers, self._config.jobs.max_retries)
        effects = Effects(QueueJob(id="", sequence=0), max_retries=retries)
        effects.enqueue(handler, payload, options)
        return replace(effects.outgoing[0], parent_id=None, type=JobType.MANUAL, created_by=self.instance)


class _Force:
    """A thread that ends the process `seconds` after the wish to stop, whatever the event loop is doing."""

    def __init__(self, stop: Stop, seconds: float) -> None:
        self._stop = stop
        self._seconds = seconds
        self._tasks = asyncio.all_tasks()
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="hard stop", daemon=True).start()

    async def in_order(self) -> None:
        """Say that all is stopped and written; what ignores that would keep the process from its end, so end it."""
        self._over.set()
        threads = asyncio.create_task(asyncio.get_running_loop().shutdown_default_executor())
        await asyncio.wait({threads}, timeout=1.0)
        if asyncio.all_tasks() - self._tasks:
            _leave(0)

    def _watch(self) -> None:
        while not self._stop.requested:
            if self._over.wait(0.25):
                return
        if not self._over.wait(self._seconds):
            _leave(1)


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
