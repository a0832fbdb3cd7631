"""ActiveMQ Artemis from Maven Central (18 MB), by a launcher of our own: the second broker that speaks STOMP."""

from tests.brokers.java_broker import JavaBroker


class Artemis(JavaBroker):
    """Artemis 2, with the destination prefixes of Classic."""

    name = "artemis"
    launcher = "Artemis"
    artifacts = tuple(f"org.apache.artemis:artemis-{part}:2.55.0" for part in ("server", "stomp-protocol"))

    @property
    def url(self) -> str:
        return f"stomp://127.0.0.1:{self.port}"
