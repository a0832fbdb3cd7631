"""PgBouncer in transaction mode (Debian: pgbouncer), in front of a PostgreSQL server that is already running."""

import os
import shutil
import signal
from urllib.parse import urlsplit

from tests.services import Server, ServiceMissing


class PgBouncer(Server):
    """Lends `size` server sessions per database, each for one transaction. `server` is PostgreSQL's address."""

    name = "pgbouncer"
    user = "postgres"
    stop_signal = signal.SIGINT

    def __init__(self, server: str, *, size: int = 20) -> None:
        found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
        if not found:
            raise ServiceMissing("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
        self.program, self.server, self.size = found, server, size
        super().__init__()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}"

    def create(self) -> None:
        """Write the configuration."""
        address = urlsplit(self.server)
        target = f"host={address.hostname or '127.0.0.1'} port={address.port or 5432} user={address.username}"
        configuration = self.folder / "configuration"
        configuration.write_text("\n".join([
            "[databases]", f"* = {target}", "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {self.port}",
            "pool_mode = transaction", "auth_type = any", f"default_pool_size = {self.size}", "max_client_conn = 500",
            "unix_socket_dir =", "",
        ]))  # fmt: skip
        if os.geteuid() == 0:
            shutil.chown(configuration, self.user)

    def command(self) -> list[str]:
        return [self.program, "-q", str(self.folder / "configuration")]
