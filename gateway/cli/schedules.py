"""`gateway schedules`: what makes jobs again and again."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.text import Text

from gateway import plugins
from gateway.cli.common import (
    Code,
    ConfigOption,
    JsonOption,
    fail,
    finish,
    load,
    note,
    opened,
    out,
    print_json,
    table,
    with_store,
)
from gateway.errors import ConfigError
from gateway.job import Schedule
from gateway.recurrence import Gap, Misfire, Overlap
from gateway.schedules import ScheduleConfig, next_ticks

if TYPE_CHECKING:
    from gateway.store import Store

app = typer.Typer(name="schedules", help="List, show, create, run and change schedules.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule, or its id.")]
BY = "command"
"""Who made or changed a row."""


@app.command("list")
def list_schedules(
    config: ConfigOption = None,
    enabled: Annotated[bool | None, typer.Option("--enabled/--disabled", help="Only those.")] = None,
    handler: Annotated[str | None, typer.Option(help="Only schedules of this handler.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(help="Only those after this name, for the next page.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List schedules in order of name, with when each makes its next job."""
    from gateway.admin.rows import schedule_as_json
    from gateway.store import ScheduleFilter

    wanted = ScheduleFilter(enabled=enabled, handler=handler, after=after, limit=limit)
    rows = with_store(config, lambda store: store.schedules(wanted))
    if as_json:
        print_json([schedule_as_json(row) for row in rows])
        return
    columns = ("name", "state", "when", "handler", "next", "last", "jobs", "error")
    out().print(table(columns, [_row(row) for row in rows]) if rows else "none yet")
    if len(rows) == limit:
        note(f"there may be more: --after '{rows[-1].name}'")


