"""The public API as users write against it: never run, only type-checked, as strictly as the gateway itself.

Each `type: ignore` is a mistake that a type checker must find; one that it no longer finds is an error here.
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, assert_type

from pydantic import Field, SecretStr
from sqlalchemy import Column, Connection, MetaData, String, Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from gateway import (
    Cancel,
    ConfigError,
    Connector,
    Context,
    DeliveryError,
    Discard,
    Disconnected,
    Gateway,
    JobHistory,
    JobStatus,
    Message,
    PlainContext,
    QueueJob,
    Retry,
    handler,
)
from gateway.connector import ConnectorConfig, InboundEntry, Inbox
from gateway.testing import run_handler

orders = Table("orders", MetaData(), Column("id", String(40), primary_key=True))
insert_order = insert(orders)


# -- handlers ----------------------------------------------------------------------------------------------------------


async def place_order(context: Context) -> dict[str, Any]:
    """Use everything that an async handler gets."""
    order = context.message.json()
    assert_type(context.session, AsyncSession)
    await context.session.execute(insert_order.values(id=order["id"]))
    connection: AsyncConnection = await context.connection()
    await connection.execute(insert_order.values(id="another"))
    context.defer(insert_order, {"id": order["id"]})
    async with context.savepoint():
        await context.session.execute(insert_order.values(id="twice"))
    context.progress(0.5, "half of it")
    message_id = await context.publish(
        "billing", topic="orders.billed", body={"id": order["id"]}, key=order["id"], headers={"trace": b"\xff"}
    )
    job_id = await context.enqueue("order.notify", {"id": order["id"]}, delay=60, priority=5, metadata={"plant": 7})
    assert_type((message_id, job_id), tuple[str, str])
    return {"order": order["id"], "attempt": context.job.attempt}


@handler(timeout=30, max_retries=5, commit="group")
async def import_order(context: Context) -> None:
    """Say more exactly what becomes of the job."""
    if context.message.tombstone:
        raise Discard("there is nothing in it")
    if context.message.header("cancelled"):
        raise Cancel("as the message says")
    raise Retry("later", delay=5)


@handler
def print_label(context: PlainContext) -> str:
    """Use everything that a plain handler gets."""
    assert_type(context.session, Session)
    assert_type(context.connection(), Connection)
    assert_type(context.job, QueueJob)
    with context.savepoint():
        context.session.execute(insert_order.values(id=context.message.text()))
    context.progress(1)
    context.publish("labels", topic="printed", body=None, key=b"\x00")
    return context.enqueue("order.notify", b"\x00\xff", key="label")


async def options_leave_a_function_as_it_is(context: Context, plain: PlainContext) -> None:
    """A decorated handler is still called, and tested, as what it was."""
    assert_type(await import_order(context), None)
    assert_type(print_label(plain), str)


async def mistakes_in_a_handler(context: Context, plain: PlainContext) -> None:
    """What can never work is seen before it runs."""
    await context.publish("out", body=b"no topic")  # type: ignore[call-arg]
    await context.publish("out", topic="t", body=b"", retain=True)  # type: ignore[call-arg]
    await context.enqueue("h", priorty=3)  # type: ignore[call-arg]
    context.publish("out", topic="t", body=b"not awaited")  # type: ignore[unused-coroutine]
    context.job.priority = 9  # type: ignore[misc]
    context.defer("INSERT INTO orders VALUES (1)")  # type: ignore[arg-type]
    await plain.enqueue("h")  # type: ignore[misc]
    handler(commit="always")  # type: ignore[call-overload]
    handler(timeout="30")  # type: ignore[call-overload]


async def test_an_order_is_placed() -> None:
    """Run a handler in one line."""
    run = await run_handler(place_order, {"id": "1"}, schema=orders.metadata, topic="orders", key="1")
    assert run.job.status is JobStatus.COMPLETED
    assert_type(run.published, Sequence[Message])
    await run_handler(print_label, b"label", headers=[("trace", "1")])


# -- a gateway inside another program ----------------------------------------------------------------------------------


async def lifespan() -> AsyncIterator[Gateway]:
    """Run a gateway beside an application's own work."""
    try:
        gateway = Gateway.from_file(Path("gateway.yaml"))
    except ConfigError as error:
        assert_type(error.mistakes, tuple[str, ...])
        raise
    async with gateway:
        yield gateway


