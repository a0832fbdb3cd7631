"""Mosquitto as a plain process (Debian: mosquitto), with a port for each way to reach it."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.services import Server, ServiceFailed, ServiceMissing, free_port

PASSWORD = "only for tests"


class Mosquitto(Server):
    """Plain, and by websocket; with `keys` (ca.pem, own.pem, own.key) by TLS, with client certificates and by wss too.

    `login` asks for user `gateway` with `PASSWORD`. Nobody may publish below `refused/`. Sessions survive `stop`, and a
    `kill` after `save`. It cuts the connection of who sends more than `limit` bytes at once.
    """

    name = "mosquitto"
    user = "mosquitto"
    stop_signal = signal.SIGTERM

    def __init__(self, *, keys: Path | None = None, inflight: int = 1000, limit: int | None = None) -> None:
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if not found:
            raise ServiceMissing("Mosquitto is not installed (Debian: apt-get install mosquitto)")
        self.program = found
        super().__init__()
        self.keys, self.inflight, self.limit = keys, inflight, limit
        self.port, self.websocket, self.login, self.tls, self.mtls, self.wss = (free_port() for _ in range(6))

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def create(self) -> None:
        """Write the configuration, and what it names; all of it must belong to the user that runs the broker."""
        access = self.folder / "access"
        access.write_text("topic deny refused/#\ntopic readwrite #\n")
        passwords = self.folder / "passwords"
        subprocess.run(
            ["mosquitto_passwd", "-b", "-c", str(passwords), "gateway", PASSWORD], check=True, capture_output=True
        )
        if self.keys is not None:
            shutil.copytree(self.keys, self.folder / "keys")
        (self.folder / "configuration").write_text(self._configuration())
        if os.geteuid() == 0:
            for path in [self.folder, *self.folder.rglob("*")]:
                shutil.chown(path, self.user)

    def command(self) -> list[str]:
        return [self.program, "-c", str(self.folder / "configuration")]

    def answers(self) -> bool:
        """Whether it takes connections: it opens its ports one by one, this one last."""
        try:
            socket.create_connection(("127.0.0.1", self.login), timeout=1).close()
        except OSError:
            return False
        return True

    def save(self) -> None:
        """Write sessions and queues to the disk, which else happens every half hour."""
        before, until = self._saved(), time.monotonic() + self.deadline
        os.kill(self.pid, signal.SIGUSR1)
        while self._saved() == before:
            if time.monotonic() > until:
                raise ServiceFailed("Mosquitto did not save")
            time.sleep(0.01)

    def _saved(self) -> int:
        file = self.data / "mosquitto.db"
        return file.stat().st_mtime_ns if file.exists() else 0

    def _configuration(self) -> str:
        anybody = f"allow_anonymous true\nacl_file {self.folder / 'access'}"
        listeners = [
            f"listener {self.port} 127.0.0.1\n{anybody}",
            f"listener {self.websocket} 127.0.0.1\nprotocol websockets\n{anybody}",
        ]
        if self.keys is not None:
            keys = self.folder / "keys"
            own = f"certfile {keys / 'own.pem'}\nkeyfile {keys / 'own.key'}\n{anybody}"
            listeners += [
                f"listener {self.tls} 127.0.0.1\n{own}",
                f"listener {self.mtls} 127.0.0.1\n{own}\ncafile {keys / 'ca.pem'}\nrequire_certificate true",
                f"listener {self.wss} 127.0.0.1\nprotocol websockets\n{own}",
            ]
        listeners.append(f"listener {self.login} 127.0.0.1\npassword_file {self.folder / 'passwords'}")
        return "\n".join([
            "per_listener_settings true", "persistence true", f"persistence_location {self.data}/",
            "max_queued_messages 0", f"max_inflight_messages {self.inflight}", "set_tcp_nodelay true",
            "log_dest stderr", *[f"max_packet_size {self.limit}"] * (self.limit is not None), *listeners, "",
        ])  # fmt: skip
