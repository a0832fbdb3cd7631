"""Redis and Memcached as plain processes (Debian: redis-server, memcached), nothing kept on the disk."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import Server, ServiceFailed, ServiceMissing

PASSWORD = "only-for-tests"


class CacheServer(Server):
    """A cache. With `keys` (ca.pem, own.pem, own.key) it speaks TLS alone, with `login` it asks for `PASSWORD`."""

    stop_signal = signal.SIGTERM
    deadline = 20.0

    def __init__(self, *, keys: Path | None = None, login: bool = False) -> None:
        found = shutil.which(self.program)
        if not found:
            raise ServiceMissing(f"{self.name} is not installed (Debian: apt-get install {self.program})")
        super().__init__()
        self.keys, self.login = keys, login

    program: str

    @property
    def url(self) -> str:
        return f"{self.name}://127.0.0.1:{self.port}"

    def create(self) -> None:
        """Copy the keys to where the server may read them."""
        (self.folder / "access").write_text(f"gateway:{PASSWORD}\n")
        if self.keys is not None:
            shutil.copytree(self.keys, self.folder / "keys")
        if os.geteuid() == 0:
            for path in self.folder.rglob("*"):
                shutil.chown(path, self.user)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold it: its port is open, and it answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        until = time.monotonic() + self.deadline
        while not self._stands():
            if time.monotonic() > until:
                raise ServiceFailed(f"{self.name} could not be held")
            time.sleep(0.001)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _stands(self) -> bool:
        """Whether each of its threads has stopped, which takes the signal a moment."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


class RedisServer(CacheServer):
    name = "redis"
    user = "redis"
    program = "redis-server"

    def command(self) -> list[str]:
        keys = self.folder / "keys"
        tls = [
            "--port", "0", "--tls-port", str(self.port), "--tls-cert-file", str(keys / "own.pem"),
            "--tls-key-file", str(keys / "own.key"), "--tls-ca-cert-file", str(keys / "ca.pem"),
        ]  # fmt: skip
        return [
            self.program, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.data),
            *(["--port", str(self.port)] if self.keys is None else tls),
            *(["--requirepass", PASSWORD] if self.login else []),
        ]  # fmt: skip


class MemcachedServer(CacheServer):
    name = "memcached"
    user = "memcache"
    program = "memcached"

    def command(self) -> list[str]:
        keys = self.folder / "keys"
        tls = ["-Z", "-o", f"ssl_chain_cert={keys / 'own.pem'},ssl_key={keys / 'own.key'}"]
        return [
            self.program, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-m", "64",
            *([] if self.keys is None else tls), *(["-Y", str(self.folder / "access")] if self.login else []),
        ]  # fmt: skip
