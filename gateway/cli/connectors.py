"""`gateway connectors`: which there are, and what their keys mean."""

from typing import Annotated, Any, TypeAlias
from urllib.parse import quote

import typer
from rich.text import Text

from gateway import plugins
from gateway.cli.ask import ask
from gateway.cli.common import Code, ConfigOption, JsonOption, fail, finish, load, note, out, print_json, table
from gateway.config import Config, KeyDoc, describe, samples
from gateway.connector import Connector
from gateway.errors import PluginNotFound
from gateway.message import Json

app = typer.Typer(name="connectors", help="List the installed connectors, explain the keys of one, pause and resume.")

NameArgument: TypeAlias = Annotated[str, typer.Argument(help="Name of a connector in the configuration.")]


@app.callback(invoke_without_command=True)
def connectors(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the installed connectors; `gateway connectors show NAME` explains the keys of one."""
    if context.invoked_subcommand is not None:
        return
    rows = [_row(name) for name in plugins.names(plugins.CONNECTORS)]
    if as_json:
        print_json(rows)
    else:
        out().print(table(("type", "guarantee", "about"), [(r["type"], r["guarantee"], r["about"]) for r in rows]))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Type of the connector, such as http.")], as_json: JsonOption = False
) -> None:
    """Explain every key of a connector's section: its type, default and meaning."""
    kind = plugins.connector_class(name)
    keys = describe(kind.config_class)
    if as_json:
        print_json({"type": name, "guarantee": kind.guarantee, "keys": [_as_json(key) for key in keys]})
        return
    console = out()
    console.print(Text.assemble((name, "bold"), f": {_about(kind)}"))
    console.print(f"received messages are stored {kind.guarantee}\n")
    console.print(table(("key", "type", "default", "meaning"), map(_cells, keys)))
    if name in samples():
        console.print(f"\na file to begin with: gateway create {name}")


@app.command()
def pause(
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why, shown with its state.")] = "paused by an operator",
    config: ConfigOption = None,
) -> None:
    """Pause a connector of the running gateway: it disconnects, takes nothing in and sends nothing out.

    What it holds unacknowledged stays at its source, what is published waits in the database. It lasts until
    `gateway connectors resume`, or until that process starts anew; other instances go on.
    """
    _tell(load(config), name, "pause", {"reason": reason})


@app.command()
def resume(name: NameArgument, config: ConfigOption = None) -> None:
    """Let a paused connector of the running gateway connect again."""
    _tell(load(config), name, "resume", None)


def _tell(config: Config, name: str, what: str, body: Json | None) -> None:
    answer = finish(
        ask(config.gateway.admin, f"/api/connectors/{quote(name, safe='')}/{what}", method="POST", body=body)
    )
    if answer is None:
        fail("no gateway answers on the admin address of this configuration")
    if answer.status == 404:
        fail(
            f"the gateway has no connector named '{name}'{plugins.did_you_mean(name, config.connectors)}",
            Code.NOT_FOUND,
        )
    if answer.status != 200:
        fail(f"the gateway refused: {answer.fault}")
    reason = f": {answer.body['reason']}" if answer.body.get("reason") else ""
    note(f"connector {name} is {answer.body['state']}{reason}")


def _row(name: str) -> dict[str, str | None]:
    try:
        kind = plugins.connector_class(name)
    except PluginNotFound as error:
        return {"type": name, "guarantee": None, "about": str(error)}
    return {"type": name, "guarantee": kind.guarantee, "about": _about(kind)}


def _about(kind: type[Connector[Any]]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _cells(key: KeyDoc) -> tuple[Text, str, str | Text, str]:
    default = Text("required", "bold") if key.required else key.default or ""
    return Text(key.name, "cyan"), key.type, default, key.description


def _as_json(key: KeyDoc) -> dict[str, object]:
    return {name: getattr(key, name) for name in ("name", "type", "required", "default", "description")}
