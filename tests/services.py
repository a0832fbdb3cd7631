"""Real services for tests: each a plain process on a free loopback port with a temporary data folder.

`python -m tests.services postgresql kafka` starts them, prints their addresses as JSON, and runs until interrupted
(or, with `--parent PID`, until that process is gone). A server here keeps its port and its data over `kill`, `stop`
and `start`, so that a test can restart a database under its clients.
"""

import argparse
import importlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from tests import downloads

NAMES = ("postgresql", "mariadb", "mysql8", *downloads.POSTGRESQL)
BROKERS = {
    "kafka": "kafka:Kafka",
    "mosquitto": "mosquitto:Mosquitto",
    "hivemq": "hivemq:HiveMQ",
    "activemq": "activemq:ActiveMQ",
    "artemis": "artemis:Artemis",
    "signalr": "signalr:SignalRHub",
    "redis": "caches:RedisServer",
    "memcached": "caches:MemcachedServer",
}
"""Modules and classes below `tests.brokers`, which are built on this module."""


class ServiceMissing(Exception):  # noqa: N818 - reads as what happened
    """The service's program is not installed on this machine. The text says what to install."""


class ServiceFailed(Exception):  # noqa: N818 - reads as what happened
    """The service did not start; the text ends with the last lines of its log."""


def free_port() -> int:
    """Return a free TCP port that the kernel gives to no client.

    Who connects again and again to one that it may give is connected to itself one day, while its server is stopped.
    """
    while True:
        port = 15000 + secrets.randbelow(17000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server(ABC):
    """One server process. `start` returns when it accepts connections, also after `stop` or `kill`."""

    name: ClassVar[str]
    user: ClassVar[str]
    """The account that runs it when the tests run as root: database servers refuse to be root."""
    stop_signal: ClassVar[signal.Signals]
    deadline: ClassVar[float] = 60.0

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"gateway-{self.name}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Address of the server, without a database."""

    @abstractmethod
    def create(self) -> None:
        """Fill the empty data folder, once."""

    @abstractmethod
    def command(self) -> list[str]:
        """What runs the server in the foreground."""

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> Self:
        if not self.data.exists():
            self.data.mkdir()
            if os.geteuid() == 0:
                shutil.chown(self.folder, self.user)
                shutil.chown(self.data, self.user)
            self.create()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user(self.command()), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._wait_for_port()
        return self

    def stop(self) -> None:
        """Stop it in order, as an administrator would."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End it as a crash would: nothing is written any more."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(self.deadline)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(self.deadline)
            raise
        finally:
            self._process = None

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            self._as_user(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=self.deadline, check=False
        )
        if done.returncode:
            raise ServiceFailed(f"{' '.join(command)}\n{done.stdout.decode()}\n{done.stderr.decode()}")

    def _as_user(self, command: Sequence[str]) -> list[str]:
        if os.geteuid() != 0:
            return list(command)
        account = pwd.getpwnam(self.user)
        return [
            "setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--pdeathsig=KILL",
            *command,
        ]  # fmt: skip

    def _wait_for_port(self) -> None:
        assert self._process is not None
        until = time.monotonic() + self.deadline
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise ServiceFailed(f"{self.name} did not start on port {self.port}\n{tail}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it accepts connections right now."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class PostgreSQL(Server):
    """PostgreSQL with its default durability; `home` is where its `bin` lies."""

    name = "postgresql"
    user = "postgres"
    stop_signal = signal.SIGINT

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or self._debian_home()
        super().__init__()

    @staticmethod
    def _debian_home() -> Path:
        homes = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
        if homes:
            return homes[-1].parent.parent
        if found := shutil.which("postgres"):
            return Path(found).resolve().parent.parent
        raise ServiceMissing("PostgreSQL is not installed (Debian: apt-get install postgresql)")

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}"

    def create(self) -> None:
        initdb = str(self.home / "bin/initdb")
        self._run([initdb, "-D", str(self.data), "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8"])

    def command(self) -> list[str]:
        return [
            str(self.home / "bin/postgres"), "-D", str(self.data), "-p", str(self.port), "-k", str(self.data),
            "-h", "127.0.0.1", "-c", "max_connections=300",
        ]  # fmt: skip

    def answers(self) -> bool:
        """Whether it takes sessions: while it recovers, its port is open but every session is refused."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                startup = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
                client.sendall((len(startup) + 4).to_bytes(4, "big") + startup)
                return client.recv(1) == b"R"
        except OSError:
            return False


class MariaDB(Server):
    """MariaDB, root without a password, utf8mb4."""

    name = "mariadb"
    user = "mysql"
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        found = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin")
        if not found:
            raise ServiceMissing("MariaDB is not installed (Debian: apt-get install mariadb-server)")
        self.program = found
        super().__init__()

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}"

    def create(self) -> None:
        self._run([
            "mariadb-install-db", "--no-defaults", f"--datadir={self.data}", "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ])  # fmt: skip

    def command(self) -> list[str]:
        return [
            self.program, "--no-defaults", f"--datadir={self.data}", f"--port={self.port}",
            f"--socket={self.folder / 'socket'}", f"--pid-file={self.folder / 'pid'}", "--bind-address=127.0.0.1",
            "--character-set-server=utf8mb4", "--max-connections=300",
        ]  # fmt: skip


class MySQL(MariaDB):
    """MySQL 8.0 from Maven Central, for `make soak`."""

    name = "mysql8"

    def __init__(self) -> None:
        self.home = downloads.mysql()
        Server.__init__(self)

    def create(self) -> None:
        self._run([*self._base(), "--initialize-insecure"])

    def command(self) -> list[str]:
        return [
            *self._base(), f"--port={self.port}", f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}", "--bind-address=127.0.0.1", "--mysqlx=OFF",
            "--performance-schema=OFF", "--max-connections=300",
        ]  # fmt: skip

    def _base(self) -> list[str]:
        return [str(self.home / "bin/mysqld"), "--no-defaults", f"--basedir={self.home}", f"--datadir={self.data}"]


def make(name: str) -> Server:
    """Return a server that is not started yet: one of `NAMES` or `BROKERS`."""
    if name in BROKERS:
        module, kind = BROKERS[name].split(":")
        return getattr(importlib.import_module(f"tests.brokers.{module}"), kind)()
    if name == "postgresql":
        return PostgreSQL()
    if name in downloads.POSTGRESQL:
        return PostgreSQL(downloads.postgresql(name))
    return {"mariadb": MariaDB, "mysql8": MySQL}[name]()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=(*NAMES, *BROKERS))
    parser.add_argument("--parent", type=int, help="stop when this process is gone")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    servers: list[Server] = []
    try:
        for name in options.names:
            servers.append(make(name))
            servers[-1].start()
        print(json.dumps(dict(zip(options.names, [server.url for server in servers], strict=True))), flush=True)
        while options.parent is None or Path(f"/proc/{options.parent}").exists():
            time.sleep(0.5)
    except (KeyboardInterrupt, ServiceMissing) as end:
        if isinstance(end, ServiceMissing):
            print(end, file=sys.stderr)
            return 3
    finally:
        for server in servers:
            server.remove()
    return 0


if __name__ == "__main__":
    from tests import services  # the module that the brokers know, not this run of it

    sys.exit(services.main())
