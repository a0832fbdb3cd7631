"""Handlers that the tests of the whole gateway name in their configuration."""

import asyncio
from typing import Any

from gateway import Context, Discard

started = asyncio.Event()


async def answer(context: Context) -> dict[str, Any]:
    """Send the message on, upside down."""
    await context.publish("bus", topic="answers", body=context.message.body[::-1])
    return {"length": len(context.message.body)}


async def hang(_context: Context) -> None:
    """Never return."""
    started.set()
    await asyncio.Event().wait()


async def fail(context: Context) -> None:
    """Fail for good, or the first time only."""
    if context.message.body == b"never":
        raise Discard("as told")
    if context.job.attempt == 1:
        raise ValueError("as told")
