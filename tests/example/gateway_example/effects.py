"""Handlers that do what a handler should, each in another way."""

import asyncio
from typing import Any

from sqlalchemy import insert

from gateway import Context, PlainContext, Retry
from gateway_example.ledger import effects, row


async def effect(context: Context) -> dict[str, Any]:
    """Write through the session."""
    await context.session.execute(insert(effects).values(row(context)))
    return {"attempt": context.job.attempt}


async def deferred(context: Context) -> None:
    """Write with the group commit, without a transaction of its own."""
    context.defer(insert(effects), row(context))


def plain(context: PlainContext) -> None:
    """Write from a thread."""
    context.session.execute(insert(effects).values(row(context)))


async def publish(context: Context) -> None:
    """Write, make a child and send a message; then fail the first `failures` attempts, after all of that.

    `connector` and `topic` are where to, `group` the message's key, and its body repeats the `number`.
    """
    order = context.message.json()
    await context.session.execute(insert(effects).values(row(context)))
    await context.enqueue("example.effect", {"parent": context.job.id})
    body = {"parent": context.job.id, "attempt": context.job.attempt, "number": order.get("number")}
    out, topic = order.get("connector", "out"), order.get("topic", "receive")
    await context.publish(out, topic=topic, body=body, key=order.get("group"))
    if context.job.retry_count < order.get("failures", 0):
        raise Retry("failing after publishing, as told", delay=0.01)


async def locked(context: Context) -> dict[str, int]:
    """Write in its turn, while no other job of this handler can, and return the lock's number."""
    await context.smooth("example", 1000)
    async with context.lock("example", wait=30) as lock:
        context.defer(insert(effects), row(context))
        return {"fence": lock.fence}


async def slow(context: Context) -> None:
    """Take `seconds`, then write."""
    await asyncio.sleep(context.message.json()["seconds"])
    await context.session.execute(insert(effects).values(row(context)))


async def flaky(context: Context) -> None:
    """Write, then fail the first `failures` attempts."""
    await context.session.execute(insert(effects).values(row(context)))
    if context.job.retry_count < context.message.json()["failures"]:
        raise ValueError("failing as told")
