"""`gateway status`: numbers from the database, and the running gateway's own view if it answers."""

from rich.console import Console

from gateway.cli.ask import ask
from gateway.cli.common import ConfigOption, JsonOption, finish, load, opened, out, print_json, table
from gateway.config import Config
from gateway.message import Json


def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how many jobs there are, which instances run, and how the connectors of this one are."""
    report = finish(_report(load(config)))
    if as_json:
        print_json(report)
    else:
        _print(out(), report)


async def _report(config: Config) -> Json:
    from gateway.admin.rows import moment, status_word

    async with opened(config) as store:
        numbers, instances = await store.statistics(), await store.instances()
    return {
        "statuses": {status_word(number): count for number, count in sorted(numbers.status_counts.items())},
        "ready": dict(numbers.ready),
        "ready_handlers": dict(numbers.ready_handlers),
        "oldest_ready": numbers.oldest_ready,
        "instances": [
            {
                "id": row.id,
                "name": row.name,
                "version": row.version,
                "host": row.host,
                "pid": row.pid,
                "startedat": moment(row.started_at),
                "age": round(row.age, 3),
            }
            for row in instances
        ],
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
    console.print("\ninstances", style="bold")
    rows = [
        (i["name"], i["host"], i["pid"], i["version"], i["startedat"], f"{i['age']:.1f} s ago")
        for i in report["instances"]
    ]
    console.print(table(("name", "host", "pid", "version", "started", "heartbeat"), rows) if rows else "none")
    console.print("\nconnectors", style="bold")
    if report["connectors"] is None:
        console.print("no gateway answers on the admin address of this configuration")
    else:
        columns = ("name", "type", "state", "reason", "since", "guarantee")
        console.print(table(columns, [[row.get(column) for column in columns] for row in report["connectors"]]))
