"""A hub for the tests of SignalR, connectors for it, and a hub inside the test's process that misbehaves."""

import asyncio
import json
from contextlib import asynccontextmanager

from aiohttp import web

from connectors.signalr import SignalrConnector
from connectors.signalr.config import SignalrConfig
from gateway.testing.harness import running
from tests.brokers.signalr import SignalRHub
from tests.conftest import missing
from tests.services import ServiceMissing

EVENT = {"event": "event", "handler": "h"}


def started(**options):
    """Start a hub. Skips the test where Node.js is missing, or fails it if nothing may be."""
    try:
        return SignalRHub(**options).start()
    except ServiceMissing as reason:
        missing(str(reason))
        raise


def connector(url, **keys):
    keys = {"type": "signalr", "url": url, "inbound": [EVENT], **keys}
    return SignalrConnector(SignalrConfig.model_validate(keys), name="hub")


@asynccontextmanager
async def receiving(hub, inbox=None, **keys):
    """Run a connector for a hub, and give the connector and its inbox."""
    made = connector(hub.url, **keys)
    async with running(made, inbox) as recorder:
        yield made, recorder


async def seen(hub, condition, seconds=15):
    """Wait until what the hub has seen fulfils a condition, and return it."""
    async with asyncio.timeout(seconds):
        while True:
            state = await hub.control()
            if condition(state):
                return state
            await asyncio.sleep(0.01)


@asynccontextmanager
async def scripted(*frames, negotiation=None, status=200, before_handshake=()):
    """Serve a hub that sends these frames after its handshake, whatever comes in; give its url and what came in.

    A frame that is a callable is called with the request's WebSocket.
    """
    came = []

    async def negotiate(request):
        if negotiation == "hang":
            await asyncio.sleep(60)
        default = {"negotiateVersion": 1, "connectionId": "a", "connectionToken": "b"}
        transports = {"availableTransports": [{"transport": "WebSockets", "transferFormats": ["Text", "Binary"]}]}
        body = {**default, **transports} if negotiation is None else negotiation
        return web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))

    async def serve(request):
        stream = web.WebSocketResponse(autoping=False)
        await stream.prepare(request)
        came.append((await stream.receive()).data)
        for frame in (*before_handshake, *([] if before_handshake else ["{}\x1e"]), *frames):
            if callable(frame):
                await frame(stream)
            elif isinstance(frame, str):
                await stream.send_str(frame)
            else:
                await stream.send_bytes(frame)
        async for message in stream:
            came.append(message.data)
        return stream

    application = web.Application()
    application.router.add_post("/hub/negotiate", negotiate)
    application.router.add_get("/hub", serve)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hub", came
    finally:
        await runner.cleanup()
