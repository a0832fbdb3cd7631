"""Apache Kafka from Apache's own jars: one process, broker and controller (needs Java 17; Maven fetches it once)."""

import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.downloads import cache
from tests.services import Server, ServiceMissing, free_port

VERSION = "4.4.0"
POM = f"""<project><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>"""
JAVA = ["java", "-Xmx256M", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
READY = b"Kafka Server started"
LOGIN = {
    "PLAIN": "plain.PlainLoginModule",
    "SCRAM-SHA-256": "scram.ScramLoginModule",
    "SCRAM-SHA-512": "scram.ScramLoginModule",
    "OAUTHBEARER": "oauthbearer.OAuthBearerLoginModule",
}
SETTINGS = {
    "node.id": 1,
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": ",".join(
        f"{name}:{name}" for name in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
    )
    + ",CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms": ",".join(LOGIN),
    "ssl.keystore.type": "PEM",
    "ssl.truststore.type": "PEM",
    "auto.create.topics.enable": "false",
    "default.replication.factor": 1,
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.num.partitions": 1,
    "transaction.state.log.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "broker.session.timeout.ms": 3000,  # a killed broker registers again only after its old session has ended
    "broker.heartbeat.interval.ms": 500,
}


def jars() -> Path:
    """Return the folder of Kafka's jars, filled at its first use (45 MB)."""
    folder = cache() / f"kafka-{VERSION}"
    if folder.exists():
        return folder
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        Path(scratch, "pom.xml").write_text(POM)
        subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars", "-DincludeScope=runtime"],
            cwd=scratch, check=True, timeout=900, stdin=subprocess.DEVNULL, stdout=sys.stderr,
        )  # fmt: skip
        try:
            Path(scratch, "jars").rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    return folder


class Kafka(Server):
    """One node. `users` may log in with PLAIN and SCRAM; `pem`, a key and its certificate, opens SSL listeners.

    `settings` are added to those of the broker.
    """

    name = "kafka"
    user = "root"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        pem: Path | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        if shutil.which("java") is None:
            raise ServiceMissing("Java is not installed (Debian: apt-get install openjdk-17-jre-headless)")
        if not (cache() / f"kafka-{VERSION}").exists() and shutil.which("mvn") is None:
            raise ServiceMissing("Maven is not installed, which fetches Kafka (Debian: apt-get install maven)")
        super().__init__()
        self.users, self.pem, self.settings = dict(users or {}), pem, dict(settings or {})
        names = ["PLAINTEXT", *["SASL_PLAINTEXT"] * bool(users), *["SSL", "SASL_SSL"] * (pem is not None)]
        self.ports = {name: free_port() for name in ("CONTROLLER", *names)}
        self.port = self.ports["PLAINTEXT"]
        self._log_start = 0

    @property
    def url(self) -> str:
        return self.address()

    def address(self, listener: str = "PLAINTEXT") -> str:
        """Return what clients take as `bootstrap_servers`."""
        return f"127.0.0.1:{self.ports[listener]}"

    def create(self) -> None:
        settings = SETTINGS | {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()),
            "controller.quorum.voters": f"1@127.0.0.1:{self.ports['CONTROLLER']}",
            "log.dirs": self.data / "logs",
            **self._logins(),
            **self.settings,
        }
        if self.pem is not None:
            settings["ssl.keystore.location"] = self.pem
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        scram = [
            f"--add-scram=SCRAM-SHA-{bits}=[name={name},password={password}]"
            for name, password in self.users.items()
            for bits in (256, 512)
        ]
        cluster = f"--cluster-id={secrets.token_urlsafe(16)}"
        self._run([*self._java(), "kafka.tools.StorageTool", "format", "-c", str(self._properties), cluster, *scram])

    def command(self) -> list[str]:
        return [*self._java(), "kafka.Kafka", str(self._properties)]

    def launch(self) -> None:
        """Start it again without waiting: to be called from the main thread, with whose end the process ends too."""
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user(self.command()), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it serves clients."""
        self._wait_for_port()

    def start(self) -> Self:
        if not self.data.exists():
            self.data.mkdir()
            self.create()
        self.launch()
        self.wait()
        return self

    def answers(self) -> bool:
        """Whether it serves clients; before, its port is open but it answers with errors."""
        return self._process is not None and READY in self.log.read_bytes()[self._log_start :]

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _java(self) -> list[str]:
        return [*JAVA, "-Dorg.slf4j.simpleLogger.showDateTime=true", "-cp", f"{jars()}/*"]

    def _logins(self) -> dict[str, str]:
        passwords = "".join(f' user_{name}="{password}"' for name, password in self.users.items())
        return {
            f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config": (
                f"org.apache.kafka.common.security.{module} required{passwords if mechanism == 'PLAIN' else ''};"
            )
            for listener in ("sasl_plaintext", "sasl_ssl")
            for mechanism, module in LOGIN.items()
        }
