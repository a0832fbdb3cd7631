"""Fixtures for every test: a fresh database each, on servers that all test processes share.

A server is started when the first test asks for it, by whichever process comes first, and stops with the process
that runs the whole session. `TEST_POSTGRESQL_URL` and `TEST_MARIADB_URL` name servers that run already.
A service that is not installed skips its tests, and fails them when `CI` is set.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.databases import fresh_database
from tests.pgbouncer import PgBouncer
from tests.services import NAMES, Server, ServiceMissing, make

SHARED = "GATEWAY_TEST_SERVICES"
SERVERS = NAMES if "SOAK_SECONDS" in os.environ else ("postgresql", "mariadb")
"""Every test of all databases runs on these; a soak adds older and newer versions."""

BROKERS = frozenset({
    "kafka", "secured", "kafka_server", "mosquitto", "hivemq", "classic", "artemis", "activemq", "hub", "own_hub",
    "signalr", "broker_server", "broker_servers", "second_server",
})  # fmt: skip
"""Fixtures that start one; who uses any is marked `broker`."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder in which this session's processes find its servers; the workers inherit its name."""
    if not hasattr(config, "workerinput"):
        os.environ[SHARED] = tempfile.mkdtemp(prefix="gateway-tests-")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a broker, before markers choose.

    Real processes and servers share a busy machine with all others: what fails there has a second try, which the
    summary shows as a rerun, so that it is seen and looked into. Nothing else has one.
    """
    for item in items:
        if isinstance(item, pytest.Function) and BROKERS.intersection(item.fixturenames):
            item.add_marker("broker")
        if "SOAK_SECONDS" not in os.environ and any(map(item.get_closest_marker, ("slow", "broker", "database"))):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why the first try of what was tried again has failed."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
        for title, text in report.sections:
            terminalreporter.section(title, "-")
            terminalreporter.write_line(text)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers."""
    if hasattr(config, "workerinput") or SHARED not in os.environ:
        return
    folder = Path(os.environ.pop(SHARED))
    for pid in [int(path.read_text()) for path in folder.glob("*.pid")]:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
    shutil.rmtree(folder, ignore_errors=True)


def server_url(name: str) -> str:
    """Return the address of the session's server of that name, started now if nobody did before."""
    if given := os.environ.get(f"TEST_{name.upper()}_URL"):
        return given
    folder = Path(os.environ[SHARED])
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        address = folder / f"{name}.json"
        if not address.exists():
            address.write_text(_start(name, folder))
    return str(json.loads(address.read_text())[name])


def _start(name: str, folder: Path) -> str:
    session = _session_process()
    with (folder / f"{name}.log").open("wb") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "tests.services", name, "--parent", str(session)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert launcher.stdout is not None
    (folder / f"{name}.pid").write_text(str(launcher.pid))
    line = launcher.stdout.readline().decode()
    launcher.stdout.close()
    launcher.returncode = 0  # it outlives this process on purpose, which subprocess would warn about
    if not line:
        missing((folder / f"{name}.log").read_text())
    return line


def _session_process() -> int:
    """Return the process that ends last: with workers their parent, else this one."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def missing(reason: str) -> None:
    """Skip the test, or fail it where every service must be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'gateway.db'}"


@pytest.fixture
def postgresql_url() -> Iterator[str]:
    with fresh_database(server_url("postgresql")) as url:
        yield url


@contextmanager
def pooled(url: str, **options: int) -> Iterator[str]:
    """Start a PgBouncer before a PostgreSQL database, and yield the database's address there."""
    try:
        pooler = PgBouncer(url, **options)
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield f"{pooler.start().url}/{urlsplit(url).path.strip('/')}"
    finally:
        pooler.remove()


@pytest.fixture
def pgbouncer_url(postgresql_url: str) -> Iterator[str]:
    """A fresh PostgreSQL database, reached through a PgBouncer of the test's own."""
    with pooled(postgresql_url) as url:
        yield url


@pytest.fixture
def mariadb_url() -> Iterator[str]:
    with fresh_database(server_url("mariadb")) as url:
        yield url


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=pytest.mark.database) for name in SERVERS)])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh, empty database of each kind in turn."""
    if request.param == "sqlite":
        yield str(request.getfixturevalue("sqlite_url"))
        return
    with fresh_database(server_url(request.param)) as url:
        yield url


@pytest.fixture(params=SERVERS)
def server_database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh, empty database that several processes can share, on each kind of server in turn."""
    with fresh_database(server_url(request.param)) as url:
        yield url


@pytest.fixture(params=SERVERS)
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A database server of the test's own, to be stopped, killed and started again."""
    try:
        server = make(request.param)
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield server.start()
    finally:
        server.remove()
