"""Which driver a URL means."""

from gateway.store.driver import Driver
from gateway.store.url import engine_url


async def open_driver(url: str, *, pool_size: int = 10, statement_timeout: float = 10.0) -> Driver:
    """Open the database a URL names: `sqlite:///file.db`, `postgresql://…`, `mysql://…` or `mariadb://…`."""
    parsed = engine_url(url)
    driver: type[Driver]
    match parsed.get_backend_name():
        case "sqlite":
            from gateway.store.sqlite import SqliteDriver

            driver = SqliteDriver
        case "postgresql":
            from gateway.store.postgresql import PostgresqlDriver

            driver = PostgresqlDriver
        case _:
            from gateway.store.mysql import MysqlDriver

            driver = MysqlDriver
    return await driver.open(parsed, pool_size=pool_size, statement_timeout=statement_timeout)
