"""What is sent to real brokers, when the gateway dies between the send and its mark."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.services import Server
from tests.system.brokers import KINDS, Received
from tests.system.database import Database
from tests.system.ledger import judge
from tests.system.process import Gateway
from tests.system.strangers import Producer
from tests.system.waiting import until

DEATHS = {"outbox.after_publish": 20, "outbox.before_finish": 3}
"""Points between the send and its mark, and how often each is passed before the gateway dies there."""
GROUPS = 6
MESSAGES = 90

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


async def test_a_death_between_send_and_mark_repeats_the_message_in_its_place(
    broker_server: Server, a_url: str, tmp_path: Path
) -> None:
    async with KINDS[broker_server.name](broker_server) as broker, Database(a_url) as database:
        await broker.prepare("publish")
        orders = [
            ("publish", {"topic": broker.topic("sent"), "group": f"group {number}", "failures": int(number % 3 == 0)})
            for number in range(GROUPS)
        ]
        producer = Producer(broker, *orders)
        entry = broker.entry("publish", handler="example.publish", ordering="body.group")
        gateway = Gateway(tmp_path, a_url, out=broker.connector(entry))
        await gateway.prepare(database)
        try:
            gateway.start()
            await gateway.connected()
            assert await gateway.stop() == 0, gateway.tail()
            for point, passes in DEATHS.items():
                gateway.start(GATEWAY_CRASHPOINT=point, GATEWAY_CRASHPOINT_SKIP=f"{passes}")
                await producer.send(MESSAGES)
                await until(lambda: gateway.code is not None, within=60, what=f"it dies at {point}")
            gateway.start()
            await producer.all_there(database)
            assert await gateway.stop() == 0, gateway.tail()
        finally:
            gateway.kill()
        ledger = await producer.ledger(database)
    repeated = len(ledger.received) - len(set(ledger.received))
    print(f"{len(ledger.received)} received, {repeated} of them again")
    assert judge(ledger) == []
    assert repeated >= len(DEATHS)
    assert out_of_order(broker.received) == {}


def out_of_order(received: Sequence[Received]) -> dict[int, list[int]]:
    """Return the groups whose messages did not come in the order in which they were made, repeats included."""
    groups: dict[int, list[int]] = defaultdict(list)
    for _, body in received:
        groups[body["number"] % GROUPS].append(body["number"])
    return {group: numbers for group, numbers in groups.items() if numbers != sorted(numbers)}
