"""The bare-SQL floor: the same rows in the same tables, set-based, with no gateway around them.

Nothing on these tables can be much faster than this, so the gateway's figures are told as a ratio to it.
"""

import asyncio
import json
import sqlite3
from collections.abc import Sequence

import asyncpg

from gateway.job import new_id

BATCH = 200

PG_INSERT = """
INSERT INTO queue_jobs (id, handler, direction, protocol, metadata, payload, priority, maxretries, createdby)
SELECT id, 'bench.run', 'inbound', 'memory', metadata::jsonb, payload, 0, 3, 'integration'
FROM unnest($1::text[], $2::text[], $3::text[]) AS new(id, metadata, payload)
"""
PG_CLAIM = """
UPDATE queue_jobs SET statusid = 2, startedat = now() AT TIME ZONE 'utc', claimtoken = $2, claimedby = 'floor'
WHERE id = ANY(ARRAY(
    SELECT id FROM queue_jobs WHERE readylane = 'run' ORDER BY readyorder, seq LIMIT $1
    FOR UPDATE SKIP LOCKED))
RETURNING id, payload
"""
PG_EFFECT = "INSERT INTO bench_effect (job, data) SELECT * FROM unnest($1::text[], $2::text[])"
PG_FINISH = """
WITH done AS (
    UPDATE queue_jobs
    SET statusid = 3, completedat = now() AT TIME ZONE 'utc', claimtoken = NULL, result = '{"ok":true}'
    WHERE id = ANY($1::text[]) AND claimtoken = $2 RETURNING id, startedat)
INSERT INTO job_histories (id, jobid, executionid, statusid, startedat, completedat, duration, result, executedby)
SELECT id || '-1', id, $2, 3, startedat, now() AT TIME ZONE 'utc', 0, '{"ok":true}', 'floor' FROM done
"""
PLANNER = ("seqscan", "hashjoin", "mergejoin", "bitmapscan", "sort")


async def postgresql_ingest(url: str, bodies: Sequence[str], metadata: str) -> None:
    """Insert every body, in batches, on two connections."""
    batches = [bodies[at : at + BATCH] for at in range(0, len(bodies), BATCH)]

    async def lane(mine: Sequence[Sequence[str]]) -> None:
        connection = await asyncpg.connect(url)
        for batch in mine:
            await connection.execute(PG_INSERT, [new_id() for _ in batch], [metadata] * len(batch), list(batch))
        await connection.close()

    await asyncio.gather(lane(batches[::2]), lane(batches[1::2]))


async def postgresql_drain(url: str) -> None:
    """Claim, write one effect for each job, finish: a transaction for the claim and one for the rest."""

    async def lane() -> None:
        connection = await asyncpg.connect(url, server_settings={f"enable_{name}": "off" for name in PLANNER})
        while True:
            token = new_id()
            rows = await connection.fetch(PG_CLAIM, BATCH, token)
            if not rows:
                break
            ids = [row[0] for row in rows]
            async with connection.transaction():
                await connection.execute(PG_EFFECT, ids, [json.loads(row[1])["data"] for row in rows])
                await connection.execute(PG_FINISH, ids, token)
        await connection.close()

    await asyncio.gather(lane(), lane())


LITE_INSERT = """
INSERT INTO queue_jobs (id, handler, direction, protocol, metadata, payload, priority, maxretries, createdby)
VALUES (?, 'bench.run', 'inbound', 'memory', ?, ?, 0, 3, 'integration')
"""
LITE_CLAIM = """
UPDATE queue_jobs
SET statusid = 2, startedat = strftime('%Y-%m-%d %H:%M:%f000', 'now'), claimtoken = ?, claimedby = 'floor'
WHERE seq IN (SELECT seq FROM queue_jobs WHERE readylane = 'run' ORDER BY readyorder, seq LIMIT ?)
RETURNING id, payload
"""
LITE_EFFECT = "INSERT INTO bench_effect (job, data) VALUES (?, ?)"
LITE_FINISH = """
UPDATE queue_jobs SET statusid = 3, completedat = strftime('%Y-%m-%d %H:%M:%f000', 'now'), claimtoken = NULL,
    result = '{"ok":true}'
WHERE id = ? AND claimtoken = ?
"""
LITE_HISTORY = """
INSERT INTO job_histories (id, jobid, executionid, statusid, startedat, duration, result, executedby)
VALUES (?, ?, ?, 3, strftime('%Y-%m-%d %H:%M:%f000', 'now'), 0, '{"ok":true}', 'floor')
"""


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def sqlite_ingest(path: str, bodies: Sequence[str], metadata: str) -> None:
    """Insert every body, in batches."""
    connection = _open(path)
    for at in range(0, len(bodies), BATCH):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(LITE_INSERT, [(new_id(), metadata, body) for body in bodies[at : at + BATCH]])
        connection.execute("COMMIT")
    connection.close()


def sqlite_drain(path: str) -> None:
    """Claim, write one effect for each job, finish: a transaction for the claim and one for the rest."""
    connection = _open(path)
    while True:
        token = new_id()
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(LITE_CLAIM, (token, BATCH)).fetchall()
        connection.execute("COMMIT")
        if not rows:
            break
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(LITE_EFFECT, [(job, json.loads(body)["data"]) for job, body in rows])
        connection.executemany(LITE_FINISH, [(job, token) for job, _ in rows])
        connection.executemany(LITE_HISTORY, [(new_id(), job, token) for job, _ in rows])
        connection.execute("COMMIT")
    connection.close()
