"""From costs to lines: the median round of each, with the median of its ratios to the floor of the same round."""

import json
import statistics
from collections.abc import Mapping, Sequence

from tests.benchmarks.meter import Cost

Row = dict[str, object]


def rows(rounds: Mapping[str, Sequence[Cost]], floor: str) -> list[Row]:
    """Return a row for each `<action> <kind>`; `<action> <floor>` is what the others are told as a ratio to."""
    found: list[Row] = []
    for what, costs in rounds.items():
        bare = rounds[f"{what.rpartition(' ')[0]} {floor}"]
        ratios = [cost.rate / against.rate for cost, against in zip(costs, bare, strict=True)]
        cost = sorted(costs, key=lambda cost: cost.rate)[len(costs) // 2]
        found.append(
            {
                "what": what,
                "per_second": round(cost.rate),
                "client_us": round(cost.micros(cost.client)),
                "server_us": round(cost.micros(cost.server)),
                "ratio_to_floor": round(statistics.median(ratios), 3),
            }
        )
    return found


def show(title: str, found: Sequence[Row], *, as_json: bool) -> None:
    """Print a table, or one JSON object per line."""
    if as_json:
        print("\n".join(json.dumps({"of": title, **row}) for row in found))
        return
    print(f"\n{title:<20}{'per s':>9}{'client us':>11}{'server us':>11}{'× floor':>9}")
    for row in found:
        print(
            f"{row['what']:<20}{row['per_second']:>9}{row['client_us']:>11}{row['server_us']:>11}"
            f"{row['ratio_to_floor']:>9}"
        )
