"""HiveMQ CE from Maven Central (100 MB), by a launcher of our own: the second broker that speaks MQTT 5."""

from tests.brokers.java_broker import JavaBroker
from tests.services import free_port


class HiveMQ(JavaBroker):
    """HiveMQ Community Edition, plain and by websocket. It takes ten unconfirmed messages of a client at once."""

    name = "hivemq"
    launcher = "HiveMQ"
    artifacts = ("com.hivemq:hivemq-community-edition-embedded:2025.5",)

    def __init__(self) -> None:
        super().__init__()
        self.websocket = free_port()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, str]:
        return {"mqtt": str(self.port), "websocket": str(self.websocket)}