async def order(gateway: Gateway, engine: AsyncEngine) -> str:
    """Enqueue a job with the application's own transaction, whichever kind it has."""
    async with engine.begin() as connection:
        await connection.execute(insert_order.values(id="1"))
        job_id = await gateway.enqueue("order.process", {"id": "1"}, connection=connection, priority=5)
    async with AsyncSession(engine) as session, session.begin():
        jobs = await gateway.enqueue_many("order.process", [{"id": "2"}, b"3"], connection=session, delay=1.5)
        assert_type(jobs, list[str])
    return job_id


async def look(gateway: Gateway, job_id: str) -> dict[int, int] | None:
    """Ask what became of a job."""
    assert_type(await gateway.history(job_id), list[JobHistory])
    assert_type(await gateway.retry(job_id), QueueJob | None)
    job = await gateway.cancel(job_id, "not wanted any more")
    if job is None or job.status.final:
        return None
    return dict((await gateway.statistics()).status_counts)


async def mistakes_in_a_program(gateway: Gateway, engine: AsyncEngine) -> None:
    """What can never work is seen before it runs."""
    await gateway.enqueue("h", connection=engine)  # type: ignore[arg-type]
    await gateway.enqueue("h", {}, delay="soon")  # type: ignore[arg-type]
    gateway.enqueue("h")  # type: ignore[unused-coroutine]
    assert (await gateway.status("1")).status is JobStatus.COMPLETED  # type: ignore[union-attr]


# -- a connector -------------------------------------------------------------------------------------------------------


class PipeEntry(InboundEntry):
    """One pipe to read."""

    pipe: str = Field(description="name of the pipe")


class PipeConfig(ConnectorConfig):
    """A connection to a pipe server."""

    type: Literal["pipe"] = "pipe"
    url: str = Field(description="pipe://host:port")
    token: SecretStr | None = Field(default=None, description="shown to the server")
    inbound: Sequence[PipeEntry] = Field(default=(), description="pipes to read")


class Client:
    """The library that an adapter is written for."""

    async def open(self, url: str) -> None:
        """Connect."""

    async def send(self, topic: str, body: bytes, message_id: str | None) -> str:
        """Send, and return what the server answers."""
        raise NotImplementedError

    async def read(self, pipe: str) -> bytes:
        """Wait for something to arrive."""
        raise NotImplementedError

    async def acknowledge(self) -> None:
        """Say that it was kept."""


class PipeConnector(Connector[PipeConfig]):
    """What an author writes: its own configuration is typed, and so is all that it is given."""

    config_class: ClassVar[type[ConnectorConfig]] = PipeConfig
    protocol = "pipe"
    method = "read"

    def __init__(self, config: PipeConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._client = Client()

    async def run(self, inbox: Inbox) -> None:
        """Read until cancelled, acknowledging what is durable."""
        assert_type(self.config, PipeConfig)
        try:
            await self._client.open(self.config.url)
        except OSError as error:
            raise Disconnected(f"{self.config.url}: {error}") from error
        inbox.ready()
        while True:
            for entry in self.config.inbound:
                body = await self._client.read(entry.pipe)
                [receipt] = await inbox.receive([Message(topic=entry.pipe, body=body)], entry)
                assert_type(receipt.job_id, str)
                await self._client.acknowledge()

    async def publish(self, message: Message) -> str | None:
        """Hand over one message with the id by which receivers drop duplicates."""
        if not message.topic:
            raise DeliveryError("a pipe has a name", permanent=True)
        return await self._client.send(message.topic, message.body, message.message_id)


class Incomplete(Connector[PipeConfig]):
    """Lacks `run`."""

    config_class = PipeConfig
    guarantee = "exactly once"  # type: ignore[assignment]
    protocol = "pipe"


def mistakes_in_a_connector(config: PipeConfig, message: Message) -> None:
    """What can never work is seen before it runs."""
    Incomplete(config, name="pipe")  # type: ignore[abstract]
    PipeConnector(ConnectorConfig(type="pipe"), name="pipe")  # type: ignore[arg-type]
    message.body = b"another"  # type: ignore[misc]
