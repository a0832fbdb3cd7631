"""The README does what it says: every command of it is run, every file of it is used."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services import free_port
from tests.system.process import Admin
from tests.system.waiting import until

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()
HEADING_OR_BLOCK = r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w+)\n(?P<text>.*?)^```$"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Block:
    """A fenced block of the README."""

    section: str
    language: str
    text: str

    def __str__(self) -> str:
        return self.section

    @property
    def commands(self) -> list[str]:
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


def blocks(section: str | None = None, language: str | None = None) -> list[Block]:
    found = []
    heading = ""
    for part in re.finditer(HEADING_OR_BLOCK, README, re.MULTILINE | re.DOTALL):
        heading = part["heading"] or heading
        if part["language"]:
            found.append(Block(heading, part["language"], part["text"]))
    return [b for b in found if section in (None, b.section) and language in (None, b.language)]


class Shell:
    """Runs the README's commands in a folder, on ports of its own instead of the documented ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.web, self.admin = str(free_port()), str(free_port())
        self.environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1", "COLUMNS": "200"}

    def here(self, text: str) -> str:
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{self.web}").replace(
            "127.0.0.1:8090", f"127.0.0.1:{self.admin}"
        )
        return text.replace(".venv/bin/", f"{BIN}/")

    def write_files(self, section: str) -> None:
        """Write each block that begins with a file's name."""
        for block in blocks(section):
            if name := re.match(r"# (\S+\.\w+)\n", block.text):
                (self.folder / name[1]).write_text(self.here(block.text))

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", self.here(command)], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                ["bash", "-c", self.here(command)], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def running(shell: Shell) -> Iterator[Shell]:
    """The quick start's first block: `make run`, from a folder that is the repository but for its database."""
    (first, *_) = blocks("Quick start", "console")
    assert first.commands == ["make run"]
    config = shell.folder / "gateway.yaml"
    config.write_text(shell.here((ROOT / "configs/gateway.yaml").read_text()))
    shell.environment |= {"GATEWAY_CONFIG": str(config), "DATABASE_URL": f"sqlite:///{shell.folder / 'gateway.db'}"}
    process = shell.start(f"make -C {ROOT} run")
    try:
        yield shell
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.timeout(300)
async def test_the_quick_start(running: Shell) -> None:
    admin = Admin(f"http://127.0.0.1:{running.admin}")
    try:
        await until(lambda: admin.answers("/ready"), within=180, what="make run is ready")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{(running.folder / 'log').read_text()}") from None
    commands = blocks("Quick start", "console")[1].commands
    answer = running.run(commands[0])
    assert " 202 " in answer
    job_id = re.search(r'"job_id": ?"([^"]+)"', answer)
    assert job_id, answer

    async def completed() -> bool:
        return (await admin.fetch(f"/api/jobs/{job_id[1]}"))["status"] == "completed"

    await until(completed, within=10, what="the first message is processed")
    for command in commands[1:3]:
        assert job_id[1][:8] in running.run(command), command
    for command in commands[3:]:
        running.run(command)
    assert "completed" in running.run(f".venv/bin/gateway jobs show {job_id[1]}").lower()
    jobs, histories = blocks("Quick start", "sql")[0].text.strip().splitlines()
    with sqlite3.connect(running.folder / "gateway.db") as database:
        found = {row[0]: row[1:] for row in database.execute(jobs)}  # with what a schedule may have made meanwhile
        ended = {about: status for about, status, *_ in database.execute(histories)}
    database.close()
    assert found[job_id[1]] == ("gateway.log", 3, "hello")
    assert ended[job_id[1]] == 3


def test_writing_a_handler(shell: Shell) -> None:
    shell.write_files("Write a handler")
    for command in [c for block in blocks("Write a handler", "console") for c in block.commands]:
        printed = shell.run(command)
    assert "order.place" in printed
    shell.run("python -m pytest -q -p no:cacheprovider -o asyncio_mode=auto test_shop.py")


def test_configuring(shell: Shell) -> None:
    for command in [c for block in blocks("Configuration", "console") for c in block.commands]:
        shell.run(command)


def test_scheduling(shell: Shell) -> None:
    printed = [shell.run(command) for block in blocks("Schedules", "console") for command in block.commands]
    assert "-05:00" in printed[2] or "-04:00" in printed[2], "no local time of New York"
    assert re.fullmatch(r"[0-9a-f-]{36}\n", printed[3])
    assert "disabled" in printed[5]


@pytest.mark.parametrize("block", [b for b in blocks(language="yaml") if not b.text.startswith("# ")], ids=str)
def test_an_example_is_a_valid_configuration(shell: Shell, block: Block) -> None:
    shell.write_files("Write a handler")
    handlers = "" if "handlers:" in block.text else "handlers:\n  order.place: shop:place_order\n"
    (shell.folder / "gateway.yaml").write_text(block.text + handlers)
    shell.environment["ORDERS_TOKEN"] = "a-token-of-this-test-only"
    shell.run("gateway check --offline")


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    tested = {"Quick start", "Write a handler", "Configuration", "Schedules"}
    assert {block.section for block in blocks(language="console")} <= tested
