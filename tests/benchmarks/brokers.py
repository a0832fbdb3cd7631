"""How fast messages go in and out of each connector, as a ratio to its client library's own bare loop in the same run.

In: until each is a durable job. Out: from jobs in the database until each is confirmed by the broker and finished.
The clock runs from when it is connected and subscribed.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.connector import Connector
from gateway.coordination import Wakeup
from gateway.inbox import InboxWriter
from gateway.job import PUBLISH, Direction, NewJob
from gateway.message import Message
from gateway.outbox import Outbox
from gateway.outcome import RetryPolicy
from gateway.plugins import connector_class
from gateway.store import Store
from gateway.store.migrate import migrate
from gateway.telemetry import subscribed
from tests.benchmarks import workload
from tests.benchmarks.bare import SIDES, Bare, Tally
from tests.benchmarks.databases import Fresh
from tests.benchmarks.meter import Cost, Meter
from tests.services import make

SIZES = (256, 1024)
NAME = "bench"
SECONDS = 300


async def measure(broker: str, fresh: Fresh, pid: int | None, *, count: int, rounds: int) -> dict[str, list[Cost]]:
    """Return the costs of each round: bare and gateway in turn, in and out, for each size of bodies."""
    server = make({"mqtt": "mosquitto"}.get(broker, broker)).start()
    costs: dict[str, list[Cost]] = {}
    try:
        side = SIDES[broker](server)
        for size in SIZES:
            bodies = workload.bodies(count, size)
            for number in range(rounds):
                print(f"{broker}: round {number + 1} of {rounds}, {size} B", file=sys.stderr, flush=True)
                for cost in [
                    await _bare_in(side, bodies, f"in {size} B bare"),
                    await _bare_out(side, bodies, f"out {size} B bare"),
                    *await _gateway(side, bodies, size, fresh, pid),
                ]:
                    costs.setdefault(cost.what, []).append(cost)
    finally:
        server.remove()
    return dict(sorted(costs.items(), key=lambda item: item[0].split()[0]))


async def _gateway(side: Bare, bodies: Sequence[str], size: int, fresh: Fresh, pid: int | None) -> list[Cost]:
    with fresh() as url:
        await migrate(url)
        store = await Store.open(url, instance=NAME)
        try:
            return [
                await _gateway_in(side, store, bodies, Meter(f"in {size} B gateway", len(bodies), pid)),
                await _gateway_out(side, store, bodies, Meter(f"out {size} B gateway", len(bodies), pid)),
            ]
        finally:
            await store.close()


async def _timed(meter: Meter, progress: Callable[[], int], count: int, start: Awaitable[object] | None = None) -> Cost:
    """Measure from now on, or from when `start` begins, until `progress` has reached `count`."""
    meter.count = count - progress()
    if not meter.count:
        raise ValueError("so few messages are gone before they can be measured; use a larger --count")
    async with asyncio.timeout(SECONDS):
        with meter:
            starting = None if start is None else asyncio.ensure_future(start)
            while progress() < count:  # noqa: ASYNC110 - some of these count in threads
                await asyncio.sleep(0.002)
        if starting is not None:
            await starting
    assert meter.cost is not None
    return meter.cost


async def _bare_in(side: Bare, bodies: Sequence[str], what: str) -> Cost:
    topic, tally = side.topic(), Tally()
    await side.create(topic)
    if side.session:
        async with side.consuming(topic, Tally()):
            pass
    if not side.live:
        await side.fill(topic, bodies)
    async with side.consuming(topic, tally):
        start = side.fill(topic, bodies) if side.live else None
        return await _timed(Meter(what, len(bodies), None), lambda: tally.count, len(bodies), start)


async def _bare_out(side: Bare, bodies: Sequence[str], what: str) -> Cost:
    topic, tally = side.topic(), Tally(len(bodies))
    await side.create(topic)
    async with side.publishing(topic, tally) as send:
        return await _timed(Meter(what, len(bodies), None), lambda: tally.count, len(bodies), send(bodies))


async def _gateway_in(side: Bare, store: Store, bodies: Sequence[str], meter: Meter) -> Cost:
    topic, writer = side.topic(), InboxWriter(store)
    await side.create(topic)
    if side.session:
        async with _living(side.settings(topic), writer):
            pass
    if not side.live:
        await side.fill(topic, bodies)
    async with _living(side.settings(topic), writer):
        start = side.fill(topic, bodies) if side.live else None
        cost = await _timed(meter, lambda: writer.conservation[NAME].stored, len(bodies), start)
    await writer.close()
    return cost


async def _gateway_out(side: Bare, store: Store, bodies: Sequence[str], meter: Meter) -> Cost:
    topic = "send" if side.live else side.topic()
    await side.create(topic)
    for begin in range(0, len(bodies), 1000):
        await store.enqueue([_job(side, topic, body) for body in bodies[begin : begin + 1000]])
    sent = 0

    def watch(event: str, fields: dict[str, Any]) -> None:
        nonlocal sent
        sent += fields["count"] if event == "outbox.delivered" else 0

    async with _living(side.settings(None), InboxWriter(store)) as connector:
        outbox = Outbox(store, lambda: {NAME: connector.publish}, wake=Wakeup(), policy=RetryPolicy())
        with subscribed(watch):
            sending = asyncio.create_task(outbox.run())
            try:
                return await _timed(meter, lambda: sent, len(bodies))
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)


def _job(side: Bare, topic: str, body: str) -> NewJob:
    message = Message(topic=topic, body=body.encode())
    return NewJob(
        handler=PUBLISH,
        payload=message.body,
        metadata={**message.to_metadata(), "connector": NAME},
        direction=Direction.OUTBOUND,
        protocol=side.type,
    )


@asynccontextmanager
async def _living(settings: dict[str, Any], writer: InboxWriter) -> AsyncIterator[Connector[Any]]:
    """Run a connector; entered, it is ready."""
    kind = connector_class(settings["type"])
    connector = kind(kind.config_class.model_validate(settings), name=NAME)
    ready = asyncio.Event()
    inbox = writer.connection(NAME, connector.protocol, method=connector.method, on_ready=ready.set)
    life = asyncio.create_task(connector.run(inbox))
    try:
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({life, waiting}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if life.done():
            await life
        yield connector
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
