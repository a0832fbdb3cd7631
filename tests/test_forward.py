"""A bridge from one broker to another, by configuration alone."""

import uuid

import pytest

from connectors.memory import MemoryBroker
from gateway import Gateway, Message
from gateway.config import parse_config
from gateway.job import JobStatus
from gateway.store import JobFilter
from tests.faulty import until, until_it_is, without_schedules

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def names():
    return [f"broker-{uuid.uuid4()}" for _ in range(2)]


@pytest.fixture
def bridge(tmp_path, names):
    floor, cloud = names
    return Gateway.from_config(
        parse_config(f"""
gateway: {{name: bridge, grace: 0.2, admin: null}}
database: {{url: "sqlite:///{without_schedules(tmp_path / "gateway.db")}"}}
jobs: {{retry_delay: 0.01, poll_interval: 0.1}}
connectors:
  floor:
    type: memory
    broker: {floor}
    inbound:
      - topic: sensors
        handler: gateway.forward
        when: content_type == 'application/json' || !has(content_type)
        ordering: parameters.device
        to: {{connector: cloud, topic: "plant.{{device}}.temperature", key: "{{device}}", headers: {{X-Via: bridge}}}}
  cloud: {{type: memory, broker: {cloud}}}
""")
    )


def measured(body, device="d-1", **fields):
    return Message(topic="sensors", body=body, parameters={"device": device}, **fields)


async def test_messages_are_forwarded_by_templates_without_any_python(bridge, names):
    floor, cloud = map(MemoryBroker.named, names)
    async with bridge as gateway:
        floor.put(measured(b"\x00\xff", content_type="application/json", headers=(("unit", b"C"), ("Cookie", b"c"))))
        floor.put(measured(b"", "d-2", tombstone=True, headers=(("traceparent", PARENT.encode()),)))
        floor.put(measured(b"filtered", content_type="text/plain"))
        await until(lambda: len(cloud.published) == 2)
        await until_it_is(lambda: _completed(gateway, 4))

        (view,) = [view for view in gateway.connectors if view.name == "floor"]
        sends = await gateway.store.list(JobFilter(handler="gateway.publish"))
    assert (view.counts["stored"], view.counts["filtered"]) == (2, 1)
    assert len(floor.acknowledged) == 3
    binary, stone = sorted(cloud.published, key=lambda message: message.topic)
    assert (binary.topic, binary.key, binary.body) == ("plant.d-1.temperature", b"d-1", b"\x00\xff")
    assert binary.content_type == "application/json"
    assert [name for name, _ in binary.headers] == ["unit", "X-Via", "gateway-hops", "message-id"]
    assert (stone.topic, stone.key, stone.tombstone, stone.header("traceparent")) == (
        "plant.d-2.temperature",
        b"d-2",
        True,
        PARENT,
    )
    assert {message.message_id for message in cloud.published} == {job.id for job in sends}
    assert {job.ordering_key for job in sends} == {"cloud\x1fd-1", "cloud\x1fd-2"}


async def test_messages_of_one_key_leave_in_the_order_in_which_they_came(bridge, names):
    floor, cloud = map(MemoryBroker.named, names)
    devices = ["a", "b", "c"]
    cloud.stop()
    async with bridge:
        for n in range(60):
            floor.put(measured(b"%d" % n, devices[n % 3]))
        await until(lambda: len(floor.acknowledged) == 60)
        cloud.start()
        await until(lambda: len(cloud.published) == 60, 30)

    for position, device in enumerate(devices):
        own = [int(message.body) for message in cloud.published if message.key == device.encode()]
        assert own == list(range(position, 60, 3))


async def _completed(gateway, count):
    return (await gateway.statistics()).status_counts == {int(JobStatus.COMPLETED): count}
