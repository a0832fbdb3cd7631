"""What lies below a database connection: how soon a dead peer is noticed, and whose certificate is trusted."""

import socket
import ssl

from sqlalchemy import URL


def keepalive(connection: socket.socket | None) -> None:
    """Give up on a silent peer within about 20 s, instead of hours. Nothing to do for a local socket."""
    if connection is None or connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15_000)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def tls(url: URL) -> ssl.SSLContext | str | None:
    """Return what PostgreSQL's `sslmode` and `sslrootcert` ask for; None leaves it to the driver (`prefer`).

    Without `sslrootcert`, `verify-ca` and `verify-full` trust what the system trusts.
    """
    mode, root = (str(url.query.get(name, "")) for name in ("sslmode", "sslrootcert"))
    if mode not in ("verify-ca", "verify-full"):
        return mode or None
    context = ssl.create_default_context(cafile=root or None)
    context.check_hostname = mode == "verify-full"
    return context
