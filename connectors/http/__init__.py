"""HTTP: a request in is a message, answered once it is durable; a message out is a request, delivered by a 2xx."""

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from urllib.parse import quote, unquote
from uuid import uuid4

from aiohttp import web
from yarl import URL

from connectors.http.auth import ApiKeyAuth, HmacAuth, InboundAuth, NoAuth
from connectors.http.config import HttpConfig, HttpEntry, HttpTls, parse_address, routes_of
from gateway.connector import Connector, Inbox
from gateway.crashpoint import reach
from gateway.errors import ConfigError, DeliveryError, Disconnected, NotConnected
from gateway.message import Message
from gateway.web.body import announced_length, read_body
from gateway.web.caller import FRAMING, Call, Caller, safe_headers
from gateway.web.egress import origin
from gateway.web.listener import Limits, Listener
from gateway.web.routes import Refusal, busy, json_response

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SECRET_NAME = re.compile(r"authoriz|cookie|signature|api-?key|secret|token|password|credential", re.IGNORECASE)
_NOT_STORED = FRAMING | {"content-encoding", "content-type"}


class HttpConnector(Connector[HttpConfig]):
    """Serves the routes, and calls `url`. A client that repeats with its Idempotency-Key gets one job."""

    config_class = HttpConfig
    protocol = "http"
    method = "POST"

    def __init__(self, config: HttpConfig, *, name: str) -> None:
        super().__init__(config, name=name)
        self.port: int | None = None
        """The port it listens on, while it runs; of use where `listen` asks for port 0."""
        self._caller: Caller | None = None

    async def run(self, inbox: Inbox) -> None:
        """Serve and be ready to call, until cancelled; requests being stored then have two seconds to be answered."""
        try:
            async with AsyncExitStack() as stack:
                caller = await stack.enter_async_context(self._make_caller())
                if self.config.listen is not None:
                    await self._listen(stack, inbox, self.config.listen)
                self._caller = caller
                inbox.ready()
                await asyncio.Event().wait()
        finally:
            self._caller = self.port = None

    async def publish(self, message: Message) -> str | None:
        """Send one request; its answer's text (capped) is returned once it is 2xx."""
        call = outgoing(self.config, message, time.time())
        if self._caller is None:
            raise NotConnected(f"{call} was not made: the connector is not running")
        return await self._caller.call(call)

    async def check(self) -> str:
        """Read the certificates and connect to `url`, without a request."""
        config, parts = self.config, []
        if config.listen is not None:
            _server_tls(config.tls)
            parts.append(f"would listen on {config.listen}")
        if config.url is not None:
            _client_tls(config)
            host, port = origin(URL(config.url))
            try:
                async with asyncio.timeout(5):
                    _, writer = await asyncio.open_connection(host, port)
            except OSError as error:
                raise Disconnected(f"{host}:{port} cannot be reached: {_reason(error)}") from error
            writer.close()
            parts.append(f"{host}:{port} answers")
        return ", ".join(parts) or "calls whole URLs only"

    async def _listen(self, stack: AsyncExitStack, inbox: Inbox, listen: str) -> None:
        config = self.config
        limits = Limits(
            header=config.header_timeout,
            body=config.body_timeout,
            idle=config.idle_timeout,
            connections=config.max_connections,
        )
        intake = Intake(config, inbox)
        listener = Listener(intake.handle, parse_address(listen), limits=limits, tls=_server_tls(config.tls))
        try:
            await stack.enter_async_context(listener)
        except OSError as error:
            raise ConfigError([f"cannot listen on {listen}: {_reason(error)}"]) from error
        self.port = listener.port

    def _make_caller(self) -> Caller:
        config = self.config
        return Caller(
            trusted=[origin(URL(config.url))] if config.url is not None else [],
            allow_private=config.allow_private,
            timeout=config.timeout,
            tls=_client_tls(config),
        )


