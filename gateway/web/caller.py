"""Outgoing HTTP calls: guarded, with deadlines, and judged alike wherever they are made."""

import asyncio
import email.utils
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from gateway.errors import DeliveryError
from gateway.web.egress import Egress, ForbiddenAddress, Origin

MAX_ANSWER = 64 * 1024
"""Bytes of an answer that are kept."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_AGAIN_LATER = {408, 425, 429}
_LONGEST_WAIT = 86_400.0
FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate"}
    | {"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Header names that belong to one connection, and are never passed on."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to make."""

    method: str
    url: URL
    headers: Mapping[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.url.with_query(None).with_fragment(None)}"


class Caller:
    """Makes calls while `async with` it is open: http(s) only, no redirects, no proxies, no cookies.

    Calls may run at once. Each lasts at most `timeout` seconds, connecting at most ten of them.
    """

    def __init__(
        self,
        *,
        trusted: Iterable[Origin] = (),
        allow_private: bool = False,
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._egress = Egress(frozenset(trusted), allow_private=allow_private)
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(10.0, timeout))
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open; connections are made by calls."""
        connector = aiohttp.TCPConnector(resolver=self._egress, ssl=True if self._tls is None else self._tls)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            trust_env=False,
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "ingestion-gateway"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def call(self, call: Call) -> str:
        """Return the answer's text, at most `MAX_ANSWER` bytes of it, if its status is 2xx.

        Raises `DeliveryError` otherwise: permanent if a repetition cannot help.
        """
        if self._session is None:
            raise DeliveryError(f"{call} was not made: the connector is not running")
        try:
            self._egress.check(call.url)
            return await self._attempt(self._session, call)
        except (ForbiddenAddress, aiohttp.InvalidURL) as error:
            raise DeliveryError(f"{call} is not allowed: {error}", permanent=True) from error
        except TimeoutError as error:
            raise DeliveryError(f"{call} was not answered in time") from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(reason := error.__cause__ or error, ForbiddenAddress):
                raise DeliveryError(f"{call} is not allowed: {reason}", permanent=True) from error
            raise DeliveryError(f"{call} failed: {str(error) or type(error).__name__}") from error

    async def _attempt(self, session: aiohttp.ClientSession, call: Call) -> str:
        try:
            return await self._once(session, call)
        except aiohttp.ServerDisconnectedError:
            # Mostly a kept-alive connection that the server had given up; the call has a stable id, so once more.
            await asyncio.sleep(0)
            return await self._once(session, call)

    async def _once(self, session: aiohttp.ClientSession, call: Call) -> str:
        async with session.request(
            call.method, call.url, headers=call.headers, data=call.body, allow_redirects=False
        ) as answer:
            text = await _read(answer)
            if not 200 <= answer.status < 300:
                raise _refused(call, answer, text)
            return text


def safe_headers(pairs: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """Return headers without those that belong to one connection.

    Raises a permanent `DeliveryError` for a name or value that could end the header and begin something else.
    """
    headers: CIMultiDict[str] = CIMultiDict()
    spelling: dict[str, str] = {}  # one for each name, as aiohttp loses repeats in another case
    for name, value in pairs:
        if not _TOKEN.fullmatch(name) or _UNSAFE.search(value):
            raise DeliveryError(f"the header {name!r} cannot be sent: it holds a control character", permanent=True)
        if name.lower() not in FRAMING:
            headers.add(spelling.setdefault(name.lower(), name), value)
    return headers


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds a Retry-After header asks for, at most a day; None if it says nothing usable."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return min(float(value.strip()[:12]), _LONGEST_WAIT)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - now).total_seconds()), _LONGEST_WAIT)


def _refused(call: Call, answer: aiohttp.ClientResponse, text: str) -> DeliveryError:
    later = answer.status in _AGAIN_LATER or answer.status >= 500
    wait = retry_after(answer.headers.get("Retry-After"), datetime.now(UTC)) if later else None
    hint = "; redirects are not followed" if 300 <= answer.status < 400 else ""
    return DeliveryError(
        f"{call} was answered with {answer.status}{hint}", permanent=not later, retry_after=wait, response=text
    )


async def _read(answer: aiohttp.ClientResponse) -> str:
    body = bytearray()
    while len(body) < MAX_ANSWER and (chunk := await answer.content.read(MAX_ANSWER - len(body))):
        body += chunk
    if not answer.content.at_eof():
        answer.close()  # what is more than we keep is not read, so the connection cannot be used again
    return bytes(body).decode("utf-8", "replace")
