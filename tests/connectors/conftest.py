import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.hivemq import HiveMQ
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.brokers.signalr import SignalRHub
from tests.conftest import missing
from tests.connectors.signalr_tools import started
from tests.services import ServiceMissing


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """A Kafka of the module's own, to be stopped and started."""
    try:
        broker = Kafka()
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield broker.start()
    finally:
        broker.remove()


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate authority, and a certificate of it for 127.0.0.1 that serves both sides."""
    if shutil.which("openssl") is None and not os.environ.get("CI"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway-test", "-days", "2")
    openssl(folder, *new, "-x509", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(folder, *new[:-2], "-keyout", "own.key", "-out", "own.csr")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl(folder, "x509", "-req", "-in", "own.csr", *signing, "-out", "own.pem")
    return {name: str(folder / name) for name in ("ca.pem", "own.pem", "own.key")}


@pytest.fixture(scope="module")
def mosquitto(certificates: dict[str, str]) -> Iterator[Mosquitto]:
    """A Mosquitto of the module's own, by TLS too."""
    try:
        broker = Mosquitto(keys=Path(certificates["ca.pem"]).parent)
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield broker.start()
    finally:
        broker.remove()


@pytest.fixture(scope="module")
def hivemq() -> Iterator[HiveMQ]:
    """A HiveMQ of the module's own."""
    try:
        broker = HiveMQ()
    except ServiceMissing as reason:
        missing(str(reason))
        raise
    try:
        yield broker.start()
    finally:
        broker.remove()


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[SignalRHub]:
    """A SignalR hub of the module's own."""
    hub = started()
    yield hub
    hub.remove()


@pytest.fixture
async def hub(shared_hub: SignalRHub) -> SignalRHub:
    """The module's hub, as if it had just been started."""
    await shared_hub.control("reset")
    return shared_hub


@pytest.fixture
def own_hub() -> Iterator[Callable[..., SignalRHub]]:
    """Make a hub of the test's own, with these options; it runs."""
    made: list[SignalRHub] = []

    def make(**options: Any) -> SignalRHub:
        made.append(started(**options))
        return made[-1]

    yield make
    for each in made:
        each.remove()