@app.command()
def show(name: Name, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show a schedule with everything in its row."""
    from gateway.admin.rows import schedule_as_json

    row = with_store(config, lambda store: _get(store, name))
    if as_json:
        print_json(schedule_as_json(row))
        return
    shown = {key: value for key, value in schedule_as_json(row).items() if value is not None}
    shown["metadata"] = json.dumps(row.metadata, ensure_ascii=False)
    out().print(table(("", ""), [(Text(key, "cyan"), value) for key, value in shown.items()]))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the schedule, unique in the database.")],
    handler: Annotated[str, typer.Option(help="Handler that runs at each tick.")],
    cron: Annotated[str | None, typer.Option(help="Such as '0 8 * * *'; six fields begin with the second.")] = None,
    interval: Annotated[int | None, typer.Option(help="Seconds between two ticks, instead of --cron.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="Zone whose clock --cron means.", show_default="UTC")] = None,
    start_at: Annotated[str | None, typer.Option(help="No tick is earlier, such as 2030-12-31T08:00:00.")] = None,
    end_at: Annotated[str | None, typer.Option(help="No tick is later.")] = None,
    max_executions: Annotated[int, typer.Option(help="How many ticks make a job; 0 is no limit.")] = 0,
    enabled: Annotated[bool, typer.Option("--enabled/--disabled", help="Whether it makes jobs at once.")] = True,
    condition: Annotated[str | None, typer.Option(help="SQL: where it is not true, a tick makes no job.")] = None,
    priority: Annotated[int, typer.Option(help="Of its jobs: higher runs first.")] = 0,
    max_retries: Annotated[int, typer.Option(help="Attempts of each job after the first.")] = 3,
    timeout: Annotated[int, typer.Option(help="Seconds that each job may take.")] = 300,
    misfire: Annotated[
        Misfire | None, typer.Option(help="What becomes of ticks that were missed; default: once.")
    ] = None,
    misfire_limit: Annotated[int | None, typer.Option(help="Most ticks that --misfire all makes up for.")] = None,
    gap: Annotated[
        Gap | None, typer.Option(help="A tick at a local time that is leapt over; default: run_at_end.")
    ] = None,
    overlap: Annotated[
        Overlap | None, typer.Option(help="A tick at a local time that comes twice; default: first.")
    ] = None,
    metadata: Annotated[str, typer.Option(help="JSON object for each job's metadata.")] = "{}",
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Change the schedule of that name, if there is one.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a schedule; every running gateway on the database follows it at once."""
    keys = {key: value for key, value in locals().items() if key in ScheduleConfig.model_fields}
    said = _said({**keys, "metadata": _object(metadata)})
    settings = load(config)

    async def work() -> Schedule | None:
        async with opened(settings) as store:
            old = await store.schedule(name) if replace else None
            kind = {} if old is None else {"type": old.type}
            return await store.put_schedule(
                said.row(name, created_by=BY, modified_by=BY if old else None, **kind), replace=replace
            )

    _warn_of(handler, settings.handlers)
    made = finish(work())
    if made is None:
        fail(f"nothing was changed: there is a schedule '{name}' already; --replace changes it")
    _tell(made, f"schedule '{name}' is there", as_json=as_json)


@app.command()
def enable(name: Name, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a schedule make jobs from its next tick on; ticks until now are not made up for."""
    _tell(_switch(name, config, enabled=True), f"schedule '{name}' is enabled", as_json=as_json)


@app.command()
def disable(name: Name, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a schedule make no more jobs until it is enabled."""
    _tell(_switch(name, config, enabled=False), f"schedule '{name}' is disabled", as_json=as_json)


@app.command()
def delete(name: Name, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Delete a schedule. The jobs that it has made stay."""

    async def work(store: "Store") -> Schedule:
        row = await _get(store, name)
        await store.delete_schedule(row.id)
        return row

    _tell(with_store(config, work), f"schedule '{name}' is deleted", as_json=as_json)


@app.command()
def run(name: Name, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make one job of a schedule now, and print its id. It counts as no tick, and needs no enabled schedule."""

    async def work(store: "Store") -> str:
        job_id = await store.run_schedule(name, by=BY)
        return await _unknown(store, name) if job_id is None else job_id

    job_id = with_store(config, work)
    if as_json:
        print_json({"id": job_id})
    else:
        typer.echo(job_id)


@app.command("next")
def next_(
    name: Name,
    count: Annotated[int, typer.Argument(metavar="N", min=1, max=1000, help="How many.")] = 5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the next ticks of a schedule, in UTC and by its own clock."""
    row = with_store(config, lambda store: _get(store, name))
    try:
        ticks = next_ticks(row, datetime.now(UTC), count)
    except ConfigError as error:
        fail("\n".join(error.mistakes))
    if as_json:
        print_json([{"utc": f"{utc:%Y-%m-%dT%H:%M:%SZ}", "local": local.isoformat()} for utc, local in ticks])
        return
    if not row.enabled:
        note(f"schedule '{name}' is disabled: it makes no job at these times")
    zone = row.time_zone or "UTC"
    out().print(
        table(("UTC", zone), [(f"{utc:%Y-%m-%d %H:%M:%S}", local) for utc, local in ticks]) if ticks else "never"
    )


def _said(keys: dict[str, Any]) -> ScheduleConfig:
    """Return what was said as the configuration would take it, or end with every mistake in it."""
    given = {key: value for key, value in keys.items() if value is not None}
    try:
        return ScheduleConfig.model_validate_json(json.dumps(given))
    except ValidationError as error:
        for each in error.errors(include_url=False, include_context=False, include_input=False):
            option = "".join(f"--{str(part).replace('_', '-')}: " for part in each["loc"][:1])
            note(option + each["msg"].removeprefix("Value error, "))
    raise typer.Exit(Code.USAGE)


def _warn_of(handler: str, mapped: Mapping[str, str]) -> None:
    known = plugins.handler_names(mapped)
    if handler not in known:
        near = plugins.did_you_mean(handler, known)
        note(f"no handler '{handler}' is known here{near}; its jobs wait for an instance that knows it")


async def _get(store: "Store", name: str) -> Schedule:
    return await store.schedule(name) or await _unknown(store, name)


async def _unknown(store: "Store", name: str) -> NoReturn:
    near = plugins.did_you_mean(name, [row.name for row in await store.schedules()])
    fail(f"no schedule is named '{name}'{near or '; `gateway schedules list` shows them'}", Code.NOT_FOUND)


def _switch(name: str, config: Any, *, enabled: bool) -> Schedule:
    async def work(store: "Store") -> Schedule:
        return await store.enable_schedule(name, enabled, by=BY) or await _unknown(store, name)

    return with_store(config, work)


def _tell(row: Schedule, text: str, *, as_json: bool) -> None:
    from gateway.admin.rows import schedule_as_json

    if as_json:
        print_json(schedule_as_json(row))
    else:
        note(text)


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        fail("""--metadata needs a JSON object, such as '{"report": "daily"}'""", Code.USAGE)


def _row(row: Schedule) -> Sequence[object]:
    state = Text("enabled", "green") if row.enabled else Text("disabled", "yellow")
    when = row.cron or f"every {row.interval} s"
    zone = f" {row.time_zone}" if row.cron and row.time_zone else ""
    limit = f" of {row.max_executions}" if row.max_executions else ""
    following = None if not row.enabled else _time(row.next_run_at)
    return (row.name, state, f"{when}{zone}", row.handler, following, _time(row.last_run_at),
            f"{row.execution_count}{limit}", row.last_error)  # fmt: skip


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone().isoformat(" ", "seconds")
