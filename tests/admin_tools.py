"""A gateway as its admin listener sees it, and one that calls the listener."""

import json
from datetime import UTC, datetime
from types import MappingProxyType

from gateway.admin import ConnectorView
from gateway.arrival import Conservation
from gateway.errors import StoreUnavailable
from gateway.job import PUBLISH


class Running:
    """A gateway as the admin listener sees it."""

    instance, version, running = "test", "1.2.3", 4
    handlers = ("known", PUBLISH)
    facts = MappingProxyType({"jobs": {"enabled": True}})

    def __init__(self, store):
        self._store = store
        self.late = {}
        self.unready = {}
        self.counts = Conservation(received=3, stored=2, in_flight=1)

    @property
    def store(self):
        if self._store is None:
            raise StoreUnavailable("not there yet")
        return self._store

    @property
    def connectors(self):
        fields = ("received", "stored", "duplicate", "filtered", "dead_lettered", "rejected", "in_flight")
        return [
            ConnectorView(
                name="web",
                type="http",
                state="connected",
                reason=None,
                since=datetime(2026, 1, 2, tzinfo=UTC),
                guarantee="at-least-once",
                listens=True,
                counts={name: getattr(self.counts, name) for name in fields},
            )
        ]


class Client:
    """Calls the listener and returns status and JSON."""

    def __init__(self, session, port):
        self.session = session
        self.url = f"http://127.0.0.1:{port}"

    async def __call__(self, method, path, **options):
        async with self.session.request(method, self.url + path, **options) as response:
            body = await response.text()
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            return response.status, json.loads(body) if response.content_type == "application/json" else body
