"""The examples as they are: a gateway process each, against real brokers; one message in and, where it sends, out."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from tests.connectors import kafka_tools, mqtt_tools, stomp_tools
from tests.services import Server, free_port
from tests.system.conftest import started
from tests.system.example import Example, completed
from tests.system.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BODY = b'{"id": 1}'


@pytest.fixture
def mosquitto() -> Iterator[Server]:
    yield from started("mosquitto")


@pytest.fixture
def activemq() -> Iterator[Server]:
    yield from started("activemq")


@pytest.fixture
def signalr() -> Iterator[Any]:
    yield from started("signalr")


@asynccontextmanager
async def stranger_at(kafka_server: Server, *topics: str) -> AsyncIterator[kafka_tools.Stranger]:
    async with kafka_tools.Stranger.at(kafka_server.url) as stranger:
        known = set(await stranger.admin.list_topics())
        await stranger.admin.create_topics([NewTopic(name, 1, 1) for name in topics if name not in known])
        for name in topics:
            await stranger.until_there(name, there=True)
        yield stranger


async def test_kafka(kafka_server: Server, tmp_path: Path) -> None:
    example = Example(tmp_path, "kafka", KAFKA=kafka_server.url)
    async with stranger_at(kafka_server, "orders.placed", "billing") as stranger:
        said = example.check()["connectors.orders"]
        async with example.running() as database:
            await stranger.producer.send_and_wait("orders.placed", BODY)
            (job,) = await completed(database, "gateway.log")
            example.send("orders", "billing", "hi")
        (record,) = await stranger.everything("billing")
    assert (said["state"], "orders.placed: 1 partition" in said["text"]) == ("ok", True)
    assert (job["payload"], job["protocol"], record.value) == (BODY.decode(), "kafka", b"hi")


async def test_mqtt(mosquitto: Server, tmp_path: Path) -> None:
    example = Example(tmp_path, "mqtt", MQTT_URL=mosquitto.url)
    stranger = await mqtt_tools.Stranger(mosquitto.port, "stranger").connect()
    said = example.check()["connectors.floor"]
    try:
        await stranger.subscribe("plant/#")
        async with example.running() as database:
            await stranger.publish("sensors/7/temperature", BODY)
            (job,) = await completed(database, "gateway.log")
            example.send("floor", "plant/7", "hi")
            await until(lambda: bool(stranger.received), within=10, what="the message is received")
    finally:
        await stranger.close()
    assert said["state"] == "ok"
    assert (job["payload"], job["protocol"]) == (BODY.decode(), "mqtt")
    assert [(message.topic, message.body) for message in stranger.received] == [("plant/7", b"hi")]


async def test_activemq(activemq: Server, tmp_path: Path) -> None:
    example = Example(tmp_path, "activemq", ACTIVEMQ=activemq.url)
    stranger = await stomp_tools.Stranger.connect(activemq.port)
    said = example.check()["connectors.broker"]
    try:
        async with example.running() as database:
            await stranger.send("/queue/orders.placed", BODY)
            await stranger.subscribe("/queue/orders.seen")
            seen = await stranger.message()
            await stranger.send("/queue/orders.cancelled", b"a")
            (job,) = await completed(database, "gateway.log")
    finally:
        await stranger.close()
    assert said["state"] == "ok"
    assert (seen.body, job["payload"], job["protocol"]) == (BODY, "a", "activemq")


async def test_signalr(signalr: Any, tmp_path: Path) -> None:
    example = Example(tmp_path, "signalr", HUB=signalr.url)
    said = example.check()["connectors.hub"]
    async with example.running() as database:
        await signalr.control("invoke", {"target": "OrderPlaced", "arguments": [{"id": 1}]})
        (job,) = await completed(database, "gateway.log")
        example.send("hub", "Send", '["hi", 7]')
        received = (await signalr.control())["received"]
    assert said["state"] == "ok"
    assert (json.loads(job["payload"]), job["protocol"]) == ([{"id": 1}], "signalr")
    assert [each["arguments"] for each in received] == [["hi", 7]]


async def test_bridge(kafka_server: Server, mosquitto: Server, tmp_path: Path) -> None:
    example = Example(tmp_path, "bridge", KAFKA=kafka_server.url, MQTT_URL=mosquitto.url)
    receiver = await mqtt_tools.Stranger(mosquitto.port, "receiver").connect()
    try:
        await receiver.subscribe("#")
        async with stranger_at(kafka_server, "readings") as stranger, example.running() as database:
            record = {"key": b"d-1", "headers": [("unit", b"C"), ("content-type", b"application/json")]}
            await stranger.producer.send_and_wait("readings", BODY, **record)
            await until(lambda: bool(receiver.received), within=20, what="the message has crossed the bridge")
            (sent,) = await completed(database, "gateway.publish")
    finally:
        await receiver.close()
    (message,) = receiver.received
    assert (message.topic, message.body, message.message_id) == ("plant/readings", BODY, sent["id"])
    assert ("unit", b"C") in message.headers


@pytest.mark.parametrize(
    ("name", "connector", "variable", "scheme"),
    [
        ("kafka", "orders", "KAFKA", ""),
        ("mqtt", "floor", "MQTT_URL", "mqtt://"),
        ("activemq", "broker", "ACTIVEMQ", "stomp://"),
        ("signalr", "hub", "HUB", "http://"),
    ],
)
def test_check_says_which_broker_is_absent(
    tmp_path: Path, name: str, connector: str, variable: str, scheme: str
) -> None:
    address = f"127.0.0.1:{free_port()}"

    said = Example(tmp_path, name, **{variable: f"{scheme}{address}"}).check()[f"connectors.{connector}"]

    assert said["state"] == "failed"
    assert address in said["text"]
    assert "\n" not in said["text"]
