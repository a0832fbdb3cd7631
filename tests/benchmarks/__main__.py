"""How fast: ingest and drain, as a ratio to bare SQL on the same tables in the same run.

    python -m tests.benchmarks [sqlite] [postgresql] [--count 20000] [--rounds 3] [--json]

Rates of one run move with the machine's mood; the ratio and the CPU per job are the figures to trust. Rounds
alternate between the gateway and the floor, and the median round of each is shown.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from gateway.message import Message
from gateway.store import Store
from tests.benchmarks import floor, workload
from tests.benchmarks.meter import Cost, Meter
from tests.databases import fresh_database
from tests.services import make

METADATA = json.dumps(Message(topic="bench").to_metadata())


@contextmanager
def _server(name: str) -> Iterator[tuple[Callable[[], AbstractContextManager[str]], int | None]]:
    """Yield a context manager that gives a fresh database's URL, and the server's pid."""
    if name == "sqlite":
        yield _file, None
        return
    server = make(name).start()
    try:
        yield lambda: fresh_database(server.url), server.pid
    finally:
        server.remove()


@contextmanager
def _file() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        yield f"sqlite:///{Path(folder) / 'gateway.db'}"


async def _bare(url: str, bodies: list[str] | None) -> None:
    match url.startswith("sqlite"), bodies:
        case True, None:
            floor.sqlite_drain(workload.sqlite_path(url))
        case True, list():
            floor.sqlite_ingest(workload.sqlite_path(url), bodies, METADATA)
        case False, None:
            await floor.postgresql_drain(url)
        case False, list():
            await floor.postgresql_ingest(url, bodies, METADATA)


async def _round(url: str, pid: int | None, kind: str, bodies: list[str], workers: int) -> list[Cost]:
    """Fill a fresh database and empty it again, as `kind` does it."""
    await workload.prepare(url)
    count = len(bodies)
    ingest, drain = Meter(f"ingest {kind}", count, pid), Meter(f"drain {kind}", count, pid)
    if kind == "floor":
        with ingest:
            await _bare(url, bodies)
        with drain:
            await _bare(url, None)
    else:
        store = await Store.open(url, instance="bench")
        handler = workload.own if kind == "own" else workload.deferred
        try:
            with ingest:
                await workload.ingest(store, bodies)
            with drain:
                await workload.drain(store, handler, count, workers)
        finally:
            await store.close()
    assert ingest.cost is not None
    assert drain.cost is not None
    return [ingest.cost, drain.cost]


def _median(costs: list[Cost]) -> Cost:
    return sorted(costs, key=lambda cost: cost.rate)[len(costs) // 2]


def _table(database: str, rounds: dict[str, list[Cost]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for what, costs in rounds.items():
        action, kind = what.split()
        bare = rounds[f"{action} floor"]
        ratios = [cost.rate / against.rate for cost, against in zip(costs, bare, strict=True)]
        cost = _median(costs)
        rows.append(
            {
                "database": database,
                "what": what,
                "per_second": round(cost.rate),
                "client_us": round(cost.micros(cost.client)),
                "server_us": round(cost.micros(cost.server)),
                "ratio_to_floor": round(statistics.median(ratios), 3),
            }
        )
        if action == "ingest" and kind == "own":
            rows.pop()  # the same as for deferred: handlers have not run yet
    return rows


async def _measure(database: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    bodies = workload.bodies(arguments.count)
    rounds: dict[str, list[Cost]] = {}
    with _server(database) as (fresh, pid):
        for number in range(arguments.rounds):
            for kind in ("floor", "deferred", "own"):
                print(f"{database}: round {number + 1} of {arguments.rounds}, {kind}", file=sys.stderr, flush=True)
                with fresh() as url:
                    for cost in await _round(url, pid, kind, bodies, arguments.workers):
                        rounds.setdefault(cost.what, []).append(cost)
    return _table(database, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n", 1)[0])
    parser.add_argument("databases", nargs="*", default=["sqlite", "postgresql"], help="sqlite, postgresql")
    parser.add_argument("--count", type=int, default=20_000, help="messages, and jobs, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=20, help="handlers at once")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    arguments = parser.parse_args()
    for database in arguments.databases:
        rows = asyncio.run(_measure(database, arguments))
        if arguments.json:
            print("\n".join(json.dumps(row) for row in rows))
            continue
        print(f"\n{database:<12}{'per s':>9}{'client us':>11}{'server us':>11}{'× floor':>9}")
        for row in rows:
            print(
                f"{row['what']:<16}{row['per_second']:>5}{row['client_us']:>11}{row['server_us']:>11}"
                f"{row['ratio_to_floor']:>9}"
            )


if __name__ == "__main__":
    main()
