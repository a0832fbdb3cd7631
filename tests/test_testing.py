"""`gateway.testing.run_handler`, and with it what a handler sees of its context."""

import threading

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from gateway import Discard, JobStatus
from gateway.testing import run_handler

metadata = MetaData()
orders = Table("orders", metadata, Column("id", String(40), primary_key=True), Column("total", Integer))


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def place_order(context):
    order = context.message.json()
    await context.session.execute(insert(orders).values(id=order["id"], total=3))
    context.defer(update(orders).values(total=orders.c.total + 1))
    await context.publish("billing", topic="orders.billed", body={"id": order["id"]}, key=order["id"])
    child = await context.enqueue("order.notify", {"id": order["id"]}, delay=60)
    return {"child": child}


async def test_everything_a_handler_did_can_be_looked_at():
    run = await run_handler(place_order, {"id": "1"}, schema=metadata)
    assert run.job.status is JobStatus.COMPLETED
    assert run.rows == {"orders": [{"id": "1", "total": 4}]}
    (message,) = run.published
    assert (message.topic, message.json(), message.key) == ("orders.billed", {"id": "1"}, b"1")
    (child,) = run.enqueued
    assert (child.handler, child.status, child.parent_id) == ("order.notify", JobStatus.SCHEDULED, run.job.id)
    assert run.result == {"child": child.id}
    assert run.history.status is JobStatus.COMPLETED


async def test_of_a_handler_that_fails_nothing_stays_but_the_reason():
    async def fail(context):
        await place_order(context)
        raise Discard("not today")

    run = await run_handler(fail, {"id": "1"}, schema="CREATE TABLE orders (id TEXT, total INTEGER)")
    assert (run.job.status, run.job.last_error) == (JobStatus.FAILED, "not today")
    assert (run.rows, run.published, run.enqueued, run.result) == ({"orders": []}, [], [], None)


async def test_the_message_is_as_described_and_the_database_prepared():
    async def look(context):
        message = context.message
        count = await context.session.scalar(select(orders.c.total))
        return [
            message.topic,
            message.key.decode(),
            message.header("h"),
            message.parameters,
            context.job.metadata["extra"],
            message.text(),
            message.content_type,
            message.message_id == context.job.id,
            count,
        ]

    run = await run_handler(
        look,
        "text",
        schema=metadata,
        prepare=["INSERT INTO orders VALUES ('a', 7)"],
        topic="floor/1",
        key="k",
        headers={"h": "v"},
        content_type="text/x",
        parameters={"device": "1"},
        metadata={"extra": 5},
    )
    assert run.result == ["floor/1", "k", "v", {"device": "1"}, 5, "text", "text/x", True, 7]


async def test_a_plain_handler_has_the_same_names_as_plain_calls():
    def plain(context):
        assert threading.current_thread() is not threading.main_thread()
        context.session.add(Customer(id=1, name="kept"))
        context.session.flush()
        try:
            with context.savepoint():
                context.session.add(Customer(id=2, name="undone"))
                context.session.flush()
                context.publish("x", topic="undone", body=None)
                raise LookupError
        except LookupError:
            context.publish("x", topic="kept", body=context.message.body)
        context.connection().execute(update(Customer).values(name="changed"))
        context.session.expire_all()
        context.progress(0.5)
        context.defer(insert(Customer).values(id=3, name="deferred"))
        context.enqueue("child")
        return context.session.get(Customer, 1).name

    run = await run_handler(plain, b"\xff", schema=Base.metadata)
    assert run.job.status is JobStatus.COMPLETED, run.job.last_error
    assert run.result == "changed"
    assert run.rows == {"customers": [{"id": 1, "name": "changed"}, {"id": 3, "name": "deferred"}]}
    assert [(message.topic, message.body) for message in run.published] == [("kept", b"\xff")]
    assert [child.handler for child in run.enqueued] == ["child"]


async def test_a_session_of_the_orm_flushes_with_the_outcome():
    async def orm(context):
        context.session.add(Customer(id=1, name="new"))

    run = await run_handler(orm, schema=Base.metadata)
    assert run.job.status is JobStatus.COMPLETED, run.job.last_error
    assert run.rows == {"customers": [{"id": 1, "name": "new"}]}


async def test_a_session_that_was_only_looked_at_costs_nothing():
    async def look(context):
        return type(context.session).__name__

    run = await run_handler(look)
    assert run.job.status is JobStatus.COMPLETED, run.job.last_error


@pytest.mark.parametrize("body", [None, b"", "", 0])
async def test_no_body_is_a_tombstone_and_an_empty_one_is_not(body):
    async def look(context):
        return context.message.tombstone

    assert (await run_handler(look, body)).result is (body is None)
