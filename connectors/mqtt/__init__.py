"""MQTT 5 and 3.1.1: acknowledged once stored, redeliveries told apart; sent with QoS 1, delivered by the PUBACK."""

import asyncio
from collections.abc import Mapping
from typing import NoReturn

from connectors.mqtt.client import Client, Limits
from connectors.mqtt.config import MqttConfig
from connectors.mqtt.messages import Sorter, properties_of, refuse
from connectors.mqtt.window import Window
from gateway.connector import Connector, Guarantee, Inbox, StoredPosition
from gateway.errors import Disconnected, NotConnected, StoreError
from gateway.message import Message
from gateway.telemetry import emit

_BATCH = 1000, 4 * 1024 * 1024
"""Messages and bytes that are stored before the first of them is acknowledged."""


class MqttConnector(Connector[MqttConfig]):
    """Subscribes in a session of its own, and publishes.

    With QoS 1 nothing is lost while the broker keeps the session, and a redelivery makes no second job as long as the
    broker repeats it to this session.
    """

    config_class = MqttConfig
    protocol = "mqtt"
    method = "publish"

    @classmethod
    def guarantee_of(cls, config: MqttConfig) -> Guarantee:
        """Return at-most-once if any entry has QoS 0, or if the broker is to forget the session at once."""
        lossy = any(entry.qos == 0 for entry in config.inbound) or (config.keeps_session and not config.session_expiry)
        return "at-most-once" if lossy else cls.guarantee

    def __init__(self, config: MqttConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self._client: Client | None = None

    @property
    def _session(self) -> str:
        return self.config.client_id or self.name

    async def run(self, inbox: Inbox) -> None:
        """Connect to the first broker that answers, subscribe, and store what comes until it goes away."""
        session = self._session
        stored = await self._positions(inbox, session)
        client = await self._connect(session, keep=self.config.keeps_session and self.config.session_expiry > 0)
        try:
            present = client.limits.session_present
            window = Window(session, self.config.receive_maximum, stored, resumed=present)
            self._look_at(client.limits, expected=window.expected)
            if self.config.inbound:
                await client.subscribe(self.config.inbound)
            self._client = client
            inbox.ready()
            async with asyncio.TaskGroup() as group:
                group.create_task(client.watch())
                group.create_task(self._consume(client, inbox, Sorter(self.config.inbound, window, self._warn)))
        except BaseExceptionGroup as several:
            raise _first(several) from None
        finally:
            self._client = None
            client.close()

    async def publish(self, message: Message) -> str | None:
        """Send with QoS 1; return once the broker has acknowledged it, also if nobody is subscribed."""
        client = self._client
        if client is None:
            raise NotConnected("it was not sent: the connector is not connected")
        refuse(self.config, client.limits, message)
        properties = properties_of(message) if self.config.version == 5 else None
        return await client.publish(message.topic, message.body, properties)

    async def check(self) -> str:
        """Log in, under a client id of its own so that a running gateway is not disturbed, and ask for nothing."""
        client = await self._connect(f"{self._session}:check", keep=False)
        try:
            limits = client.limits
        finally:
            client.close()
        parts = [f"{client.address} answers MQTT {self.config.version}"]
        if limits.maximum_qos == 0:
            parts.append("it knows QoS 0 only")
        if limits.receive_maximum < 65_535:
            parts.append(f"takes {limits.receive_maximum} unconfirmed messages at once")
        if any(entry.qos == 2 for entry in self.config.inbound):
            parts.append("qos 2 is served as qos 1 with redeliveries told apart")
        return ", ".join(parts)

    async def _positions(self, inbox: Inbox, session: str) -> Mapping[int, StoredPosition]:
        if not self.config.keeps_session:
            return {}
        try:
            return await Window.positions(inbox, session, self.config.receive_maximum)
        except StoreError as error:
            raise Disconnected(f"not connected, as what is stored cannot be read: {error}") from error

    async def _connect(self, session: str, *, keep: bool) -> Client:
        failures: list[Exception] = []
        for address in self.config.addresses:
            client = Client(self.config, address, session=session, keep=keep)
            try:
                await client.connect()
            except Disconnected as error:
                failures.append(error)
            else:
                return client
        raise Disconnected("; ".join(map(str, failures)))

    async def _consume(self, client: Client, inbox: Inbox, sorter: "Sorter") -> NoReturn:
        while True:
            deliveries = await client.take(*_BATCH)
            calls = sorter.sort(deliveries)
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(inbox.receive(call.messages, call.entry))
            client.settle(deliveries)

    def _look_at(self, limits: Limits, *, expected: bool) -> None:
        if expected and self.config.session_expiry and not limits.session_present:
            self._warn("the broker had no session any more: what was sent meanwhile is lost to this connector")
        expiry = limits.session_expiry
        if self.config.keeps_session and expiry is not None and expiry < self.config.session_expiry:
            self._warn(f"the broker keeps the session for {expiry} seconds only")

    def _warn(self, warning: str) -> None:
        emit("connector.warning", connector=self.name, warning=warning)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    error = several.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
