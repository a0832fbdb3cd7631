"""SignalR against a hub on Microsoft's own protocol classes: what every connector must do, and what only it can do."""

import base64
from dataclasses import replace
from typing import ClassVar
from uuid import uuid4

import pytest

from connectors.signalr import SignalrConnector
from connectors.signalr.config import SignalrConfig
from gateway.connector import Inbox
from gateway.message import Message
from gateway.testing.connectors import ConnectorConformance
from gateway.testing.harness import Harness


class Unpacking(Inbox):
    """Hands on what the stranger sent: the event's argument, which is the body of its message."""

    def __init__(self, inbox, body_of):
        self._inbox, self._body_of = inbox, body_of

    def ready(self):
        self._inbox.ready()

    async def receive(self, messages, entry):
        return await self._inbox.receive([replace(m, body=self._body_of(m.json()[0])) for m in messages], entry)

    async def positions(self, cluster, topic, partitions):
        return await self._inbox.positions(cluster, topic, partitions)


class HubHarness(Harness):
    """A stranger who has hub code invoke an event on a group, one for each instance, and waits for its answer."""

    minimal: ClassVar = {"type": "signalr", "url": "https://hub.example/events"}
    protocol = "json"

    def __init__(self, hub):
        self.hub = hub
        self.sent = 0
        self.group = uuid4().hex[:8]

    def keys(self, instance):
        join = {"method": "join", "arguments": [f"{self.group}-{instance}"]}
        return {"on_connect": [join], "inbound": [{"event": self.topic, "handler": "h"}]}

    def connector(self, instance=0):
        config = {"type": "signalr", "url": self.hub.url, "protocol": self.protocol, "max_pending": 100}
        body_of = self.body_of

        class Unpacked(SignalrConnector):
            async def run(self, inbox):
                await super().run(Unpacking(inbox, body_of))

        return Unpacked(SignalrConfig.model_validate({**config, **self.keys(instance)}), name=f"c{instance}")

    def body_of(self, argument):
        return argument.encode()

    def argument_of(self, body):
        return body.decode()

    async def send(self, message, instance=0):
        headers = {name: value.decode() for name, value in message.headers}
        self.sent += 1
        event = {"target": self.topic, "arguments": [self.argument_of(message.body)], "headers": headers}
        await self.hub.control("invoke", event | {"id": str(self.sent)}, group=f"{self.group}-{instance}")

    async def acknowledged(self):
        return len((await self.hub.control())["answers"])

    async def delivered(self):
        return [
            Message(
                topic=self.topic,
                body=base64.b64decode(argument["base64"]) if isinstance(argument, dict) else str(argument).encode(),
                message_id=each["headers"].get("message-id"),
            )
            for each in (await self.hub.control())["received"]
            for argument in each["arguments"]
        ]

    async def stop_broker(self):
        self.hub.stop()

    async def start_broker(self):
        self.hub.start()  # in this thread, whose end would be the hub's too

    def refusable(self):
        return Message(topic="fail", body=b"x")


class MessagePackHarness(HubHarness):
    protocol = "messagepack"

    def body_of(self, argument):
        return base64.b64decode(argument)

    def argument_of(self, body):
        return {"base64": base64.b64encode(body).decode()}


class AcknowledgingHarness(HubHarness):
    """A hub that keeps each event until it is acknowledged, and sends what it keeps to whoever subscribes."""

    def keys(self, instance):
        acknowledge = {"method": "acknowledge", "id": "body[0].id"}
        entry = {"event": self.topic, "handler": "h", "acknowledge": acknowledge}
        return {"on_connect": [{"method": "subscribe"}], "inbound": [entry]}

    def body_of(self, argument):
        return argument["body"].encode()

    async def send(self, message, instance=0):
        headers = {name: value.decode() for name, value in message.headers}
        await self.hub.control("enqueue", {"target": self.topic, "body": message.body.decode(), "headers": headers})

    async def acknowledged(self):
        return (await self.hub.control())["done"]


class TestSignalR(ConnectorConformance):
    prefetch = 100
    redelivers = False  # the protocol has no acknowledgement: a hub forgets an event when it has sent it
    has_dedupe_id = False  # nor an identity of an event
    carries_key = False  # an invocation has a target, arguments and headers, no key
    takes_binary = False  # an argument in JSON is no binary

    @pytest.fixture
    async def harness(self, hub):
        return HubHarness(hub)


class TestSignalRInMessagePack(ConnectorConformance):
    prefetch = 100
    redelivers = has_dedupe_id = carries_key = False  # as above

    @pytest.fixture
    async def harness(self, hub):
        return MessagePackHarness(hub)


class TestSignalRWithAcknowledgement(ConnectorConformance):
    prefetch = 100
    carries_key = takes_binary = False  # as above

    @pytest.fixture
    async def harness(self, hub):
        return AcknowledgingHarness(hub)
