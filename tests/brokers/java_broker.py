"""What brokers that run in Java share: jars from Maven Central and a launcher of our own, kept between runs."""

import hashlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.downloads import cache
from tests.services import Server, ServiceMissing, free_port

SOURCES = Path(__file__).parent / "java"


class JavaBroker(Server):
    """A launcher in `java/`, compiled with the jars of `artifacts`. `control` tells what a queue has counted."""

    user = "root"
    stop_signal = signal.SIGTERM
    launcher: ClassVar[str]
    artifacts: ClassVar[Sequence[str]]

    def __init__(self) -> None:
        self.home = self._home()
        super().__init__()
        self.port, self.control = free_port(), free_port()

    def create(self) -> None:
        """Nothing to prepare: the broker fills its empty folder."""

    def command(self) -> list[str]:
        settings = {"data": str(self.data), "stomp": str(self.port), "control": str(self.control), **self.settings()}
        return [
            "java", "-Xmx256M", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            *(f"-D{name}={value}" for name, value in settings.items()), "-cp", f"{self.home}:{self.home}/jars/*",
            self.launcher,
        ]  # fmt: skip

    def settings(self) -> dict[str, str]:
        """Return further settings for the launcher."""
        return {}

    def answers(self) -> bool:
        """Whether it takes connections: the control port opens last."""
        try:
            socket.create_connection(("127.0.0.1", self.control), timeout=1).close()
        except OSError:
            return False
        return True

    @classmethod
    def _home(cls) -> Path:
        source = SOURCES / f"{cls.launcher}.java"
        state = hashlib.sha256(source.read_bytes() + repr(cls.artifacts).encode()).hexdigest()[:12]
        home = cache() / f"{cls.name}-{state}"
        if shutil.which("java") is None:
            raise ServiceMissing("Java is not installed (Debian: apt-get install openjdk-17-jdk-headless)")
        if not home.exists():
            if shutil.which("mvn") is None or shutil.which("javac") is None:
                raise ServiceMissing(
                    "Maven or javac is missing (Debian: apt-get install maven openjdk-17-jdk-headless)"
                )
            cls._fill(home, source)
        return home

    @classmethod
    def _fill(cls, home: Path, source: Path) -> None:
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            filled = Path(scratch) / "home"
            filled.mkdir()
            (filled / "pom.xml").write_text(_pom(cls.artifacts))
            for command in (
                ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars"],
                ["javac", "-cp", "jars/*", "-d", ".", str(source)],
            ):
                subprocess.run(
                    command, cwd=filled, check=True, timeout=900, stdin=subprocess.DEVNULL, stdout=sys.stderr
                )
            try:
                filled.rename(home)
            except OSError:
                if not home.exists():  # else another process was faster
                    raise


def _pom(artifacts: Sequence[str]) -> str:
    names = ("groupId", "artifactId", "version")
    dependencies = "".join(
        "<dependency>"
        + "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, artifact.split(":"), strict=True))
        + "</dependency>"
        for artifact in artifacts
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>tests</groupId><artifactId>broker</artifactId>"
        f"<version>1</version><packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
    )
