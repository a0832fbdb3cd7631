"""Commands that write files: a first configuration, and its schema for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.common import Code, fail, note
from gateway.config import compose, json_schema


def create(
    types: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TYPES]...", help="Connectors to begin with, such as kafka,mqtt; or bridge."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; '-' prints it.")] = Path(
        "gateway.yaml"
    ),
) -> None:
    """Write a configuration to begin with: complete, commented, and it runs as it is.

    Without TYPES it is the built-in default. An existing file is never overwritten.
    """
    text = compose([name for given in types or () for name in given.replace(",", " ").split()])
    if str(output) == "-":
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        fail(f"{output} exists already; choose another name with --output, or remove it first")
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror}")
    note(f"wrote {output}; look through it, then: gateway check --config {output}")


def schema(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, e.g. gateway.schema.json.", show_default="print it"),
    ] = None,
) -> None:
    """Print the JSON Schema of the configuration, with which editors complete and check it.

    Editors that know yaml-language-server find it by the file's first line:
    # yaml-language-server: $schema=./gateway.schema.json
    """
    text = json.dumps(json_schema(), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror}", Code.FAILED)
