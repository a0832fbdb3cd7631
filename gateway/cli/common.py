"""What all commands share: options, exit codes, output that a person likes to read, and the store.

The store, and what belongs to it, is imported where a command needs it: it takes longer than all the rest.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.config import Config, load_config
from gateway.errors import MigrationError

if TYPE_CHECKING:
    from gateway.store import Store

T = TypeVar("T")

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        show_default="$GATEWAY_CONFIG, ./gateway.yaml, configs/gateway.yaml, else a built-in default",
        help="Configuration file.",
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class Code(IntEnum):
    """Exit codes that scripts can use."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3


def load(path: Path | None, *, imports: bool = False) -> Config:
    """Return the configuration. With `imports`, the handlers' modules are looked for in the working folder too."""
    here = str(Path.cwd())
    if imports and here not in sys.path:
        sys.path.append(here)
    return load_config(path, imports=imports)


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    return asyncio.run(coroutine)


def missing_file(config: Config) -> Path | None:
    """Return the SQLite file that the configuration names, if it is not there yet."""
    from gateway.store.url import engine_url

    url = engine_url(config.database.url.get_secret_value())
    file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    return None if file is None or file.exists() else file


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator["Store"]:
    """Open the database as an operator does: nothing is claimed, no heartbeat says that an instance is here.

    Raises `MigrationError` for an SQLite file that does not exist, instead of leaving an empty one behind.
    """
    from gateway.store import Store

    missing = missing_file(config)
    if missing is not None:
        raise MigrationError(f"there is no file {missing} yet; `gateway run` or `gateway migrate` creates it")
    store = await Store.open(
        config.database.url.get_secret_value(),
        instance=f"{config.gateway.name}-command",
        lease=config.jobs.lease,
        statement_timeout=config.database.statement_timeout,
        pool_size=1,
        present=False,
    )
    try:
        yield store
    finally:
        await store.close()


def with_store(path: Path | None, work: Callable[["Store"], Awaitable[T]]) -> T:
    """Return what `work` makes of the configured database's store."""
    config = load(path)

    async def run() -> T:
        async with opened(config) as store:
            return await work(store)

    return finish(run())


def out() -> Console:
    """Return the console for results: as wide as the terminal, wider where no person reads."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def note(text: str) -> None:
    """Tell the user something beside the results."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(clean(text), markup=False)


def fail(text: str, code: Code = Code.FAILED) -> NoReturn:
    """End the command with an error that says what to do."""
    note(text)
    raise typer.Exit(code)


def print_json(value: object) -> None:
    """Print JSON as it is, without colours or line breaks that a terminal would add."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not _is_unicode()) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a plain table; None is shown as nothing."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column in ("id", "status"))
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
    return made


def clean(value: object) -> str:
    """Return a value as text that cannot steer the terminal: control and direction characters are spelled out."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
