"""New jobs as rows: one statement on PostgreSQL, one batch elsewhere."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache

from gateway.job import NewJob
from gateway.store.dialect import Dialect
from gateway.store.rows import NEW_COLUMNS, needs_clock, new_row
from gateway.store.script import Script, Sql
from gateway.store.spread import spread
from gateway.store.statement import compose

PER_ROW = frozenset({"id", "metadata", "payload"})
NAMES = ", ".join(name for name, _ in NEW_COLUMNS)
VALUES = ", ".join("n.metadata::jsonb" if name == "metadata" else f"n.{name}" for name, _ in NEW_COLUMNS)


def insert_jobs(dialect: Dialect, jobs: Sequence[NewJob]) -> Script[None]:
    """Insert jobs, in order. One whose id is there already is left alone, so it is safe to repeat."""
    if not jobs:
        return
    now = (yield from clock(dialect)) if needs_clock(jobs) else None
    rows = [new_row(dialect, job, now) for job in jobs]
    if dialect.arrays:
        source, arguments = spread(NEW_COLUMNS, rows, PER_ROW)
        text = f"INSERT INTO queue_jobs ({NAMES}) SELECT {VALUES} FROM {source} AS n ON CONFLICT DO NOTHING"
        yield Sql(text, arguments)
    else:
        yield Sql(_insert(dialect), rows, "many")


def clock(dialect: Dialect) -> Script[datetime]:
    """Return the database's time."""
    result = yield compose(dialect, "SELECT {now}").rows()
    now = dialect.instant(result.rows[0][0])
    assert now is not None
    return now


@cache
def _insert(dialect: Dialect) -> str:
    marks = dialect.placeholders(len(NEW_COLUMNS))
    return f"INSERT INTO queue_jobs ({NAMES}) VALUES ({marks}) {dialect.ignore('id')}"
