"""`gateway schedules`, as it is typed."""

import json
import sqlite3
import sys

import pytest

from gateway.cli import main
from gateway.stop import StopSignal

CONFIG = """
database: {url: "sqlite:///jobs.db"}
gateway: {admin: {listen: "127.0.0.1:1"}}
handlers: {report.daily: "json:dumps"}
"""


@pytest.fixture
def gateway(tmp_path, monkeypatch, capsys):
    """Run one command in this process; return its code, its output (JSON if asked for) and what it notes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "gateway.yaml").write_text(CONFIG)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gateway", *arguments])
        capsys.readouterr()
        code = main(StopSignal())
        printed, noted = capsys.readouterr()
        return code, json.loads(printed) if "--json" in arguments and code == 0 else printed, noted.strip()

    assert run("migrate")[0] == 0
    return run


DAILY = ("schedules", "create", "daily", "--handler", "report.daily", "--cron", "30 2 * * *")


def test_a_schedule_is_created_with_all_its_keys_and_found_again(gateway):
    options = {
        "--time-zone": "Europe/Berlin", "--start-at": "2030-03-30T12:00:00", "--end-at": "2031-01-01T00:00:00Z",
        "--max-executions": "9", "--condition": "1 = 1", "--priority": "5", "--max-retries": "1", "--timeout": "60",
        "--misfire": "all", "--misfire-limit": "4", "--gap": "skip", "--overlap": "both", "--metadata": '{"a": 1}',
        "--description": "d",
    }  # fmt: skip
    flat = [word for pair in options.items() for word in pair]

    code, made, noted = gateway(*DAILY, *flat, "--disabled", "--json")

    assert (code, noted) == (0, "")
    assert {
        "name": "daily", "handler": "report.daily", "cronexpression": "30 2 * * *", "intervalseconds": None,
        "timezone": "Europe/Berlin", "startat": "2030-03-30T11:00:00Z", "endat": "2031-01-01T00:00:00Z",
        "maxexecutions": 9, "condition": "1 = 1", "priority": 5, "maxretries": 1, "timeout": 60, "misfire": "all",
        "misfirelimit": 4, "gap": "skip", "overlap": "both", "metadata": {"a": 1}, "description": "d",
        "enabled": False, "createdby": "command",
    }.items() <= made.items()  # fmt: skip
    assert gateway("schedules", "show", "daily", "--json")[1] == made
    assert gateway("schedules", "list", "--disabled", "--json")[1] == [made]
    shown = gateway("schedules", "list")[1]
    assert all(text in shown for text in ("30 2 * * * Europe/Berlin", "disabled", "0 of 9", "Retry Failed Jobs"))
    assert "Europe/Berlin" in gateway("schedules", "show", made["id"])[1]


def test_a_taken_name_is_changed_only_if_told_so(gateway):
    assert gateway(*DAILY)[0] == 0

    code, _, noted = gateway(*DAILY, "--priority", "3")
    assert (code, noted) == (1, "nothing was changed: there is a schedule 'daily' already; --replace changes it")
    code, changed, _ = gateway(*DAILY, "--priority", "3", "--replace", "--json")
    assert (code, changed["priority"], changed["modifiedby"]) == (0, 3, "command")
    system = ("schedules", "create", "Retry Failed Jobs", "--handler", "system.retry.failed", "--interval", "60")
    assert gateway(*system, "--replace", "--json")[1]["typeid"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--interval", "5"], "cron, interval: give one of them, and not both"),
        (["--priority", "99999999"], "--priority: Input should be less than or equal to 1000000"),
        (["--time-zone", "Europe/Berlni"], "time_zone: 'Europe/Berlni' is not known"),
        (["--start-at", "tomorrow"], "--start-at: Input should be a valid datetime"),
        (["--metadata", "[1]"], "--metadata: Input should be an object"),
        (["--metadata", "{"], "--metadata needs a JSON object"),
    ],
)
def test_a_mistake_creates_nothing(gateway, options, says):
    code, _, noted = gateway(*DAILY, *options)

    assert (code, gateway("schedules", "show", "daily")[0]) == (2, 3)
    assert says in noted


def test_a_handler_that_nobody_here_knows_is_warned_of(gateway):
    code, _, noted = gateway("schedules", "create", "x", "--handler", "report.dayly", "--interval", "5")

    assert code == 0
    assert "no handler 'report.dayly' is known here, did you mean 'report.daily'?" in noted


@pytest.mark.parametrize("command", ["show", "run", "enable", "disable", "delete", "next"])
def test_an_unknown_name_suggests_a_known_one(gateway, command):
    assert gateway(*DAILY)[0] == 0

    code, printed, noted = gateway("schedules", command, "dialy")

    assert (code, printed) == (3, "")
    assert noted == "no schedule is named 'dialy', did you mean 'daily'?"


def test_a_schedule_is_switched_run_and_deleted(gateway):
    gateway(*DAILY)

    assert gateway("schedules", "disable", "daily", "--json")[1]["enabled"] is False
    job_id = gateway("schedules", "run", "daily")[1].strip()
    job = gateway("jobs", "show", job_id, "--json")[1]
    assert (job["handler"], job["typeid"], job["createdby"]) == ("report.daily", 2, "command")
    assert gateway("schedules", "enable", "daily", "--json")[1]["enabled"] is True
    assert gateway("schedules", "delete", "daily")[::2] == (0, "schedule 'daily' is deleted")
    assert gateway("schedules", "show", "daily")[0] == 3
    assert gateway("jobs", "show", job_id)[0] == 0


def test_the_next_ticks_are_printed_in_utc_and_by_the_schedules_own_clock(gateway):
    gateway(*DAILY, "--time-zone", "Europe/Berlin", "--start-at", "2030-03-30T12:00:00", "--disabled")

    code, told, _ = gateway("schedules", "next", "daily", "2", "--json")
    _, shown, noted = gateway("schedules", "next", "daily", "2")

    assert (code, told) == (0, [
        {"utc": "2030-03-31T01:00:00Z", "local": "2030-03-31T03:00:00+02:00"},
        {"utc": "2030-04-01T00:30:00Z", "local": "2030-04-01T02:30:00+02:00"},
    ])  # fmt: skip
    assert "2030-04-01 00:30:00" in shown
    assert "2030-04-01 02:30:00+02:00" in shown
    assert "is disabled" in noted
    with sqlite3.connect("jobs.db") as database:
        database.execute("UPDATE jobs SET cronexpression = 'by hand' WHERE name = 'daily'")
    database.close()
    code, _, noted = gateway("schedules", "next", "daily")
    assert (code, noted[:5]) == (1, "cron:")
