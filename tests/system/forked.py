"""A gateway process that begins where all imports are done, so that hundreds can be started."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from importlib import reload
from pathlib import Path

from gateway import crashpoint
from tests.system.process import GATEWAY, Gateway

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "__main__", "tests.system.forked", "gateway.app", "gateway.cli", "gateway.cli.service", "gateway.logs",
        "connectors.http", "gateway.store.sqlite", "gateway.store.postgresql", "gateway.store.mysql",
        "sqlalchemy.dialects.sqlite.aiosqlite", "sqlalchemy.dialects.postgresql.asyncpg",
        "sqlalchemy.dialects.mysql.asyncmy",
    ]
)  # fmt: skip


class ForkedGateway(Gateway):
    """Forked from a process that has imported the program; from then on it is a process like any other."""

    def start(self, **environment: str) -> None:
        arguments = [*GATEWAY[2:], "run", "--config", str(self.config)]
        process = _FORKS.Process(target=_run, args=(arguments, self.log, environment))
        process.start()
        self._process = _Child(process)


class _Child:
    """Tells what `subprocess.Popen` would tell of it."""

    def __init__(self, process: "multiprocessing.context.ForkServerProcess") -> None:
        assert process.pid is not None
        self.pid, self._process = process.pid, process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode


def _run(arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
    """Be `python -m gateway`."""
    os.setsid()
    os.chdir(log.parent)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(file, number)
    os.environ.update(environment)
    reload(crashpoint)  # arms what the environment says
    sys.argv = arguments
    from gateway.__main__ import main

    main()