class Intake:
    """Turns requests into messages, and receipts into answers."""

    def __init__(self, config: HttpConfig, inbox: Inbox) -> None:
        self._config, self._inbox = config, inbox
        self._routes = routes_of(config.inbound)
        self._storing = self._bytes = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request: 202 once its message is durable. Raises `Refusal` for all else."""
        path = request.rel_url.raw_path
        entry, parameters = self._routes.resolve(request.method, path)
        auth = entry.auth or NoAuth(type="none")
        known = None if isinstance(auth, HmacAuth) else auth.authenticate(request.headers)
        dedupe_id = _idempotency_key(request)
        self._refuse_under_pressure(announced_length(request, self._config.max_body))
        with self._charging() as charge:
            body = await read_body(request, limit=self._config.max_body, charge=charge)
            if isinstance(auth, HmacAuth):
                known = auth.verify(request.headers, body, time.time())
            assert known is not None
            parameters |= {name: request.query[name] for name in entry.query if name in request.query}
            topic = unquote(path)
            message = Message(
                topic=topic,
                body=body,
                headers=_stored_headers(request, auth),
                content_type=request.headers.get("Content-Type"),
                parameters=parameters,
                dedupe_id=known.dedupe_id or dedupe_id,
                dedupe_scope=f"{topic}\n{known.principal}",
            )
            return await self._store(message, entry)

    async def _store(self, message: Message, entry: HttpEntry) -> web.Response:
        if self._inbox.stopping:
            raise busy("the gateway is stopping, send this again")
        self._storing += 1
        try:
            async with asyncio.timeout(self._config.accept_timeout):
                (receipt,) = await self._inbox.receive([message], entry)
        except TimeoutError:
            raise busy("this could not be stored in time, send it again later") from None
        except Disconnected:
            raise busy() from None
        finally:
            self._storing -= 1
        if receipt.filtered:
            return json_response({"job_id": None, "filtered": True}, status=202, kind=Acknowledgement)
        if receipt.conflict:
            raise Refusal(422, "idempotency_conflict", "this key was used for another body before")
        replayed = {"Idempotent-Replayed": "true"} if receipt.duplicate else {}
        return json_response({"job_id": receipt.job_id}, status=202, headers=replayed, kind=Acknowledgement)

    def _refuse_under_pressure(self, more: int) -> None:
        full = self._bytes > 0 and self._bytes + more > self._config.max_pending_bytes
        if full or self._storing >= self._config.max_pending:
            raise busy()

    @contextmanager
    def _charging(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes that have come: a stranger could announce any number for nothing."""
        held = 0

        def charge(more: int) -> None:
            nonlocal held
            if self._bytes > held and self._bytes + more > self._config.max_pending_bytes:
                raise busy()
            held += more
            self._bytes += more

        try:
            yield charge
        finally:
            self._bytes -= held


class Acknowledgement(web.Response):
    """The answer after which a client may forget its message."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Send it."""
        reach("http.before_answer")
        await super().write_eof(data)
        reach("http.after_answer")


def outgoing(config: HttpConfig, message: Message, now: float) -> Call:
    """Return the request that delivers a message. Raises a permanent `DeliveryError` if there is none."""
    url = _destination(config, message.topic)
    own = config.url is not None and url.origin() == URL(config.url).origin()
    configured = [(name, value.get_secret_value()) for name, value in config.headers.items()]
    headers = safe_headers(configured if own or config.url is None else [])
    carried = safe_headers((name, value.decode("utf-8", "replace")) for name, value in message.headers)
    for name in carried:
        headers.popall(name, None)
    headers.extend(carried)
    message_id = message.message_id
    headers["Content-Type"] = message.content_type or headers.get("Content-Type") or "application/octet-stream"
    if message_id is not None:
        headers["Idempotency-Key"] = message_id
    if isinstance(config.auth, HmacAuth):
        headers.update(config.auth.sign(message_id or uuid4().hex, message.body, now))
    elif config.auth is not None and own:
        headers.update(config.auth.headers())
    return Call(config.method, url, safe_headers(headers.items()), message.body)


def _destination(config: HttpConfig, topic: str) -> URL:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", topic):
        if not config.allow_absolute_urls:
            raise DeliveryError("a topic is a path below 'url'; 'allow_absolute_urls' is off", permanent=True)
        try:
            return URL(topic)
        except ValueError as error:
            raise DeliveryError("the topic is no valid URL", permanent=True) from error
    if config.url is None:
        raise DeliveryError("this connector has no 'url' to send to", permanent=True)
    segments = [segment for segment in topic.split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise DeliveryError("a topic cannot leave the path of 'url'", permanent=True)
    base = URL(config.url)
    if not segments:
        return base
    path = "/".join([base.raw_path.rstrip("/"), *(quote(segment, safe="") for segment in segments)])
    return URL.build(
        scheme=base.scheme,
        authority=base.raw_authority,
        path=path + ("/" if topic.endswith("/") else ""),
        query_string=base.raw_query_string,
        encoded=True,
    )


def _idempotency_key(request: web.BaseRequest) -> str | None:
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        message = "an Idempotency-Key is there once, and has 1 to 255 visible ASCII characters"
        raise Refusal(400, "bad_idempotency_key", message)
    return keys[0]


def _stored_headers(request: web.BaseRequest, auth: InboundAuth) -> tuple[tuple[str, bytes], ...]:
    """Return the headers worth keeping: not the connection's, and nothing that lets anybody in."""
    listed = {name.strip().lower() for name in request.headers.get("Connection", "").split(",")}
    if isinstance(auth, ApiKeyAuth):
        listed.add(auth.header.lower())
    pairs = [(name.decode("latin-1"), value.decode("latin-1").encode()) for name, value in request.raw_headers]
    return tuple(
        (name, value)
        for name, value in pairs
        if name.lower() not in listed | _NOT_STORED and not _SECRET_NAME.search(name)
    )


def _server_tls(tls: HttpTls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if tls.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return _with_files(context, tls)


def _client_tls(config: HttpConfig) -> ssl.SSLContext | None:
    if config.tls is None or config.listen is not None:
        return None
    return _with_files(ssl.create_default_context(cafile=None), config.tls)


def _with_files(context: ssl.SSLContext, tls: HttpTls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
        if tls.certificate is not None:
            password = tls.key_password.get_secret_value() if tls.key_password is not None else ""
            context.load_cert_chain(tls.certificate, tls.key, password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"a file under 'tls' cannot be used: {_reason(error)}"]) from error
    return context


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
