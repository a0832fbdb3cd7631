"""SQLite: one process, one writer."""

import pytest

from gateway.testing.store import Database, StoreConformance


class TestSqlite(StoreConformance):
    shared = False  # one gateway process owns the file

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url

    async def test_metadata_that_is_no_json_does_not_block_the_queue(self, database: Database) -> None:
        await database.sql("INSERT INTO queue_jobs (id, handler, metadata) VALUES ('bad', 'h', 'no json')")
        await database.sql("INSERT INTO queue_jobs (id, handler, priority) VALUES ('text', 'h', 'high')")
        await database.sql("INSERT INTO queue_jobs (id, handler) VALUES ('good', 'h')")
        store = await database.open()

        claimed = await self.claim(store)

        assert {job.id for job in claimed} == {"bad", "text", "good"}

    async def test_text_that_is_no_utf_8_does_not_block_the_queue(self, database: Database) -> None:
        await database.sql("INSERT INTO queue_jobs (id, handler, payload) VALUES ('bad', 'h', CAST(x'ff41' AS TEXT))")
        store = await database.open()

        claimed = await self.claim(store)

        assert [job.payload for job in claimed] == ["\ufffdA".encode()]
