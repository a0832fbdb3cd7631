"""An operator lets Kafka be read from elsewhere, with a real gateway and its own commands."""

from pathlib import Path

import pytest

from gateway.store.migrate import migrate
from tests.connectors.kafka_tools import Stranger
from tests.services import Server
from tests.system.example import Example, completed
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TOPIC = "orders.placed"


def bodies(jobs: list[dict[str, object]]) -> list[object]:
    return [job["payload"] for job in jobs]


def put(example: Example, offset: int, *more: str) -> tuple[int, str]:
    done = example.command("positions", "set", "orders", "--topic", TOPIC, "--offset", str(offset), *more)
    return done.returncode, done.stderr


@pytest.mark.parametrize("a_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.database)], indirect=True)
async def test_kafka_goes_on_where_an_operator_says(kafka_server: Server, a_url: str, tmp_path: Path) -> None:
    await migrate(a_url)
    example = Example(tmp_path, "kafka", database=a_url, KAFKA=kafka_server.url)
    async with Stranger.at(kafka_server.url) as stranger:
        await fresh(stranger)
        async with example.running() as database:
            await send(stranger, b"0", b"1", b"2")
            assert bodies(await completed(database, "gateway.log", 3)) == ["0", "1", "2"]
            refused = put(example, 1)
            paused = example.command("connectors", "pause", "orders")
            allowed = put(example, 1)
            example.command("connectors", "resume", "orders")
            assert bodies(await completed(database, "gateway.log", 5)) == ["0", "1", "2", "1", "2"]

        assert (refused[0], paused.returncode, allowed[0]) == (1, 0, 0), (refused, paused.stderr, allowed)
        assert "may be receiving from 'orders' right now" in refused[1]
        assert "at offset 1 (it was 3)" in allowed[1]

        await send(stranger, b"3", b"4")
        assert put(example, 4)[0] == 0
        async with example.running() as database:
            assert bodies(await completed(database, "gateway.log", 6))[5:] == ["4"]
            assert put(example, 0, "--force")[0] == 0  # noticed with the next message
            await send(stranger, b"5")
            assert bodies(await completed(database, "gateway.log", 12))[6:] == ["0", "1", "2", "3", "4", "5"]


async def test_a_topic_made_anew_is_read_once_an_operator_says_where(kafka_server: Server, tmp_path: Path) -> None:
    example = Example(tmp_path, "kafka", KAFKA=kafka_server.url)
    async with Stranger.at(kafka_server.url) as stranger:
        await fresh(stranger)
        async with example.running() as database:
            await send(stranger, b"0", b"1")
            await completed(database, "gateway.log", 2)
        await fresh(stranger)
        await send(stranger, b"anew")
        example.start(**example.environment)
        try:
            await example.ready()
            await until(lambda: has_stopped(example), within=30, what="the connector has stopped", every=0.1)
        finally:
            await example.stop()

        assert put(example, 0)[0] == 0
        async with example.running() as database:
            assert bodies(await completed(database, "gateway.log", 3)) == ["0", "1", "anew"]


async def has_stopped(example: Example) -> bool:
    (view,) = await example.fetch("/api/connectors")
    return view["state"] == "failed" and "deleted and created again" in view["reason"]


async def send(stranger: Stranger, *values: bytes) -> None:
    for value in values:
        await stranger.send(value, topic=TOPIC)


async def fresh(stranger: Stranger) -> None:
    """Make the example's topic anew, whoever used it before."""
    if TOPIC in await stranger.admin.list_topics():
        await stranger.admin.delete_topics([TOPIC])
        await stranger.until_there(TOPIC, there=False)
    await stranger.create(1, TOPIC)
    await stranger.producer.client.force_metadata_update()
