"""`gateway run` and `migrate`."""

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.common import ConfigOption, finish, load, note
from gateway.stop import StopSignal


class Level(StrEnum):
    """What is logged at least."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def run(
    context: typer.Context,
    config: ConfigOption = None,
    log_level: Annotated[Level, typer.Option(help="What is logged at least.")] = Level.INFO,
    log_json: Annotated[
        bool | None,
        typer.Option("--log-json/--log-text", help="How it is logged.", show_default="text on a terminal, else JSON"),
    ] = None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C.

    The first signal stops the intake and lets running jobs finish, for at most gateway.grace seconds; a second one
    ends at once. Neither loses a job. An SQLite file is created and migrated by itself; other databases want
    `gateway migrate` first.
    """
    settings = load(config, imports=True)
    for line in settings.notes:
        note(line)
    from gateway.app import Gateway
    from gateway.logs import logged

    stop = context.obj if isinstance(context.obj, StopSignal) else StopSignal()
    with logged(as_json=log_json, level=log_level, secrets=settings.secrets()):
        gateway = Gateway.from_config(settings)
        stop.begin()
        finish(gateway.serve(stop))


def migrate(config: ConfigOption = None) -> None:
    """Bring the database's schema to this program's version. Safe to repeat, and to run from many places at once."""
    from gateway.store.migrate import migrate as migrate_store

    applied = finish(migrate_store(load(config).database.url.get_secret_value()))
    note(f"applied {', '.join(applied)}" if applied else "nothing to do, the schema is up to date")
