"""ActiveMQ Classic from Maven Central (7 MB), by a launcher of our own: STOMP, and STOMP over TLS if there are keys."""

from pathlib import Path

from tests.brokers.java_broker import JavaBroker
from tests.services import free_port


class ActiveMQ(JavaBroker):
    """Classic 6. `keys` is a PKCS 12 file, its password `changeit`; with `password` only user gateway gets in.

    It cuts the connection of who sends more than `limit` bytes at once.
    """

    name = "activemq"
    launcher = "Classic"
    artifacts = tuple(
        f"org.apache.activemq:activemq-{part}:6.3.1" for part in ("broker", "stomp", "kahadb-store", "jaas")
    )

    def __init__(self, *, keys: Path | None = None, password: str | None = None, limit: int | None = None) -> None:
        super().__init__()
        self.keys, self.password, self.limit = keys, password, limit
        self.tls, self.mtls = free_port(), free_port()

    @property
    def url(self) -> str:
        return f"stomp://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, str]:
        settings = {} if self.password is None else {"password": self.password}
        if self.limit is not None:
            settings["limit"] = str(self.limit)
        if self.keys is not None:
            settings |= {"keys": str(self.keys), "tls": str(self.tls), "mtls": str(self.mtls)}
        return settings
