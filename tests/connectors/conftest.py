import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import missing
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
