import io
import json
import logging

import pytest

from gateway import telemetry
from gateway.errors import StoreUnavailable
from gateway.logs import escaped, logged


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_where_nobody_looks():
    stream = io.StringIO()

    with logged(stream):
        telemetry.emit("job.finished", job="1", handler="h", attempt=1, status="completed", error=None, seconds=0.5)

    [line] = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "job.finished", "level": "info", "job": "1", "handler": "h", "attempt": 1, "status": "completed",
        "seconds": 0.5,
    }  # fmt: skip


def test_a_terminal_gets_colours_and_no_json():
    stream = Terminal()

    with logged(stream):
        telemetry.emit("gateway.started", instance="one", version="1")

    assert "\x1b[" in stream.getvalue()
    assert "gateway.started" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_no_text_forges_a_line_or_commands_a_terminal(stream):
    hostile = "a\r\nlevel=info\x1b[2J\u202eevil\u2028\x85\ud800\x00"

    with logged(stream):
        telemetry.emit("outbox.failed", connector=hostile, job=hostile, error=ValueError(hostile), permanent=False)

    text = stream.getvalue()
    assert text.count("\n") == 1
    assert not set(hostile[:2] + "\u202e\u2028\x85\ud800\x00") - {"a"} & set(text.rstrip("\n"))
    assert "\x1b[2J" not in text


def test_secrets_never_appear():
    stream = io.StringIO()

    with logged(stream, secrets=["hunter2", "hunter2-longer"]):
        telemetry.emit("connector.state", connector="a", state="failed", reason="cannot log in with hunter2-longer")
        logging.getLogger("library").error("password %s", "hunter2")

    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("***") == 2


def test_the_same_trouble_is_told_once_for_a_while(monkeypatch):
    stream = io.StringIO()
    now = [1000.0]
    monkeypatch.setattr("gateway.logs.monotonic", lambda: now[0])

    with logged(stream):
        for _ in range(50):
            telemetry.emit("store.unavailable", error=StoreUnavailable("away"))
        telemetry.emit("store.unavailable", error=StoreUnavailable("another reason"))
        now[0] += 31
        telemetry.emit("store.unavailable", error=StoreUnavailable("away"))

    told = lines(stream)
    assert [line["error"] for line in told] == ["away", "another reason", "away"]
    assert told[-1]["repeated"] == 49


def test_an_unexpected_error_comes_with_its_traceback_and_an_expected_one_without():
    stream = io.StringIO()

    with logged(stream):
        try:
            1 / 0  # noqa: B018 - its error is wanted
        except ZeroDivisionError as error:
            telemetry.emit("service.error", service="janitor", error=error)
        telemetry.emit("service.error", service="janitor", error=StoreUnavailable("away"))

    first, second = lines(stream)
    assert "1 / 0" in first["exception"]
    assert "exception" not in second


def test_the_level_decides_what_is_told():
    stream = io.StringIO()

    with logged(stream, level="warning"):
        telemetry.emit("gateway.started", instance="one", version="1")
        telemetry.emit("loop.blocked", seconds=1.0, handler="h")
        logging.getLogger("library").info("chatter")

    assert [line["event"] for line in lines(stream)] == ["loop.blocked"]


def test_what_libraries_log_goes_the_same_way():
    stream = io.StringIO()

    with logged(stream):
        logging.getLogger("library").warning("look: %s", "here\nthere")
    logging.getLogger("library").warning("after the end")

    [line] = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("look: here\\nthere", "library", "warning")


def test_a_long_text_is_cut():
    assert len(escaped("x" * 100_000)) < 5_000
