"""`schedules:` in YAML, and the rows that it becomes."""

from datetime import UTC, datetime
from textwrap import dedent

import pytest

from gateway.config import parse_config
from gateway.config.schedules import rows
from gateway.errors import ConfigError
from gateway.handler import Handler, handler
from gateway.job import MAX_PRIORITY
from gateway.lifecycle import max_retries, timeout

WHOLE = """\
database: {url: "sqlite:///x.db"}
schedules:
  daily report:
    handler: gateway.log
    description: every working day
    cron: 0 8 * * mon-fri
    time_zone: Europe/Berlin
    start_at: 2030-07-01 08:00:00
    end_at: 2030-12-31T23:00:00+01:00
    max_executions: 100
    enabled: false
    condition: SELECT count(*) > 0 FROM queue_jobs
    priority: 7
    max_retries: 1
    timeout: 60
    misfire: all
    misfire_limit: 5
    gap: skip
    overlap: both
    metadata: {deep: {er: [1, a]}}
  heartbeat: {handler: gateway.log, interval: 30}
"""


def written(text, known=None):
    config = parse_config(dedent(text), environment={})
    known = known or {}
    return rows(config.schedules, lambda name: max_retries(known, 3, name), lambda name: timeout(known, 300.0, name))


def mistakes(text):
    with pytest.raises(ConfigError) as caught:
        parse_config(dedent(text), environment={})
    return list(caught.value.mistakes)


def test_every_key_comes_into_the_row():
    report, beat = written(WHOLE).values()
    assert (report.name, report.handler, report.description) == ("daily report", "gateway.log", "every working day")
    assert (report.cron, report.interval, report.time_zone) == ("0 8 * * mon-fri", None, "Europe/Berlin")
    assert (report.start_at, report.end_at) == (
        datetime(2030, 7, 1, 6, tzinfo=UTC),
        datetime(2030, 12, 31, 22, tzinfo=UTC),
    )
    assert (report.max_executions, report.enabled, report.priority) == (100, False, 7)
    assert (report.max_retries, report.timeout, report.misfire, report.misfire_limit) == (1, 60, "all", 5)
    assert (report.gap, report.overlap, report.metadata) == ("skip", "both", {"deep": {"er": [1, "a"]}})
    assert report.condition == "SELECT count(*) > 0 FROM queue_jobs"
    assert (beat.interval, beat.enabled, beat.created_by) == (30, True, "configuration")


def test_retries_and_timeout_are_the_handlers_where_nobody_says():
    async def slow(context):
        pass

    known = {"gateway.log": Handler.of("gateway.log", handler(timeout=1800.5, max_retries=9)(slow))}
    _, beat = written(WHOLE, known).values()
    assert (beat.max_retries, beat.timeout) == (9, 1801)
    _, beat = written(WHOLE).values()
    assert (beat.max_retries, beat.timeout) == (3, 300)


def test_the_digest_follows_what_is_said_and_nothing_else():
    first, again = written(WHOLE), written(WHOLE)
    changed = written(WHOLE.replace("priority: 7", "priority: 8"))
    assert first.keys() == again.keys()
    assert [a == b for a, b in zip(first, changed, strict=True)] == [False, True]


def test_all_mistakes_are_told_with_their_lines():
    told = mistakes(
        f"""\
        database: {{url: "sqlite:///x.db"}}
        schedules:
          a:
            handler: gateway.lok
            cron: R * * * *
            time_zone: Mars/Olympus
          b: {{handler: gateway.log}}
          c: {{handler: gateway.log, cron: "* * * * *", interval: 5}}
          d:
            handler: gateway.log
            cron: 0 0 31 2 *
            condition: DELETE FROM jobs
          e:
            handler: gateway.log
            interval: 0
            misfire: onec
            priority: {MAX_PRIORITY + 1}
            start_at: tomorrow
            retries: 5
          " f": {{handler: gateway.log, interval: 1}}
          g: 5
        """
    )
    assert [line.removeprefix("gateway.yaml:") for line in told] == [
        "4: schedules.a.handler: unknown handler 'gateway.lok', did you mean 'gateway.log'?",
        "5: schedules.a.cron: minute 'r' would be drawn anew by each instance; write the value",
        "6: schedules.a.time_zone: 'Mars/Olympus' is not known; write a name such as Europe/Berlin or UTC",
        "7: schedules.b: cron, interval: give one of them, and not both",
        "8: schedules.c: cron, interval: give one of them, and not both",
        "11: schedules.d.cron: day of the month 31 does not exist in month 2; write at most 29",
        "12: schedules.d.condition: write one SELECT, or one expression",
        "15: schedules.e.interval: must be at least 1",
        "16: schedules.e.misfire: expected 'skip', 'once' or 'all', did you mean 'once'?",
        "17: schedules.e.priority: must be at most 1000000",
        "18: schedules.e.start_at: expected a time, such as 2030-12-31 23:59:59",
        "19: schedules.e.retries: unknown key, did you mean 'max_retries'?",
        "20: schedules. f: a schedule's name is one line of at most 255 characters, without spaces around it",
        "21: schedules.g: expected keys with values",
    ]


def test_a_condition_is_in_the_sql_of_the_database_that_is_asked():
    text = """\
        database: {{url: "sqlite:///x.db"{more}}}
        schedules:
          a: {{handler: gateway.log, interval: 1, condition: "SELECT `enabled` FROM jobs"}}
        """
    assert written(text.format(more=""))
    (told,) = mistakes(text.format(more=', read_only_url: "postgresql://reader@host/db"'))
    assert told.startswith("gateway.yaml:3: schedules.a.condition: it cannot be read as SQL: ")
