"""The named points of the program: which there are, and how each is reached."""

import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

import pytest

Kind: TypeAlias = Literal["sqlite", "postgresql"]

_ROOT = Path(__file__).parent.parent.parent
_SOURCES = [path.read_text() for name in ("gateway", "connectors") for path in (_ROOT / name).rglob("*.py")]
VERBS: Final = frozenset(verb for source in _SOURCES for verb in re.findall(r"\b_run\(\s*\"(\w+)\"", source))
"""What the store does, each in a transaction of its own, between two points."""
ALL: Final = frozenset(
    {name for source in _SOURCES for name in re.findall(r"\breach\(\"([\w.]+)\"\)", source)}
    | {f"{verb}.{moment}" for verb in VERBS for moment in ("start", "committed")}
)
BY_COMMAND: Final = frozenset({"position.start", "position.committed"})
"""No running gateway gets there: the command that sets a position is a process of its own, and does nothing else."""
AT_START: Final = frozenset({"share.start", "share.committed"})
"""Only a gateway with a cache gets there, before it does anything else, and whoever comes later does the same again."""
ELSEWHERE: Final[dict[Kind, frozenset[str]]] = {
    "sqlite": frozenset({"pool.before_commit", "pool.after_commit", "single.before_commit", "single.after_commit"}),
    "postgresql": frozenset({"writer.before_commit", "writer.after_commit"}),
}
"""Points that only the other database has."""


def points_of(group: str, database: Kind) -> list[str]:
    """Return the points whose names begin with that word."""
    return sorted(name for name in ALL - BY_COMMAND - AT_START - ELSEWHERE[database] if name.partition(".")[0] == group)


def cases(*databases: Kind) -> list[object]:
    """Return what to parametrize `a_url` and `group` with: each database with each group of its points."""
    return [
        pytest.param(
            database, group, id=f"{database}-{group}", marks=() if database == "sqlite" else pytest.mark.database
        )
        for database in databases
        for group in sorted({name.partition(".")[0] for name in ALL})
        if points_of(group, database)
    ]


def route(point: str) -> list[str]:
    """Return the points to reach in order, so that the last one is reached when it is about something."""
    group, _, moment = point.partition(".")
    if group in ("pool", "writer"):
        return ["finish.written", point]
    if moment == "committed" and f"{group}.written" in ALL:
        return [f"{group}.written", point]
    return [point]
