"""PostgreSQL: many rows as one set, in as few arrays as can be.

What is the same in every row goes as one value: an array costs both sides time for each row.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

Fields = tuple[tuple[str, str], ...]
"""Names and PostgreSQL types."""


def spread(fields: Fields, rows: Sequence[Sequence[Any]], always: frozenset[str]) -> tuple[str, list[Any]]:
    """Return `(SELECT …)` that gives the rows under the fields' names, in order, and its arguments from `$1` on.

    `always` names fields that are hardly ever equal: they are arrays without being compared, so that there are few
    different texts. A single row has no arrays at all, so that its statement is planned for one row.
    """
    if len(rows) == 1:
        return _text(fields, (False,) * len(fields)), list(rows[0])
    arguments: list[Any] = []
    varies = []
    for (name, _), values in zip(fields, zip(*rows, strict=True), strict=True):
        first = values[0]
        varying = name in always or values.count(first) != len(values)
        varies.append(varying)
        arguments.append(values if varying else first)
    if not any(varies):
        varies[0], arguments[0] = True, [row[0] for row in rows]
    return _text(fields, tuple(varies)), arguments


@cache
def _text(fields: Fields, varies: tuple[bool, ...]) -> str:
    numbered = [(n, name, kind, array) for n, ((name, kind), array) in enumerate(zip(fields, varies, strict=True), 1)]
    scalars = [f"${n}::{kind} AS {name}" for n, name, kind, array in numbered if not array]
    arrays = [(f"${n}::{kind}[]", name) for n, name, kind, array in numbered if array]
    if not arrays:
        return f"(SELECT {', '.join(scalars)})"
    names = ", ".join(name for _, name in arrays)
    source = f"unnest({', '.join(value for value, _ in arrays)}) AS a({names})"
    return f"(SELECT {', '.join([names, *scalars])} FROM {source})"
