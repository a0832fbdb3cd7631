"""The judge itself: each way in which a ledger can be broken, made by hand, must be found, and named."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import pytest

from tests.system.ledger import Ledger, judge, judge_ticks


def job(id_: str, handler: str = "example.effect", status: int = 3, **more: Any) -> dict[str, Any]:
    row = {"id": id_, "handler": handler, "direction": "inbound", "statusid": status, "payload": None}
    return {**row, "parentjobid": None, "lasterror": None, **more}


def sound() -> dict[str, Any]:
    """Two messages: `a` with an effect, `b` that also made a child `c` and sent a message `m`."""
    return {
        "accepted": {"key-a": "a", "key-b": "b"},
        "jobs": [
            job("a", payload=json.dumps({"key": "key-a"})),
            job("b", "example.publish", payload=json.dumps({"key": "key-b"})),
            job("c", direction="internal", parentjobid="b"),
            job("m", "gateway.publish", direction="outbound", parentjobid="b"),
        ],
        "histories": [{"jobid": id_, "executionid": f"token-{id_}", "statusid": 3} for id_ in "abcm"],
        "effects": [{"jobid": id_, "token": f"token-{id_}"} for id_ in "abc"],
        "received": ["m", "m"],
        "children": {"example.publish": 2},
    }


def kinds(parts: dict[str, Any]) -> set[str]:
    return {violation.kind for violation in judge(Ledger(**parts))}


def test_a_sound_ledger_has_no_violation() -> None:
    assert judge(Ledger(**sound())) == []


def test_a_failed_attempt_in_the_history_is_no_violation() -> None:
    parts = sound()
    parts["histories"].append({"jobid": "a", "executionid": "token-0", "statusid": 5})
    assert judge(Ledger(**parts)) == []


def also_done(parts: dict[str, Any], extra: dict[str, Any]) -> None:
    """Add a job with all the traces of a proper end."""
    parts["jobs"].append(extra)
    parts["histories"].append({"jobid": extra["id"], "executionid": "t", "statusid": 3})
    parts["effects"].append({"jobid": extra["id"], "token": "t"})


Break: TypeAlias = Callable[[dict[str, Any]], object]

BREAKS: dict[str, tuple[str, Break]] = {
    "an accepted message without a job": ("lost", lambda p: p["accepted"].update(x="x")),
    "an effect twice": ("doubled", lambda p: p["effects"].append(p["effects"][0])),
    "a key with two jobs": ("doubled", lambda p: also_done(p, {**p["jobs"][0], "id": "a2"})),
    "a child twice": ("doubled", lambda p: also_done(p, job("c2", direction="internal", parentjobid="b"))),
    "a completed job without its effect": ("torn", lambda p: p["effects"].pop(0)),
    "a completed job without a history": ("torn", lambda p: p["histories"].pop(0)),
    "a success history twice": ("torn", lambda p: p["histories"].append({**p["histories"][0], "executionid": "t"})),
    "an effect of a job that failed": ("torn", lambda p: p["jobs"][0].update(statusid=4)),
    "an effect of another attempt": ("torn", lambda p: p["effects"][0].update(token="stale")),
    "an effect without a job": ("torn", lambda p: p["effects"].append({"jobid": "x", "token": "t"})),
    "a child that did not commit with its parent": ("torn", lambda p: p["jobs"][2].update(parentjobid=None)),
    "a message of a rolled-back attempt": ("aborted", lambda p: p["received"].append("ghost")),
    "a message that never arrived": ("undelivered", lambda p: p["received"].clear()),
    "a job left behind": ("orphan", lambda p: p["jobs"].append(job("p", status=2))),
    "a job that failed": ("failed", lambda p: p["jobs"].append(job("f", status=4))),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_ledger_is_found(name: str) -> None:
    kind, damage = BREAKS[name]
    parts = sound()
    damage(parts)
    assert kind in kinds(parts)


def test_a_tick_that_is_there_twice_or_not_at_all_is_found() -> None:
    ticks = [datetime(2026, 3, 29, 0, 59, 50, tzinfo=UTC) + timedelta(seconds=2 * n) for n in range(20)]
    assert judge_ticks(ticks, every=2) == []
    assert [each.kind for each in judge_ticks([*ticks, ticks[7]], every=2)] == ["doubled"]
    assert [each.kind for each in judge_ticks([*ticks[:3], *ticks[5:]], every=2)] == ["lost", "lost"]
