"""A handler that ends when it is told to."""

import asyncio
from pathlib import Path

from sqlalchemy import insert

from gateway import Context
from gateway_example.ledger import effects, row


async def gated(context: Context) -> None:
    """Say again and again that it is half done until the file `gate` is there, then write."""
    gate = Path(context.message.json()["gate"])
    while not gate.exists():  # noqa: ASYNC240 - another process makes it
        context.progress(0.5)
        await asyncio.sleep(0.02)
    await context.session.execute(insert(effects).values(row(context)))
