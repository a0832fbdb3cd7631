"""From the URL that people write to the one that SQLAlchemy's async drivers want."""

from importlib.util import find_spec

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from gateway.errors import StoreError

_DRIVERS = {
    "sqlite": ("sqlite", "aiosqlite"),
    "postgresql": ("postgresql", "asyncpg"),
    "postgres": ("postgresql", "asyncpg"),
    "mysql": ("mysql", "asyncmy"),
    "mariadb": ("mysql", "asyncmy"),
}


def engine_url(url: str) -> URL:
    """Return the async engine URL of a `sqlite`, `postgresql`, `mysql` or `mariadb` URL.

    Raises `StoreError`, without the URL's password, for any other scheme, an in-memory SQLite, a missing database
    name or a driver that is not installed.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError(f"the database URL cannot be read; write e.g. {_examples()}") from None
    family, _, driver = parsed.drivername.partition("+")
    if family not in _DRIVERS or (driver and driver != _DRIVERS[family][1]):
        raise StoreError(f"no database is called {parsed.drivername!r}; write e.g. {_examples()}")
    family, driver = _DRIVERS[family]
    if family == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("SQLite needs a file: jobs must outlive the process; write e.g. sqlite:///gateway.db")
    if not parsed.database:
        raise StoreError(f"the database URL names no database; write e.g. {_examples()}")
    if find_spec(driver) is None:
        raise StoreError(f"{driver} is not installed; install it with: pip install 'ingestion-gateway[{family}]'")
    return parsed.set(drivername=f"{family}+{driver}")


def _examples() -> str:
    return "sqlite:///gateway.db, postgresql://user:password@host/database or mysql://user:password@host/database"
