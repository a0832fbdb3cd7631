"""Handlers that do what a handler must not: each may hurt only its own job."""

import asyncio
import os
import sys
import time
from contextlib import suppress

from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from gateway import Context, PlainContext
from gateway_example.ledger import effects, row


async def poison(context: Context) -> None:
    """Take the whole process down."""
    await context.session.execute(insert(effects).values(row(context)))
    os._exit(7)


async def swallow(context: Context) -> None:
    """Go on after a database error as if nothing had happened."""
    await context.session.execute(insert(effects).values(row(context)))
    with suppress(DBAPIError):
        await context.session.execute(text("SELECT * FROM there_is_no_such_table"))


async def commit(context: Context) -> None:
    """Commit half of the work."""
    await context.session.execute(insert(effects).values(row(context)))
    await context.session.commit()


async def rollback(context: Context) -> None:
    """Roll the gateway's transaction back."""
    await context.session.execute(insert(effects).values(row(context)))
    await context.session.rollback()


async def raw_commit(context: Context) -> None:
    """Commit behind SQLAlchemy's back."""
    await context.session.execute(insert(effects).values(row(context)))
    await context.session.execute(text("COMMIT"))


async def ddl(context: Context) -> None:
    """Run a statement that commits implicitly on MySQL."""
    await context.session.execute(insert(effects).values(row(context)))
    await context.session.execute(text("CREATE TABLE left_behind (id INTEGER)"))


async def not_a_number(context: Context) -> float:
    """Return what JSON does not have."""
    await context.session.execute(insert(effects).values(row(context)))
    return float("nan")


async def unserialisable(context: Context) -> object:
    """Return what JSON cannot hold."""
    await context.session.execute(insert(effects).values(row(context)))
    return object()


async def system_exit(context: Context) -> None:
    """Ask the process to end."""
    await context.session.execute(insert(effects).values(row(context)))
    sys.exit(3)


async def interrupt(context: Context) -> None:
    """Pretend that Ctrl-C was pressed."""
    await context.session.execute(insert(effects).values(row(context)))
    raise KeyboardInterrupt


async def stubborn(context: Context) -> None:
    """Ignore every cancellation for `seconds`."""
    until = time.monotonic() + context.message.json()["seconds"]
    while time.monotonic() < until:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


async def blocking(context: Context) -> None:
    """Block the loop for `seconds`, then write."""
    time.sleep(context.message.json()["seconds"])  # noqa: ASYNC251 - the abuse
    await context.session.execute(insert(effects).values(row(context)))


def asleep(context: PlainContext) -> None:
    """Block its thread for `seconds`, then write."""
    time.sleep(context.message.json()["seconds"])
    context.session.execute(insert(effects).values(row(context)))


async def undecodable(context: Context) -> None:
    """Read the body as JSON, whatever it is."""
    await context.session.execute(insert(effects).values(row(context)))
    context.message.json()
