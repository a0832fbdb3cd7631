"""The database as an outsider sees it: plain SQL over a connection of its own."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from gateway_example.ledger import metadata
from tests.system.waiting import until

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mysql": "mysql+asyncmy"}


class Database:
    """Reads and writes a gateway's database from outside. A connection per call, so that restarts do not matter."""

    def __init__(self, url: str) -> None:
        address = make_url(url)
        self.kind = "mysql" if address.drivername == "mariadb" else address.drivername
        self.url = url
        self._engine = create_async_engine(address.set(drivername=DRIVERS[self.kind]), poolclass=NullPool)

    async def create_ledger(self) -> None:
        """Create the table of the example handlers' effects."""
        async with self._engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

    async def rows(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        async with self._engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(text(statement), parameters)).mappings()]

    async def value(self, statement: str, **parameters: Any) -> Any:
        (row,) = await self.rows(statement, **parameters)
        return next(iter(row.values()))

    async def execute(self, statement: str, parameters: Sequence[Mapping[str, Any]] = ({},)) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(text(statement), list(parameters))

    async def rest(self, within: float = 60) -> None:
        """Wait until every job has come to its end."""
        unfinished = "SELECT count(*) FROM queue_jobs WHERE statusid NOT IN (3, 4, 6)"

        async def is_at_rest() -> bool:
            return int(await self.value(unfinished)) == 0

        try:
            await until(is_at_rest, within=within, what="every job has come to its end", every=0.1)
        except AssertionError as error:
            left = await self.rows("SELECT * FROM queue_jobs WHERE statusid NOT IN (3, 4, 6) LIMIT 3")
            raise AssertionError(f"{error}: {await self.value(unfinished)} have not, as {left}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.dispose()
