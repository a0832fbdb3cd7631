"""What a schedule's next tick was computed for, as text: the database itself compares it with what the row says now.

People change schedules with plain SQL, at any time and in transactions of any length. A row whose `planned` is not its
definition wakes the scheduler at once (`wakeat` is then long ago), so that no change is ever missed and nothing has to
be compared with every row.
"""

from typing import Final

EPOCH: Final = {
    "sqlite": "'1970-01-01 00:00:00.000000'",
    "postgresql": "TIMESTAMP '1970-01-01 00:00:00'",
    "mysql": "TIMESTAMP'1970-01-01 00:00:00'",
}
"""`wakeat` of a row that is to be planned anew."""

_TEXTS: Final = ("timezone", "gap", "overlap", "misfire", "cronexpression")
_NUMBERS: Final = ("misfirelimit", "intervalseconds")
_TIMES: Final = ("startat", "endat")
_OPEN: Final = "maxexecutions <= 0 OR executioncount < maxexecutions"
NEVER: Final = " never"
"""Follows the definition in `planned` once it has no more ticks: `nextrunat` NULL alone may be somebody's UPDATE."""


def _parts(number: str, time: str) -> list[str]:
    return [
        *(number.format(flag) for flag in ("active", "enabled", f"({_OPEN})")),
        *(f"coalesce({name}, '')" for name in _TEXTS),
        *(f"coalesce({number.format(name)}, '')" for name in _NUMBERS),
        *(f"coalesce({time.format(name)}, '')" for name in _TIMES),
    ]


DEFINITION: Final = {
    # PostgreSQL's own text of a time depends on the session, so it may not stand in a generated column.
    "sqlite": " || '|' || ".join(_parts("{}", "{}")),
    "postgresql": " || '|' || ".join(_parts("{}::text", "extract(epoch FROM {})::text")),
    "mysql": f"concat_ws('|', {', '.join(_parts('{}', '{}'))})",
}
_WAKE: Final = """CASE planned WHEN {definition} THEN coalesce(nextrunat, {epoch})
 WHEN {never} THEN NULL ELSE {epoch} END"""


def ended(dialect: str) -> str:
    """Return what `planned` is for a definition that has no more ticks."""
    text = DEFINITION[dialect]
    return f"concat({text}, '{NEVER}')" if dialect == "mysql" else f"{text} || '{NEVER}'"


def wake_at(dialect: str) -> str:
    """Return when the scheduler is to look at the row: NULL is never, long ago is to plan it anew."""
    return _WAKE.format(definition=DEFINITION[dialect], never=ended(dialect), epoch=EPOCH[dialect])
