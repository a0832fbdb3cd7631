"""How far sources have been stored: what connectors read, and what operators see and set."""

from collections.abc import Iterable
from typing import Any

from gateway.connector import StoredPosition
from gateway.store.dialect import Dialect
from gateway.store.script import Script, Sql
from gateway.store.statement import compose
from gateway.store.values import SourcePosition

_OF_TOPIC = """SELECT {partition}, topicid, nextoffset, state FROM source_positions
 WHERE connector = $1 AND cluster = $2 AND topic = $3"""
_LIST = """SELECT connector, cluster, topic, {partition}, topicid, nextoffset, updatedat FROM source_positions
 WHERE state IS NULL"""
_ORDER = " ORDER BY connector, cluster, topic, {partition}"
_ONE = f"{_OF_TOPIC} AND {{partition}} = $4"
_PUT = """INSERT INTO source_positions (connector, cluster, topic, {partition}, topicid, nextoffset, updatedat)
 VALUES ($1, $2, $3, $4, $5, $6, {now})"""
_KEY = ("connector", "cluster", "topic", "partition")


def of_topic(
    dialect: Dialect, source: tuple[str, str, str], partitions: Iterable[int]
) -> Script[dict[int, StoredPosition]]:
    """Return the stored positions of a log's partitions; `source` is connector, cluster, topic."""
    wanted = set(partitions)
    rows = (yield compose(dialect, _OF_TOPIC).rows(*source)).rows
    return {int(row[0]): StoredPosition(str(row[1]), int(row[2]), row[3]) for row in rows if int(row[0]) in wanted}


def find(dialect: Dialect, connector: str | None) -> Script[list[SourcePosition]]:
    """Return the stored positions of a connector, or of all, in order; not those that are its own bookkeeping."""
    if connector is None:
        rows = (yield compose(dialect, _LIST + _ORDER).rows()).rows
    else:
        rows = (yield compose(dialect, f"{_LIST} AND connector = $1{_ORDER}").rows(connector)).rows
    return [_position(dialect, row) for row in rows]


def put(dialect: Dialect, position: SourcePosition) -> Script[int | None]:
    """Set a position, whatever it was; returns the offset that stood there, None if there was none."""
    p = position
    before = (yield compose(dialect, _ONE).rows(p.connector, p.cluster, p.topic, p.partition)).rows
    statement = compose(dialect, _PUT)(p.connector, p.cluster, p.topic, p.partition, p.topic_id, p.next_offset)
    text = statement.text + dialect.upsert(_KEY, ("topicid", "nextoffset", "updatedat"))
    yield Sql(text, statement.args, statement.want)
    return int(before[0][2]) if before else None


def _position(dialect: Dialect, row: Any) -> SourcePosition:
    return SourcePosition(
        connector=row[0], cluster=row[1], topic=row[2], partition=int(row[3]), topic_id=row[4],
        next_offset=int(row[5]), updated_at=dialect.instant(row[6]),
    )  # fmt: skip
