"""Reading a request's body: bounded after decompression too, and refused before it is read where that can be known."""

import zlib
from collections.abc import Callable

from aiohttp import web

from gateway.web.routes import Refusal

_SLICE = 64 * 1024


def too_large() -> Refusal:
    """Return the refusal for a body over the limit."""
    return Refusal(413, "too_large", "the body is larger than this gateway takes")


def announced_length(request: web.BaseRequest, limit: int) -> int:
    """Return how many bytes will come at least. Raises `Refusal` 413 or 415, before anything of the body is read."""
    if _encoding(request) not in ("", "identity", "gzip", "x-gzip", "deflate"):
        message = "this Content-Encoding is not supported"
        raise Refusal(415, "unsupported_encoding", message, Accept_Encoding="gzip, deflate")
    length = request.content_length or 0
    if length > limit:
        raise too_large()
    return length


async def read_body(request: web.BaseRequest, *, limit: int, charge: Callable[[int], None] = lambda _: None) -> bytes:
    """Return the decoded body, at most `limit` bytes of it.

    `charge` is told of each further piece of memory, and may raise a `Refusal`. Raises `Refusal` 413 as soon as
    there is one byte too many, 415 for an unknown Content-Encoding, 400 for a body that is not what it claims.
    """
    announced_length(request, limit)
    await _invite(request)
    encoding = _encoding(request)
    inflate = None if encoding in ("", "identity") else _Inflate("gzip" in encoding, limit)
    body, charged, raw = bytearray(), 0, 0
    while chunk := await request.content.readany():
        raw += len(chunk)
        if raw > limit:
            raise too_large()
        for start in range(0, len(chunk), _SLICE):
            piece = chunk[start : start + _SLICE]
            body += piece if inflate is None else inflate.feed(piece)
            charge(len(body) - charged)
            charged = len(body)
    if inflate is not None:
        inflate.finish()
    return bytes(body)


def _encoding(request: web.BaseRequest) -> str:
    return ",".join(request.headers.getall("Content-Encoding", ())).strip().lower()


async def _invite(request: web.BaseRequest) -> None:
    expected = request.headers.get("Expect", "").lower()
    if expected == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer proper has not begun
    elif expected:
        raise Refusal(417, "expectation_failed", "this expectation is not supported")


class _Inflate:
    """Unpacks gzip (several members too) or deflate (zlib, or raw as some clients send it), up to a limit."""

    def __init__(self, gzip: bool, limit: int) -> None:
        self._gzip, self._left = gzip, limit
        self._member: zlib._Decompress | None = None

    def feed(self, data: bytes) -> bytes:
        out = b""
        try:
            while data:
                if self._member is None:
                    self._member = zlib.decompressobj(self._wbits(data))
                if self._member.eof:
                    raise _broken()
                # One byte more than is left, so that reaching the limit and passing it are told apart.
                out += (piece := self._member.decompress(data, self._left + 1))
                self._left -= len(piece)
                if self._left < 0:
                    raise too_large()
                data = self._member.unconsumed_tail or self._member.unused_data
                if self._gzip and self._member.eof:
                    self._member = None
        except zlib.error as error:
            raise _broken() from error
        return out

    def finish(self) -> None:
        if self._member is not None and not self._member.eof:
            raise _broken()

    def _wbits(self, data: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        return zlib.MAX_WBITS if data[0] & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS


def _broken() -> Refusal:
    return Refusal(400, "bad_request", "the body is not what its Content-Encoding says")
