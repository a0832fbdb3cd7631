"""`gateway positions`: how far each source has been stored, and to let one go on elsewhere."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gateway import plugins
from gateway.cli.ask import ask
from gateway.cli.common import Code, ConfigOption, JsonOption, fail, finish, load, note, opened, out, print_json, table
from gateway.config import Config
from gateway.message import Json

if TYPE_CHECKING:
    from gateway.store import InstanceRow, SourcePosition, Store

app = typer.Typer(name="positions", help="List and set how far each source has been stored.", no_args_is_help=True)

_QUIET = ("paused", "stopped")
"""States in which a connector receives nothing."""


@app.command("list")
def list_positions(
    connector: Annotated[str | None, typer.Argument(help="Only those of this connector.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the stored positions: `next` is the first offset that is not in the database.

    Works whether the gateway runs or not, and whichever instance stored them.
    """
    rows = finish(_stored(load(config), connector))
    if as_json:
        print_json([_as_json(row) for row in rows])
        return
    columns = ("connector", "topic", "partition", "next", "stored", "cluster")
    shown = [(r.connector, r.topic, r.partition, r.next_offset, _time(r), r.cluster) for r in rows]
    out().print(table(columns, shown) if shown else "none yet")


@app.command("set")
def set_position(
    connector: Annotated[str, typer.Argument(help="Name of a connector in the configuration.")],
    topic: Annotated[str, typer.Option("--topic", "-t", help="Topic, or event of a hub.")],
    offset: Annotated[int, typer.Option("--offset", "-o", min=0, max=2**63 - 1, help="First offset to read.")],
    partition: Annotated[int, typer.Option("--partition", "-p", min=0, max=2**31 - 1, help="Its partition.")] = 0,
    cluster: Annotated[
        str | None, typer.Option(help="Id of the cluster, if none or several are stored; `gateway check` shows it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Although the connector may be running.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a source go on elsewhere: forward leaves messages out, back receives them, and makes their jobs, again.

    Refused while a gateway that may run the connector is alive: any of this database, but not the one that answers on
    the admin address of this configuration if the connector is paused there (`gateway connectors pause`). With
    --force a connector that runs goes on at the new offset too, but only from its next message on, and what it had
    already received before may be stored first.
    """
    from gateway.store import SourcePosition

    settings = load(config)
    _see_that_it_can_be_set(settings, connector)

    async def work() -> tuple["SourcePosition", int | None]:
        async with opened(settings) as store:
            if not force:
                await _see_that_it_rests(settings, store, connector)
            known = await store.all_positions(connector)
            at = SourcePosition(
                connector=connector, cluster=cluster or _cluster(known, topic), topic=topic, partition=partition,
                next_offset=offset,
            )  # fmt: skip
            return at, await store.set_position(at)

    at, before = finish(work())
    if as_json:
        print_json({**_as_json(at), "before": before})
    else:
        was = "there was none" if before is None else f"it was {before}"
        note(f"{connector} goes on with {topic}[{partition}] at offset {offset} ({was})")


async def _stored(config: Config, connector: str | None) -> Sequence["SourcePosition"]:
    async with opened(config) as store:
        return await store.all_positions(connector)


def _see_that_it_can_be_set(config: Config, connector: str) -> None:
    if connector not in config.connectors:
        near = plugins.did_you_mean(connector, config.connectors)
        fail(f"no connector is named '{connector}'{near}", Code.NOT_FOUND)
    kind = config.connectors[connector].type
    if not plugins.connector_class(kind).seekable:
        fail(f"a connector of type {kind} has no position that could be set: its broker keeps it", Code.USAGE)


async def _see_that_it_rests(config: Config, store: "Store", connector: str) -> None:
    """Fail while a process may be receiving from it."""
    running = await store.running()
    if not running:
        return
    resting = await _where_it_rests(config, connector)
    busy = [row for row in running if row.id != resting]
    if busy:
        fail(
            f"nothing was changed: {'; '.join(map(_told, busy))} may be receiving from '{connector}' right now. Stop "
            f"every gateway on this database, or pause the connector of the only one (gateway connectors pause "
            f"{connector}); --force sets it all the same"
        )


async def _where_it_rests(config: Config, connector: str) -> str | None:
    """Return the id of the instance that answers on the admin address, if the connector receives nothing there."""
    views = await _listed(config, "/api/connectors")
    if not views or any(view["name"] == connector and view["state"] not in _QUIET for view in views):
        return None
    return next((str(row["id"]) for row in await _listed(config, "/api/instances") if row["self"]), None)


async def _listed(config: Config, path: str) -> list[Json]:
    """Return the list that a running gateway answers with; an empty one if none answers."""
    answer = await ask(config.gateway.admin, path)
    return answer.body if answer is not None and answer.status == 200 and isinstance(answer.body, list) else []


def _told(row: "InstanceRow") -> str:
    return f"{row.name} (pid {row.pid} on {row.host}, seen {max(0.0, row.age):.0f} s ago)"


def _cluster(known: Sequence["SourcePosition"], topic: str) -> str:
    """Return the cluster that is meant when none is given."""
    found = {row.cluster for row in known if row.topic == topic} or {row.cluster for row in known}
    if not found:
        fail("no position of this connector is stored yet: say --cluster, as `gateway check` shows it", Code.USAGE)
    if len(found) > 1:
        fail(f"positions of several clusters are stored, say which: --cluster {' or '.join(sorted(found))}", Code.USAGE)
    return found.pop()


def _as_json(row: "SourcePosition") -> dict[str, object]:
    from gateway.admin.rows import moment

    return {
        "connector": row.connector,
        "cluster": row.cluster,
        "topic": row.topic,
        "partition": row.partition,
        "topicid": row.topic_id,
        "nextoffset": row.next_offset,
        "updatedat": None if row.updated_at is None else moment(row.updated_at),
    }


def _time(row: "SourcePosition") -> str:
    return "" if row.updated_at is None else row.updated_at.astimezone().isoformat(" ", "milliseconds")
