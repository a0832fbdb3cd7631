"""How fast: the core beside bare SQL on the same tables, connectors beside the bare loops of their client libraries.

    python -m tests.benchmarks [sqlite] [postgresql] [--count 20000] [--rounds 3] [--json]
    python -m tests.benchmarks kafka mqtt activemq signalr [--database postgresql] [--count 20000]

Rates of one run move with the machine's mood; the ratio and the CPU per job are the figures to trust. Rounds
alternate between the gateway and the floor, and the median round of each is shown.
"""

import argparse
import asyncio
import json
import sys

from gateway.message import Message
from gateway.store import Store
from tests.benchmarks import floor, report, workload
from tests.benchmarks.databases import server
from tests.benchmarks.meter import Cost, Meter

DATABASES = ("sqlite", "postgresql")
BROKERS = ("kafka", "mqtt", "activemq", "signalr", "mosquitto", "hivemq", "artemis")
METADATA = json.dumps(Message(topic="bench").to_metadata())


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


async def _jobs(database: str, arguments: argparse.Namespace) -> list[report.Row]:
    """Measure the gateway's core on a database."""
    bodies = workload.bodies(arguments.count)
    rounds: dict[str, list[Cost]] = {}
    with server(database) as (fresh, pid):
        for number in range(arguments.rounds):
            for kind in ("floor", "deferred", "own"):
                print(f"{database}: round {number + 1} of {arguments.rounds}, {kind}", file=sys.stderr, flush=True)
                with fresh() as url:
                    for cost in await _round(url, pid, kind, bodies, arguments.workers):
                        rounds.setdefault(cost.what, []).append(cost)
    del rounds["ingest own"]  # the same as for deferred: handlers have not run yet
    return report.rows(rounds, "floor")


async def _messages(broker: str, arguments: argparse.Namespace) -> list[report.Row]:
    """Measure a connector, its jobs on a database."""
    from tests.benchmarks import brokers  # the client libraries of all brokers are wanted only here

    with server(arguments.database) as (fresh, pid):
        costs = await brokers.measure(broker, fresh, pid, count=arguments.count, rounds=arguments.rounds)
    return report.rows(costs, "bare")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n", 1)[0])
    known = f"databases ({', '.join(DATABASES)}) and brokers ({', '.join(BROKERS)})"
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(DATABASES), help=known)
    parser.add_argument("--count", type=int, default=20_000, help="messages, and jobs, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=20, help="handlers at once")
    parser.add_argument("--database", choices=DATABASES, default="postgresql", help="where a broker's jobs are kept")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    arguments = parser.parse_args()
    if unknown := {*arguments.names} - {*DATABASES, *BROKERS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {known}")
    for name in arguments.names:
        found = asyncio.run((_jobs if name in DATABASES else _messages)(name, arguments))
        title = name if name in DATABASES else f"{name}, {arguments.database}"
        report.show(title, found, as_json=arguments.json)


if __name__ == "__main__":
    main()
