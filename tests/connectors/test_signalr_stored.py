"""A hub that helps, a store, and connections that are cut: every event becomes one job."""

import asyncio
import json

import pytest

from connectors.signalr import SignalrConnector
from connectors.signalr.config import SignalrConfig
from gateway.inbox import InboxWriter
from gateway.store import JobFilter
from gateway.supervisor import ConnectorState, Supervisor
from gateway.testing.harness import until
from tests.connectors.signalr_tools import EVENT, connector, seen
from tests.faulty import Faulty, sqlite_store

EVENTS = 400


@pytest.mark.parametrize("help_", ["acknowledge", "resume"])
async def test_every_event_becomes_one_job_however_often_the_connection_is_cut(hub, tmp_path, help_):
    if help_ == "acknowledge":
        keys = {"on_connect": [{"method": "subscribe"}]}
        entry = EVENT | {"acknowledge": {"method": "acknowledge", "id": "body[0].id"}}
    else:
        keys = {}
        entry = EVENT | {"resume": {"method": "subscribe", "position": "body[0].id"}}
    async with sqlite_store(tmp_path) as store:
        writer = InboxWriter(Faulty(store))
        supervisor = Supervisor(
            "hub",
            lambda: connector(hub.url, inbound=[entry], **keys),
            lambda ready: writer.connection("hub", "signalr", method="invoke", on_ready=ready),
            longest_pause=0.2,
        )
        running = asyncio.create_task(supervisor.run())
        for n in range(EVENTS):
            await hub.control("enqueue", {"target": "event", "n": n})
            if n % 20 == 10:
                await until(lambda: supervisor.state is ConnectorState.CONNECTED)
                await hub.control("abort")
            if n == EVENTS // 2:
                hub.kill()
                hub.start()
        found = {}
        async with asyncio.timeout(30):
            while len(found) < EVENTS:
                jobs = await store.list(JobFilter(limit=2 * EVENTS))
                found = {json.loads(job.payload)[0]["n"]: job for job in jobs}
                await asyncio.sleep(0.02)
        if help_ == "acknowledge":
            await seen(hub, lambda state: not state["waiting"])
        running.cancel()
        await asyncio.wait({running})
        await writer.close()
        jobs = await store.list(JobFilter(limit=2 * EVENTS))
    assert len(jobs) == EVENTS
    order = [json.loads(job.payload)[0]["n"] for job in sorted(jobs, key=lambda job: job.sequence)]
    assert sorted(order) == list(range(EVENTS))
    assert help_ == "acknowledge" or order == list(range(EVENTS))
    assert writer.conservation["hub"].residue == 0


def test_with_the_hub_s_help_for_every_event_it_stores_at_least_once():
    def given(*keys):
        inbound = [{"event": f"e{n}", "handler": "h", **each} for n, each in enumerate(keys)]
        return SignalrConnector.guarantee_of(
            SignalrConfig.model_validate({"type": "signalr", "url": "http://hub", "inbound": inbound})
        )

    told = {"acknowledge": {"method": "Ack", "id": "body[0]"}}
    asked = {"resume": {"method": "Since", "position": "body[0]"}}
    assert given() == given({}) == given(told, {}) == "at-most-once"
    assert given(told) == given(told, asked) == "at-least-once"
