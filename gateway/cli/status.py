"""`gateway status`: numbers from the database, and the running gateway's own view if it answers."""

from collections import Counter

from rich.console import Console
from rich.text import Text

from gateway.cli.ask import ask
from gateway.cli.common import ConfigOption, JsonOption, finish, load, opened, out, print_json, table
from gateway.config import Config
from gateway.message import Json

STALE = 5.0
"""Seconds by which a report may be older than the heartbeat before that is told."""


def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how many jobs there are, which instances run, and how the connectors of this one are."""
    report = finish(_report(load(config)))
    if as_json:
        print_json(report)
    else:
        _print(out(), report)


async def _report(config: Config) -> Json:
    from gateway.admin.rows import instance_as_json, status_word

    async with opened(config) as store:
        numbers, instances = await store.statistics(), await store.instances()
    return {
        "statuses": {status_word(number): count for number, count in sorted(numbers.status_counts.items())},
        "ready": dict(numbers.ready),
        "ready_handlers": dict(numbers.ready_handlers),
        "oldest_ready": numbers.oldest_ready,
        "due_schedules": numbers.due_schedules,
        "schedule_lag": numbers.schedule_lag,
        "orphaned_handlers": dict(numbers.orphaned.handlers),
        "orphaned_connectors": dict(numbers.orphaned.connectors),
        "instances": [instance_as_json(row) for row in instances],
        "connectors": await _connectors(config),
    }


async def _connectors(config: Config) -> list[Json] | None:
    answer = await ask(config.gateway.admin, "/api/connectors")
    return answer.body if answer is not None and answer.status == 200 and isinstance(answer.body, list) else None


def _print(console: Console, report: Json) -> None:
    console.print("jobs", style="bold")
    console.print(table(("status", "count"), report["statuses"].items()) if report["statuses"] else "none yet")
    if report["oldest_ready"] is not None:
        console.print(f"the oldest that is ready waits for {report['oldest_ready']:.1f} s")
        console.print(table(("waiting for handler", "count"), report["ready_handlers"].items()))
    if report["schedule_lag"] is not None:
        console.print(f"{report['due_schedules']} schedules are due, the first one for {report['schedule_lag']:.1f} s")
    _print_instances(console, report)
    console.print("\nconnectors", style="bold")
    if report["connectors"] is None:
        console.print("no gateway answers on the admin address of this configuration")
    else:
        columns = ("name", "type", "state", "reason", "since", "guarantee")
        console.print(table(columns, [[row.get(column) for column in columns] for row in report["connectors"]]))


def _print_instances(console: Console, report: Json) -> None:
    console.print("\ninstances", style="bold")
    columns = ("name", "incarnation", "state", "load", "version", "host", "pid", "started", "last seen", "connectors")
    rows = [_instance(row) for row in report["instances"]]
    console.print(table(columns, rows) if rows else "none")
    orphans = {**report["orphaned_handlers"], **{f"send:{k}": n for k, n in report["orphaned_connectors"].items()}}
    if orphans and any(row["alive"] for row in report["instances"]):
        console.print("\nno living instance has", style="bold red")
        console.print(table(("handler, or connector to send by", "jobs left"), orphans.items()))


def _instance(row: Json) -> tuple[object, ...]:
    state = Text("alive", "green") if row["alive"] else Text("dead", "bold red")
    load = "" if row["workers"] is None else f"{row['running']} of {row['workers']}"
    if load and row["reportage"] > row["age"] + STALE:
        load += f" {row['reportage']:.0f} s ago"
    connectors = Counter(each["state"] for each in (row["connectors"] or {}).values())
    told = ", ".join(f"{count} {state}" for state, count in sorted(connectors.items()))
    incarnation = row["id"].rpartition("/")[2][:8]
    seen = f"{row['age']:.1f} s ago"
    return (
        row["name"],
        incarnation,
        state,
        load,
        row["version"],
        row["host"],
        row["pid"],
        row["startedat"],
        seen,
        told,
    )
