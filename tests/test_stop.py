"""A signal ends the process at once while it starts, in order while it runs, and at once when it comes twice."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.stop import StopSignal

HANDLERS = """
import asyncio, pathlib, time

async def slow(context):
    pathlib.Path("started").touch()
    await asyncio.sleep(60)

async def stubborn(context):
    pathlib.Path("started").touch()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.05)
"""
CONFIG = """
gateway: {name: one, grace: 30, admin: null}
database: {url: "sqlite:///jobs.db"}
jobs: {poll_interval: 0.1}
handlers: {slow: "my_handlers:slow", stubborn: "my_handlers:stubborn"}
"""


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(folder: Path, *arguments: str, path: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def told(process: subprocess.Popen, event: str) -> None:
    assert process.stdout is not None
    assert any(event in line for line in process.stdout)


def jobs(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT count(*) FROM queue_jobs").fetchone()[0]


@pytest.fixture
def running(tmp_path):
    """Start a gateway whose only job has begun, and end it whatever the test did."""
    processes: list[subprocess.Popen] = []

    def run(handler: str) -> subprocess.Popen:
        (tmp_path / "my_handlers.py").write_text(HANDLERS)
        (tmp_path / "gateway.yaml").write_text(CONFIG)
        for command in (["migrate"], ["jobs", "create", handler]):
            process = start(tmp_path, *command)
            printed = process.communicate(timeout=60)
            assert process.returncode == 0, printed
        process = start(tmp_path, "run")
        processes.append(process)
        wait_for((tmp_path / "started").exists, process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_the_program_is_still_imported_ends_it_at_once(tmp_path, number, code):
    (tmp_path / "typer.py").write_text("import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n")
    process = start(tmp_path, "run", path=str(tmp_path))
    wait_for((tmp_path / "importing").exists, process)

    process.send_signal(number)

    assert process.wait(5) == code
    assert process.communicate()[0] == ""


def test_nothing_heavy_is_imported_before_the_signal_handlers_are_there():
    script = "import sys, gateway.__main__; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    for heavy in ("asyncio", "typer", "pydantic", "sqlalchemy", "aiohttp", "yaml"):
        assert f"'{heavy}'" not in loaded


@pytest.mark.slow
def test_the_first_signal_stops_in_order_and_the_second_at_once(running):
    process = running("slow")

    process.send_signal(signal.SIGTERM)
    told(process, "gateway.stopping")
    assert process.poll() is None, "it waits for its job"
    process.send_signal(signal.SIGTERM)

    assert process.wait(5) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_the_second_signal_ends_it_even_while_a_handler_blocks_the_loop(running):
    process = running("stubborn")

    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)

    assert process.wait(5) in (128 + signal.SIGTERM, 128 + signal.SIGINT)


@pytest.mark.slow
def test_an_idle_gateway_stops_at_once_with_zero(tmp_path):
    (tmp_path / "gateway.yaml").write_text("gateway: {admin: null}")
    process = start(tmp_path, "run")
    told(process, "gateway.started")

    process.send_signal(signal.SIGTERM)

    printed = process.communicate(timeout=30)
    assert process.returncode == 0, printed


@pytest.mark.slow
def test_other_commands_keep_the_usual_signals(tmp_path):
    (tmp_path / "gateway.yaml").write_text("connectors: {m: {type: memory}}")
    migrating = start(tmp_path, "migrate")
    printed = migrating.communicate(timeout=60)
    assert migrating.returncode == 0, printed
    process = start(tmp_path, "send", "m", "t", "-b", "x", "--wait", "60")
    wait_for(lambda: jobs(tmp_path / "gateway.db") == 1, process)

    process.send_signal(signal.SIGTERM)

    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


async def test_several_may_wait_and_a_wish_that_came_before_is_seen_at_once():
    stop = StopSignal()
    waiting = [asyncio.create_task(stop.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    stop.request()
    stop.request()

    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    await asyncio.wait_for(stop.wait(), 5)
    assert stop.requested


async def test_a_cancelled_wait_leaves_nothing_behind():
    stop = StopSignal()
    waiting = asyncio.create_task(stop.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    stop.request()
    assert stop._wake == []
