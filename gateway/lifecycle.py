"""Everything that runs on an open database: built from the configuration, started and stopped in order."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from gateway import outbox, plugins
from gateway.admin import ConnectorView
from gateway.arrival import Conservation
from gateway.config import Config
from gateway.config.schedules import rows
from gateway.connector import ConnectorConfig, Inbox
from gateway.coordination import Coordinator, Wakeup
from gateway.coordination.loop import Loop, back_off
from gateway.errors import ConfigError, PluginNotFound
from gateway.executor import Executor
from gateway.handler import Handler
from gateway.inbox import InboxWriter
from gateway.janitor import Janitor, Upkeep
from gateway.job import PUBLISH
from gateway.outbox import Outbox, Publish
from gateway.outcome import RetryPolicy
from gateway.scheduler import Scheduler
from gateway.store import Report, Store
from gateway.store.condition import Conditions
from gateway.supervisor import Supervisor
from gateway.telemetry import emit

LEADS = 150.0
"""Seconds for which an instance takes the lead in what one is enough for."""
REPORT = 1.0
"""Seconds between two reports of how things are here."""
SEND_GRACE = 5.0
"""Seconds that messages on their way get for their confirmation when the gateway stops."""


def load_handlers(config: Config) -> dict[str, Handler]:
    """Return all handlers by name, imported.

    Raises `ConfigError` for each one that the configuration names and that cannot be had. Another package's broken
    handler is told as `service.error` and left out: its jobs wait for an instance that knows it.
    """
    wanted = {entry.handler for each in config.connectors.values() for entry in each.inbound} | set(config.handlers)
    wanted |= {schedule.handler for schedule in config.schedules.values()}
    found: dict[str, Handler] = {}
    mistakes: list[str] = []
    known = plugins.installed(plugins.HANDLERS)
    for name in {*plugins.handler_names(config.handlers), *wanted}:
        try:
            found[name] = Handler.of(name, plugins.handler(name, config.handlers, known=known))
        except (PluginNotFound, ConfigError) as error:
            if name in wanted:
                mistakes.append(str(error))
            else:
                emit("service.error", service=f"handler {name}", error=error)
    if mistakes:
        raise ConfigError(sorted(mistakes))
    return found


def max_retries(handlers: Mapping[str, Handler], default: int, name: str) -> int:
    """Return how many attempts after the first a handler's jobs get where nobody says."""
    known = handlers.get(name)
    wish = None if known is None else known.options.max_retries
    return default if wish is None else wish


def timeout(handlers: Mapping[str, Handler], default: float, name: str) -> float:
    """Return how many seconds a handler's jobs may take where nobody says."""
    known = handlers.get(name)
    wish = None if known is None else known.options.timeout
    return default if wish is None else wish


