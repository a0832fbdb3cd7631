"""Ingest: what was received becomes jobs, once, in the transaction that moves its source's position.

Safe to repeat with the same job ids, which is how a lost COMMIT is resolved.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

from gateway.connector import Receipt
from gateway.crashpoint import reach
from gateway.errors import DataRefused, PositionLost, StoreError
from gateway.job import NewJob
from gateway.store.dialect import Dialect
from gateway.store.insert import NAMES, PER_ROW, VALUES, clock, insert_jobs
from gateway.store.rows import NEW_COLUMNS, needs_clock, new_row
from gateway.store.script import Script, Sql
from gateway.store.spread import Fields, spread
from gateway.store.statement import compose
from gateway.store.values import Arrival, Dedupe, PositionMove

DEDUPE_WINDOW = timedelta(days=7)
"""How long a dedupe key is kept at least."""


class Owner(NamedTuple):
    """The job that stands for a dedupe key, and the hash of its body."""

    job_id: str
    body_hash: bytes


@dataclass(slots=True)
class Batch:
    """Arrivals of one connector, those with an equal key within the batch already told apart."""

    connector: str
    arrivals: Sequence[Arrival]
    moves: Sequence[PositionMove] = ()
    jobs: list[NewJob] = field(default_factory=list)
    mine: dict[bytes, Owner] = field(default_factory=dict)
    """By key hash: the batch's own."""
    owners: dict[bytes, Owner] = field(default_factory=dict)
    """By key hash: the batch's own, or what the database says."""
    hashes: list[bytes | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        for arrival in self.arrivals:
            key = None if arrival.dedupe is None else key_hash(arrival.dedupe)
            self.hashes.append(key)
            if key is not None and arrival.dedupe is not None:
                if key in self.mine:
                    continue
                self.mine[key] = Owner(arrival.job.id, arrival.dedupe.body_hash)
            self.jobs.append(arrival.job)
        self.owners.update(self.mine)

    def receipts(self) -> list[Receipt]:
        """Return what became of each arrival, in their order."""
        return [self._receipt(*pair) for pair in zip(self.arrivals, self.hashes, strict=True)]

    def _receipt(self, arrival: Arrival, key: bytes | None) -> Receipt:
        owner = None if key is None else self.owners[key]
        if owner is None or arrival.dedupe is None or owner.job_id == arrival.job.id:
            return Receipt(arrival.job.id)
        return Receipt(owner.job_id, duplicate=True, conflict=owner.body_hash != arrival.dedupe.body_hash)

    def stored(self) -> list[NewJob]:
        """Return the jobs that are the owners of their keys, or have none."""
        owning = {owner.job_id for owner in self.owners.values()}
        keyed = {arrival.job.id for arrival in self.arrivals if arrival.dedupe is not None}
        return [job for job in self.jobs if job.id not in keyed or job.id in owning]


def key_hash(dedupe: Dedupe) -> bytes:
    """Return the 16 bytes under which a key is kept."""
    scope, key = dedupe.scope.encode("utf-8", "surrogatepass"), dedupe.key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(len(scope).to_bytes(4, "big") + scope + key, digest_size=16).digest()


def single(dialect: Dialect, batch: Batch) -> bool:
    """Say whether `ingest` is one statement."""
    return dialect.arrays and bool(batch.jobs) and not needs_clock(batch.jobs)


def ingest(dialect: Dialect, batch: Batch) -> Script[bool]:
    """Insert a batch's jobs and dedupe keys and move its positions.

    Raises `PositionLost` if a position is not where it is believed to be: then nothing of it may be committed.
    False: some keys were there before, and `owners` has still to look them up.
    """
    known = True
    if dialect.arrays and batch.jobs:
        inserted = yield from _ingest_postgresql(dialect, batch)
        known = not batch.mine or inserted == len(batch.jobs)
    else:
        if batch.mine:
            yield from _insert_keys(dialect, batch)
            yield from owners(dialect, batch)
        yield from insert_jobs(dialect, batch.stored())
        for move in sorted(batch.moves, key=lambda move: (move.cluster, move.topic, move.partition)):
            yield from _move(dialect, move)
    reach("ingest.written")
    return known


def stored(dialect: Dialect, batch: Batch) -> Script[bool]:
    """Say whether this very batch was committed before: it is all or nothing, and nobody else has its ids."""
    ids = [arrival.job.id for arrival in batch.arrivals]
    return bool((yield compose(dialect, "SELECT id FROM queue_jobs WHERE id {any $1}").rows(ids)).rows)


# -- several statements: MySQL, SQLite ---------------------------------------------------------------------------------


def _keys(batch: Batch) -> list[tuple[bytes, Owner]]:
    """Sorted, so that two batches with common keys never wait for each other in a circle."""
    return sorted(batch.mine.items())


@cache
def _key_insert(dialect: Dialect) -> str:
    return (
        "INSERT INTO inbound_dedupe (connector, keyhash, jobid, bodyhash, expiresat)"
        f" VALUES ({dialect.placeholders(5)}) {dialect.ignore('connector')}"
    )


def _insert_keys(dialect: Dialect, batch: Batch) -> Script[None]:
    now = yield from clock(dialect)
    expires = dialect.moment(now + DEDUPE_WINDOW)
    rows = [(batch.connector, key, owner.job_id, owner.body_hash, expires) for key, owner in _keys(batch)]
    yield Sql(_key_insert(dialect), rows, "many")


_OWNERS = "SELECT keyhash, jobid, bodyhash FROM inbound_dedupe"


def owners(dialect: Dialect, batch: Batch) -> Script[bool]:
    """Look up which jobs stand for the batch's keys, and note them in the batch; False if some key has none."""
    keys = [key for key, _ in _keys(batch)]
    if dialect.arrays:
        where, arguments = "= ANY($2::bytea[])", list[Any]([keys])
    else:
        where, arguments = f"IN ({dialect.placeholders(len(keys), 2)})", list[Any](keys)
    text = f"{_OWNERS} WHERE connector = {dialect.placeholder(1)} AND keyhash {where}"
    rows = (yield Sql(text, [batch.connector, *arguments], "rows")).rows
    for key, job_id, body_hash in rows:
        batch.owners[bytes(key)] = Owner(job_id, bytes(body_hash))
    return len(rows) == len(keys)


_MOVE = """UPDATE source_positions SET nextoffset = $6, topicid = $5, state = $7, updatedat = {now}
 WHERE connector = $1 AND cluster = $2 AND topic = $3 AND {partition} = $4 AND nextoffset = $8"""
_FIRST = """INSERT INTO source_positions (connector, cluster, topic, {partition}, topicid, nextoffset, state)
 VALUES ($1, $2, $3, $4, $5, $6, $7)"""


def _move(dialect: Dialect, m: PositionMove) -> Script[None]:
    values = (m.connector, m.cluster, m.topic, m.partition, m.topic_id, m.next_offset, m.state)
    if m.held is not None:
        if (yield compose(dialect, _MOVE)(*values, m.held)).count != 1:
            raise _lost([m])
        return
    try:
        yield compose(dialect, _FIRST)(*values)
    except DataRefused as refused:
        if re.search("duplicate|unique", str(refused), re.IGNORECASE):
            raise _lost([m]) from refused
        raise


def _lost(moves: Sequence[PositionMove]) -> PositionLost:
    where = ", ".join(f"{move.topic}[{move.partition}]" for move in moves)
    return PositionLost(f"another consumer has moved the stored position of {where}")


# -- one statement: PostgreSQL -----------------------------------------------------------------------------------------

_KEYED: Fields = (*NEW_COLUMNS, ("keyhash", "bytea"), ("bodyhash", "bytea"), ("connector", "text"))
_PER_KEY = PER_ROW | {"keyhash", "bodyhash"}


def _ingest_postgresql(dialect: Dialect, batch: Batch) -> Script[int]:
    now = (yield from clock(dialect)) if needs_clock(batch.jobs) else None
    rows: list[tuple[Any, ...]] = [new_row(dialect, job, now) for job in batch.jobs]
    fields: Fields = NEW_COLUMNS
    per_row = PER_ROW
    if batch.mine:
        by_id = {owner.job_id: (key, owner.body_hash) for key, owner in batch.mine.items()}
        rows = [(*row, *by_id.get(row[0], (None, None)), batch.connector) for row in rows]
        fields, per_row = _KEYED, _PER_KEY
    source, arguments = spread(fields, rows, per_row)
    text = _text(dialect, source, len(arguments) + 1, keyed=bool(batch.mine), moves=bool(batch.moves))
    try:
        return (yield Sql(text, [*arguments, *_move_arrays(batch.moves)])).count
    except StoreError as error:
        if "division by zero" in str(error):
            raise _lost(batch.moves) from error
        raise


def _move_arrays(moves: Sequence[PositionMove]) -> list[Any]:
    """Return the arguments from the first after the jobs' on; the connector is the same in all."""
    if not moves:
        return []
    rows = ((m.cluster, m.topic, m.partition, m.topic_id, m.held, m.next_offset, m.state) for m in moves)
    columns = zip(*rows, strict=True)
    return [moves[0].connector, len(moves), *map(list, columns)]


@cache
def _text(dialect: Dialect, source: str, first: int, *, keyed: bool, moves: bool) -> str:
    """Return the statement. A position that is not held divides by zero, so that nothing of it commits."""
    parts, conditions = [f"n AS MATERIALIZED (SELECT * FROM {source} AS s)"], []
    if keyed:
        parts.append(_KEYS.format(expires=dialect.later(f"{DEDUPE_WINDOW.total_seconds()}::double precision")))
        conditions.append("(n.keyhash IS NULL OR n.id IN (SELECT jobid FROM keys))")
    if moves:
        p = [f"${first + n}" for n in range(9)]
        parts.append(_MOVES.format(p=p, now=dialect.now))
        conditions.append(
            "1 / (CASE WHEN (SELECT count(*) FROM moved) + (SELECT count(*) FROM begun)"
            f" = {p[1]}::bigint THEN 1 ELSE 0 END) = 1"
        )
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    if not conditions:
        return f"INSERT INTO queue_jobs ({NAMES}) SELECT {VALUES} FROM {source} AS n ON CONFLICT DO NOTHING"
    return (
        f"WITH {', '.join(parts)} INSERT INTO queue_jobs ({NAMES}) SELECT {VALUES} FROM n{where} ON CONFLICT DO NOTHING"
    )


_KEYS = """keys AS (INSERT INTO inbound_dedupe (connector, keyhash, jobid, bodyhash, expiresat)
 SELECT connector, keyhash, id, bodyhash, {expires} FROM n WHERE keyhash IS NOT NULL ORDER BY keyhash
 ON CONFLICT DO NOTHING RETURNING jobid)"""
_MOVES = """m AS (SELECT * FROM unnest({p[2]}::text[], {p[3]}::text[], {p[4]}::integer[], {p[5]}::text[],
 {p[6]}::bigint[], {p[7]}::bigint[], {p[8]}::text[]) AS m(cluster, topic, partition, topicid, held, nextoffset, state)),
 moved AS (UPDATE source_positions s
 SET nextoffset = m.nextoffset, topicid = m.topicid, state = m.state, updatedat = {now} FROM m
 WHERE s.connector = {p[0]}::text AND s.cluster = m.cluster AND s.topic = m.topic AND s.partition = m.partition
 AND s.nextoffset = m.held RETURNING 1),
 begun AS (INSERT INTO source_positions (connector, cluster, topic, partition, topicid, nextoffset, state)
 SELECT {p[0]}::text, cluster, topic, partition, topicid, nextoffset, state FROM m WHERE held IS NULL
 ON CONFLICT DO NOTHING RETURNING 1)"""
