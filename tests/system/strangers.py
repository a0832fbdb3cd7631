"""The outside world: clients and producers that repeat until they are answered, and a receiver that remembers."""

import asyncio
import json
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.services import free_port
from tests.system.brokers import Broker, Unconfirmed
from tests.system.database import Database
from tests.system.ledger import Ledger, read
from tests.system.waiting import until


class Client:
    """Posts messages, each under a key of its own, and repeats a message until it is accepted.

    `accepted` maps each key to the job id of the answer; an answer that differs from an earlier one is a failure.
    `patience` is how many seconds it waits for an answer.
    """

    def __init__(self, base: str, *, patience: float = 20) -> None:
        self.base = base
        self.accepted: dict[str, str] = {}
        self.repeated = 0
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=patience))

    async def post(self, path: str, body: dict[str, Any] | None = None) -> str:
        """Return the job's id once the message was accepted, however often that takes."""
        key = secrets.token_hex(8)
        data = json.dumps({"key": key, **(body or {})})
        while True:
            answer = await self._once(path, key, data)
            if answer is not None:
                assert self.accepted.setdefault(key, answer) == answer, f"{key} got two jobs"
                return answer
            self.repeated += 1
            await asyncio.sleep(0.1)

    async def _once(self, path: str, key: str, data: str) -> str | None:
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        try:
            async with self._session.post(self.base + path, data=data, headers=headers) as response:
                if response.status == 503:
                    return None
                assert response.status == 202, f"{response.status}: {await response.text()}"
                return str((await response.json())["job_id"])
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def flood(
        self, messages: Iterable[tuple[str, dict[str, Any]]], *, clients: int = 16, pause: float = 0.02
    ) -> None:
        """Post all of them (path, body), `clients` at a time, each waiting `pause` seconds between two messages."""
        waiting = iter(messages)

        async def one() -> None:
            for path, body in waiting:
                await self.post(path, body)
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()


class Receiver:
    """An HTTP server that the gateway publishes to. `received` are the message ids, repeats included.

    Every `refuse_every`-th request is answered with 503, after the message was noted: the sender must repeat it.
    """

    def __init__(self, *, refuse_every: int = 0) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[str] = []
        self.bodies: list[Any] = []
        self._refuse_every = refuse_every

    async def _receive(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.received.append(request.headers["Idempotency-Key"])
        if self._refuse_every and len(self.received) % self._refuse_every == 0:
            return web.Response(status=503)
        return web.Response(status=204)

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/{path:.*}", self._receive)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()


class Load:
    """An endless stream of messages of several kinds, until `stop`."""

    def __init__(self, *messages: tuple[str, dict[str, Any]]) -> None:
        self._messages = messages
        self._on = True

    def stop(self) -> None:
        self._on = False

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        count = 0
        while self._on:
            yield self._messages[count % len(self._messages)]
            count += 1


class Producer:
    """Sends numbered messages to a broker, one after the other, each again until it is confirmed.

    `kinds` are topics and bodies, taken in turn. Each transmission has a key of its own: one without confirmation may
    have arrived or not, but the same key must never make two jobs.
    """

    def __init__(self, broker: Broker, *kinds: tuple[str, dict[str, Any]]) -> None:
        self.broker = broker
        self.confirmed: list[str] = []
        self.unconfirmed = 0
        self._kinds = kinds

    async def send(self, count: int) -> None:
        for _ in range(count):
            await self._one()

    async def flow(self, over: asyncio.Event, *, least: int, pause: float) -> None:
        """Send until it is over, and `least` messages at least, waiting `pause` seconds between two until then."""
        while not over.is_set() or len(self.confirmed) < least:
            await self._one()
            await asyncio.sleep(0 if over.is_set() else pause)

    async def _one(self) -> None:
        number = len(self.confirmed)
        topic, body = self._kinds[number % len(self._kinds)]
        while True:
            key = f"{number} {secrets.token_hex(4)}"
            try:
                message = json.dumps({"key": key, "number": number, **body}).encode()
                await self.broker.transmit(topic, message, body.get("group"))
            except Unconfirmed:
                self.unconfirmed += 1
                await asyncio.sleep(0.1)
            else:
                self.confirmed.append(key)
                return

    async def all_there(self, database: Database, within: float = 60) -> None:
        """Wait until each confirmed message is a job that has ended."""
        await all_there(database, [self], within)

    async def ledger(self, database: Database) -> Ledger:
        """Read what became of the messages, and all that the broker has got."""
        return await ledger_of(database, {"out": self})


async def all_there(database: Database, producers: Collection[Producer], within: float = 60) -> None:
    """Wait until each confirmed message of these alone is a job that has ended."""
    arrived = "SELECT count(*) FROM queue_jobs WHERE direction = 'inbound'"
    confirmed = sum(len(producer.confirmed) for producer in producers)

    async def all_arrived() -> bool:
        return int(await database.value(arrived)) >= confirmed

    try:
        await until(all_arrived, within=within, what="as many jobs as messages", every=0.1)
    except AssertionError as error:
        raise AssertionError(f"{error}: {await database.value(arrived)} of {confirmed}") from None
    await database.rest()


async def ledger_of(database: Database, producers: Mapping[str, Producer]) -> Ledger:
    """Read what became of the messages of these alone, by the connector that sends to each one's broker."""
    rows = await database.rows("SELECT id, payload, handler, metadata FROM queue_jobs")
    jobs = {json.loads(row["payload"]).get("key"): str(row["id"]) for row in rows}
    sent: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["handler"] == "gateway.publish":
            metadata = row["metadata"]  # PostgreSQL's driver reads JSON by itself
            metadata = metadata if isinstance(metadata, dict) else json.loads(metadata)
            sent[metadata["connector"]].add(str(row["id"]))
    for connector, ids in sent.items():
        await producers[connector].broker.until_received(ids)
    return await read(
        database,
        {key: jobs.get(key, "nowhere") for producer in producers.values() for key in producer.confirmed},
        received=[each.id for producer in producers.values() for each in producer.broker.received],
        children={"example.publish": 2},
    )