class Services:
    """The services of one process. `start` once, then `stop` once."""

    def __init__(
        self,
        config: Config,
        store: Store,
        handlers: Mapping[str, Handler],
        wake: Wakeup,
        coordinator: Coordinator,
    ) -> None:
        jobs = config.jobs
        self._wake = wake
        self._store = store
        self._workers = jobs.workers
        self._handlers = sorted({*handlers, PUBLISH})
        self._report = Loop("report", self._tell)
        self._tasks: list[asyncio.Task[None]] = []
        self._connectors: dict[str, asyncio.Task[None]] = {}
        self._configs = config.connectors
        policy = RetryPolicy(delay=jobs.retry_delay, max_delay=jobs.retry_max_delay)
        upkeep = Upkeep(store, jobs.job_history_retention_days)
        self.inbox = InboxWriter(store, max_retries=partial(max_retries, handlers, jobs.max_retries))
        self.supervisors = {name: self._supervisor(name, each) for name, each in config.connectors.items()}
        self.outbox = Outbox(store, self._publishers, wake=wake, policy=policy, poll_interval=jobs.poll_interval)
        self.executor = Executor(
            store,
            handlers.get,
            handlers.keys(),
            wake=wake,
            workers=jobs.workers,
            poll_interval=jobs.poll_interval,
            policy=policy,
            timeout=jobs.timeout,
            max_retries=jobs.max_retries,
            maintenance=upkeep,
            instance=config.gateway.name,
            coordinator=coordinator,
        )
        self.janitor = Janitor(
            store,
            held=lambda: {*self.executor.held, *self.outbox.held},
            wake=wake,
            retention_days=jobs.job_history_retention_days,
            eager=partial(coordinator.leads, "janitor", LEADS),
        )
        asked = config.database.read_only_url or config.database.url
        self._conditions = Conditions(asked.get_secret_value(), seconds=config.database.statement_timeout)
        self.scheduler = Scheduler(
            store,
            wake=wake,
            ask=self._conditions.ask,
            interval=jobs.scheduler_check_interval,
            configured=rows(
                config.schedules,
                partial(max_retries, handlers, jobs.max_retries),
                partial(timeout, handlers, jobs.timeout),
            ),
        )
        self._runs_jobs = jobs.enabled

    def start(self) -> None:
        """Start everything, what receives last."""
        if self._runs_jobs:
            self._keep("executor", self.executor.run)
            self._keep("outbox", self.outbox.run)
        self._keep("janitor", self.janitor.run)
        self._keep("scheduler", self.scheduler.run)
        self._keep("report", self._report.run)
        for name, supervisor in self.supervisors.items():
            self._connectors[name] = asyncio.create_task(_forever(name, supervisor.run), name=f"supervisor {name}")

    async def stop(self, grace: float) -> tuple[int, int]:
        """Stop intake at once and let running jobs finish within `grace` seconds.

        Returns how many jobs were given back without using an attempt, and how many handlers ignored it.
        """
        self.inbox.stop()
        sending = asyncio.create_task(self._stop_connectors(min(grace, SEND_GRACE)))
        released, abandoned = await self.executor.drain(grace) if self._runs_jobs else (0, 0)
        await sending
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._conditions.close()
        return released, abandoned

    @property
    def clocks(self) -> dict[str, float]:
        """The last sign of life of each loop, as event loop time."""
        loops = (self._report, *self.janitor.loops, *self.scheduler.loops)
        clocks = {"inbox": self.inbox.beat, **{loop.name: loop.beat for loop in loops}}
        if self._runs_jobs:
            clocks |= {"executor": self.executor.beat, "outbox": self.outbox.beat}
        return clocks | {f"connector {name}": each.beat for name, each in self.supervisors.items()}

    @property
    def connectors(self) -> Sequence[ConnectorView]:
        """All connectors as they are now."""
        counts = self.inbox.conservation
        return [
            ConnectorView(
                name=name,
                type=self._configs[name].type,
                state=each.state.value,
                reason=each.reason,
                since=each.since,
                guarantee=plugins.connector_class(self._configs[name].type).guarantee_of(self._configs[name]),
                listens=getattr(self._configs[name], "listen", None) is not None,
                counts=asdict(counts.get(name, Conservation())),
            )
            for name, each in self.supervisors.items()
        ]

    def pause(self, connector: str, reason: str) -> bool:
        """End a connector's life until it is resumed. False: there is none of that name."""
        if connector not in self.supervisors:
            return False
        self.supervisors[connector].pause(reason)
        return True

    def resume(self, connector: str) -> bool:
        """Let a paused connector live again. False: there is none of that name."""
        if connector not in self.supervisors:
            return False
        self.supervisors[connector].resume()
        return True

    async def _stop_connectors(self, grace: float) -> None:
        if self._runs_jobs:
            await self.outbox.drain(grace)
        for task in self._connectors.values():
            task.cancel()
        await asyncio.gather(*self._connectors.values(), return_exceptions=True)
        await self.inbox.close()

    async def _tell(self) -> float:
        """Report to the others."""
        states = {
            view.name: {"type": view.type, "state": view.state, "reason": view.reason} for view in self.connectors
        }
        self._store.tell(
            Report(
                running=self.executor.running,
                workers=self._workers if self._runs_jobs else 0,
                connectors=states,
                handlers=self._handlers if self._runs_jobs else [],
            )
        )
        return REPORT

    def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(_forever(name, run), name=name))

    def _publishers(self) -> Mapping[str, Publish]:
        return {name: each.publish for name, each in self.supervisors.items() if each.publish is not None}

    def _supervisor(self, name: str, config: ConnectorConfig) -> Supervisor:
        connector = plugins.connector_class(config.type)
        guarantee = connector.guarantee_of(config)
        emit("connector.configured", connector=name, type=config.type, guarantee=guarantee)
        for warning in config.warnings():
            emit("connector.warning", connector=name, warning=warning)

        def inbox_for(ready: Callable[[], None]) -> Inbox:
            def on_ready() -> None:
                ready()
                self._wake.set(outbox.LANE)

            return self.inbox.connection(name, connector.protocol, method=connector.method, on_ready=on_ready)

        make: Callable[[], Any] = partial(connector, config, name=name)
        return Supervisor(name, make, inbox_for)


async def _forever(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a service, again if it ends, which none should."""
    failures = 0
    while True:
        try:
            await run()
            raise RuntimeError("it ended by itself")
        except Exception as error:  # noqa: BLE001 - a service that ended must not take the process along
            emit("service.error", service=name, error=error)
        failures += 1
        await asyncio.sleep(back_off(failures))
