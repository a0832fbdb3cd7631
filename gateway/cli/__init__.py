"""The command line. Its exit codes: 0 done, 1 failed, 2 a mistake in the call or the configuration, 3 not found."""

import os
import sys
from collections.abc import Callable

import typer

from gateway.cli import check, connectors, files, jobs, positions, schedules, send, service, status
from gateway.cli.common import Code, note
from gateway.errors import ConfigError, GatewayError, PluginNotFound
from gateway.stop import StopSignal

app = typer.Typer(
    name="gateway",
    epilog="Exit codes: 0 done, 1 failed, 2 a mistake in the call or the configuration, 3 not found.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _before(context: typer.Context) -> None:
    """Messages from brokers become durable jobs that run exactly once.

    A first gateway: [bold]gateway run[/], then post a message to http://127.0.0.1:8080/messages/hello and look at it
    with [bold]gateway jobs list[/].
    """
    if context.invoked_subcommand != "run" and isinstance(context.obj, StopSignal):
        context.obj.uninstall()


app.command(rich_help_panel="Run")(service.run)
app.command(rich_help_panel="Run")(check.check)
app.command(rich_help_panel="Run")(service.migrate)
app.command(rich_help_panel="Configure")(files.create)
app.command(rich_help_panel="Configure")(files.schema)
app.add_typer(connectors.app, rich_help_panel="Configure")
app.add_typer(jobs.app, rich_help_panel="Look and act")
app.add_typer(schedules.app, rich_help_panel="Look and act")
app.add_typer(positions.app, rich_help_panel="Look and act")
app.command(rich_help_panel="Look and act")(send.send)
app.command(rich_help_panel="Look and act")(status.status)


def main(stop: StopSignal) -> int:
    """Run one command and return its exit code; what the user can mend is printed without a traceback."""
    try:
        return _end_of(lambda: app(obj=stop))
    except ConfigError as error:
        for mistake in error.mistakes:
            note(mistake)
        return Code.USAGE
    except PluginNotFound as error:
        note(str(error))
        return Code.NOT_FOUND
    except GatewayError as error:
        note(str(error))
        return Code.FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.OK


def _end_of(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else Code.OK if exit_.code is None else Code.FAILED
    return Code.OK
