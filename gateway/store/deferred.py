"""Deferred writes of many jobs as few statements: equal ones become one batch."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.store.script import Deferred

if TYPE_CHECKING:
    from sqlalchemy.sql.base import Executable


def merge(writes: Sequence[Sequence[Deferred]]) -> list[Deferred]:
    """Return the writes of several jobs as one list in which each job's own order is kept.

    Equal statements with parameters are joined as long as no job would see its writes change places.
    """
    merged: list[tuple[Executable, list[Mapping[str, Any]]]] = []
    places: dict[Hashable, list[int]] = {}
    for job in writes:
        last = 0
        for write in job:
            key = _key(write)
            place = None if key is None else next((n for n in places.get(key, ()) if n >= last), None)
            if place is None:
                place = len(merged)
                merged.append((write.statement, []))
                if key is not None:
                    places.setdefault(key, []).append(place)
            merged[place][1].extend(write.parameters)
            last = place
    return [Deferred(statement, parameters) for statement, parameters in merged]


def _key(write: Deferred) -> Hashable | None:
    """Return what equal statements have in common; None for one that has to run by itself.

    Without parameters a statement is complete, and cannot become a batch.
    """
    if not write.parameters or not all(write.parameters):
        return None
    cached = write.statement._generate_cache_key() if hasattr(write.statement, "_generate_cache_key") else None  # noqa: SLF001 - what SQLAlchemy itself tells equal statements by
    if cached is None:
        return id(write.statement)
    values = tuple(bind.value for bind in cached.bindparams)
    columns = tuple(write.parameters[0])
    try:
        hash(values)
    except TypeError:
        return id(write.statement)
    return (cached.key, values, columns)
