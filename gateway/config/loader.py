"""From a file's text to a `Config`, or to all of its mistakes at once."""

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Final

from gateway.config.assembly import Assembly
from gateway.config.document import MAX_BYTES, Mistake, read
from gateway.config.models import Config
from gateway.config.reference import resolve
from gateway.config.sample import DEFAULT, sample
from gateway.errors import ConfigError

VARIABLE: Final = "GATEWAY_CONFIG"
PLACES: Final = ("gateway.yaml", "configs/gateway.yaml")


def load_config(path: FilePath | str | None = None, *, imports: bool = False) -> Config:
    """Read the configuration at `path`, or the first of `$GATEWAY_CONFIG`, `./gateway.yaml`,
    `configs/gateway.yaml` and the default inside the package.

    With `imports`, every handler that it names is imported too. Raises `ConfigError` with all mistakes, each with
    file and line.
    """  # noqa: D205 - the order of places reads best in one sentence
    found = find_config(path)
    if found is None:
        return parse_config(sample(DEFAULT), name="the default configuration", imports=imports)
    try:
        with found.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except OSError as error:
        raise ConfigError([f"{found}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{found}:{line}: is not UTF-8 text"]) from None
    return parse_config(text, name=str(found), folder=found.parent, imports=imports)


def find_config(path: FilePath | str | None = None) -> FilePath | None:
    """Return the file that `load_config` reads; None for the default inside the package."""
    named = path or os.environ.get(VARIABLE)
    if named:
        return FilePath(named)
    return next((place for place in map(FilePath, PLACES) if place.is_file()), None)


def parse_config(
    text: str,
    *,
    name: str = DEFAULT + ".yaml",
    folder: FilePath | None = None,
    environment: Mapping[str, str] | None = None,
    imports: bool = False,
) -> Config:
    """Return what a document says; `name` stands in its mistakes. Raises `ConfigError` and nothing else."""
    root, mistakes = read(text)
    mistakes += resolve(root, os.environ if environment is None else environment, folder or FilePath())
    assembly = Assembly(root)
    config = assembly.config(imports=imports)
    mistakes += assembly.mistakes
    if config is None or mistakes:
        raise ConfigError([f"{name}:{mistake.line}: {mistake}" for mistake in _first_per_place(mistakes)])
    return config


def _first_per_place(mistakes: list[Mistake]) -> list[Mistake]:
    """Leave out what only follows from an earlier mistake at the same place."""
    first = {(mistake.line, mistake.path): mistake for mistake in reversed(mistakes)}
    return sorted(first.values())
