"""`schedules:`: what is wrong beyond single keys, and the rows that it becomes."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from gateway.errors import ConfigError
from gateway.job import Schedule
from gateway.schedules import ScheduleConfig

if TYPE_CHECKING:
    from gateway.config.models import DatabaseConfig

CREATED_BY: Final = "configuration"


def wrong(schedule: ScheduleConfig, database: "DatabaseConfig | None") -> Iterator[tuple[str, str]]:
    """Return what is wrong in a schedule that no single key tells, each with the key it is about, else ''.

    `database`: the section of that name, whose SQL a condition is; None if that is mistaken itself.
    """
    from gateway.store.condition import checked, family
    from gateway.store.turns import check

    found: list[str] = []
    try:
        check(schedule.row(""))
    except ConfigError as error:
        found += error.mistakes
    if schedule.condition is not None and database is not None:
        try:
            checked(schedule.condition, family((database.read_only_url or database.url).get_secret_value()))
        except ConfigError as error:
            found += error.mistakes
    for mistake in found:
        key, _, text = mistake.partition(": ")
        yield (key, text) if key in ScheduleConfig.model_fields else ("", mistake)


def rows(
    schedules: Mapping[str, ScheduleConfig], max_retries: Callable[[str], int], timeout: Callable[[str], float]
) -> dict[str, Schedule]:
    """Return all rows, each under a digest of what the configuration says; the numbers are by handler."""
    made = [
        each.row(name, max_retries=max_retries(each.handler), timeout=timeout(each.handler), created_by=CREATED_BY)
        for name, each in schedules.items()
    ]
    return {_digest(row): row for row in made}


def _digest(row: Schedule) -> str:
    said = {name: value for name, value in asdict(row).items() if name != "id"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
