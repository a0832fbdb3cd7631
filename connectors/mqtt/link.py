"""How a connection to an MQTT broker is opened: TCP, TLS, websocket and CONNECT; after that no thread is left.

Name and address are the event loop's business; what paho can only do blocking is done in a thread that ends with it.
"""

import asyncio
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from connectors.mqtt.config import Address, MqttConfig
from gateway.errors import ConfigError, Disconnected

T = TypeVar("T")

_CHUNK = 32_768


class Paho(paho.Client):
    """paho with a socket of ours, read in large pieces. The four private hooks it uses are the same in 1.x and 2.x."""

    def __init__(self, sock: socket.socket, **options: Any) -> None:
        self._given, self._piece, self._piece_at = sock, b"", 0
        self.heard: Callable[[], None] = lambda: None
        self.failure: OSError | None = None
        """Why nothing more can be read, if the socket said so."""
        super().__init__(CallbackAPIVersion.VERSION2, reconnect_on_failure=False, manual_ack=True, **options)

    @property
    def descriptor(self) -> int:
        """The socket's number, -1 once it is closed."""
        return self._given.fileno()

    @property
    def holds_more(self) -> bool:
        """Whether something was read from the socket that `loop_read` has not seen."""
        unseen = self._piece_at < len(self._piece)
        return unseen or (isinstance(self._given, ssl.SSLSocket) and self._given.pending() > 0)

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Send all PUBACKs at once."""
        packet = b"".join([struct.pack("!BBH", 0x40, 2, packet_id) for packet_id in packet_ids])
        self._packet_queue(0x40, packet, 0, 1)

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._send_pingreq()

    def drop(self) -> None:
        """Close without a goodbye."""
        self._sock_close()

    def _create_socket_connection(self) -> socket.socket:
        return self._given

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._piece_at == len(self._piece):
            self._piece, self._piece_at = b"", 0
            try:
                data = super()._sock_recv(max(bufsize, _CHUNK))
            except BlockingIOError:
                raise
            except OSError as error:
                self.failure = error
                raise
            self.heard()
            if len(data) <= bufsize:
                return data
            self._piece = data
        start, self._piece_at = self._piece_at, min(self._piece_at + bufsize, len(self._piece))
        return self._piece[start : self._piece_at]


async def open_link(config: MqttConfig, address: Address, *, session: str, keep: bool) -> Paho:
    """Return a client that has sent CONNECT and whose socket does not block; nothing was read yet.

    `keep`: the broker is asked to keep the session. Raises `OSError` or `ValueError` if the broker cannot be reached,
    `ConfigError` if a file cannot be used. However it ends otherwise, thread and socket are gone.
    """
    sock = await _dial(address)

    def shake_hands() -> Paho:
        nonlocal sock
        if address.tls:
            context = tls_context(config)
            sock = context.wrap_socket(sock, server_hostname=address.host, do_handshake_on_connect=False)
        sock.settimeout(config.connect_timeout)
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        return _connect(sock, config, address, session=session, keep=keep)

    try:
        return await _in_thread(shake_hands, abort=lambda: _shutdown(sock))
    except BaseException:
        sock.close()
        raise


def _connect(sock: socket.socket, config: MqttConfig, address: Address, *, session: str, keep: bool) -> Paho:
    modern = config.version == 5
    client = Paho(
        sock,
        client_id=session,
        protocol=paho.MQTTv5 if modern else paho.MQTTv311,
        transport="tcp" if address.path is None else "websockets",
        **({} if modern else {"clean_session": not keep}),
    )
    client.max_inflight_messages_set(0)  # the window is ours: paho's goes through all messages at each answer
    if address.path is not None:
        client.ws_set_options(path=address.path)
    if config.username is not None:
        client.username_pw_set(config.username, config.password.get_secret_value() if config.password else None)
    if (will := config.will) is not None:
        client.will_set(will.topic, will.payload.encode(), will.qos, will.retain)
    options: dict[str, Any] = {}
    if modern:
        options = {"clean_start": not keep, "properties": _properties(config, keep=keep)}
    sent = client.connect(address.host, address.port, config.keepalive, **options)
    if sent != paho.MQTT_ERR_SUCCESS or client.socket() is None:
        raise ConnectionError("it hung up at once")
    return client


def tls_context(config: MqttConfig) -> ssl.SSLContext:
    """Return a context that verifies the broker. Raises `ConfigError` if a file cannot be used."""
    tls = config.tls
    try:
        context = ssl.create_default_context(cafile=tls.ca if tls is not None else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls is not None and tls.certificate is not None:
            password = tls.key_password.get_secret_value() if tls.key_password is not None else ""
            context.load_cert_chain(tls.certificate, tls.key, password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"a file under 'tls' cannot be used: {error.strerror or error}"]) from error
    if tls is not None and not tls.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _properties(config: MqttConfig, *, keep: bool) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = config.session_expiry if keep else 0
    properties.ReceiveMaximum = config.receive_maximum
    return properties


async def _dial(address: Address) -> socket.socket:
    """Connect to the first of the host's addresses that answers."""
    loop = asyncio.get_running_loop()
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except socket.gaierror:  # a name: to ask for it may take long
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failures: list[OSError] = []
    for family, kind, protocol, _, where in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            failures.append(error)
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failures[0]


def _shutdown(sock: socket.socket | None) -> None:
    if sock is None or sock.fileno() < 0:
        return
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which is not for two threads
    except OSError:
        return  # never connected, or cut off already


async def _in_thread(work: Callable[[], T], *, abort: Callable[[], None]) -> T:
    """Run blocking work in a thread of its own, which has ended when this returns; `abort` makes it end."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again in the loop
            loop.call_soon_threadsafe(ended.set_exception, error)
        else:
            loop.call_soon_threadsafe(ended.set_result, result)

    thread = threading.Thread(target=run, name="mqtt connect", daemon=True)
    thread.start()
    try:
        await asyncio.wait({ended})
    except asyncio.CancelledError:
        abort()
        await asyncio.wait({ended}, timeout=5)
        if ended.done():
            ended.exception()
        raise
    finally:
        if ended.done():
            thread.join()
    return ended.result()


def explained(address: Address, error: OSError | ValueError) -> Exception:
    """Return the error of ours that says why a link could not be opened."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigError([f"the certificate of {address} cannot be trusted: {error.verify_message}"])
    if isinstance(error, ConnectionError) and error.errno:
        reason = os.strerror(error.errno)
    else:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return Disconnected(f"{address} cannot be reached: {reason}")
