"""Which addresses the gateway may call when the destination is not the operator's own words.

A name is resolved once, every address of it is checked, and the connection goes to the checked address, so that
a name that changes its mind (DNS rebinding) gains nothing.
"""

import ipaddress
import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Origin = tuple[str, int]

_SPECIAL = (
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's metadata, on a public address; the others' are private
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments, of which older Pythons know a few only
    ipaddress.ip_network("192.88.99.0/24"),  # relays from IPv4 to 6to4
)
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class ForbiddenAddress(OSError):  # noqa: N818 - reads as what happened
    """The destination is one that messages may not choose."""


def is_public(address: IPAddress) -> bool:
    """Whether an address is on the public internet, also when it is an IPv4 address in an IPv6 disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified)
        and not any(address in network for network in _SPECIAL)
    )


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in (*_NAT64, _COMPATIBLE)):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.teredo[1] if address.teredo is not None else None


def origin(url: URL) -> Origin:
    """Return host and port of a URL."""
    return (url.host or "").lower().rstrip("."), url.port or 0


class Egress(AbstractResolver):
    """Resolves names for outgoing calls. `trusted` origins (the operator's own) may be anywhere, all others not.

    `allow_private` trusts every origin.
    """

    def __init__(self, trusted: frozenset[Origin], *, allow_private: bool) -> None:
        self._trusted, self._allow_private = trusted, allow_private
        self._resolver = aiohttp.ThreadedResolver()

    def check(self, url: URL) -> None:
        """Refuse what needs no name to be resolved. Raises `ForbiddenAddress`."""
        if url.scheme not in ("http", "https") or not url.host:
            raise ForbiddenAddress("only http and https URLs with a host can be called")
        if url.user is not None or url.password is not None:
            raise ForbiddenAddress("a URL to call holds no user or password")
        try:
            address = ipaddress.ip_address(url.host)
        except ValueError:
            return  # a name, checked when it is resolved
        self._check(origin(url), address)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises `ForbiddenAddress` if any of them is not public."""
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            self._check((host.lower().rstrip("."), port), ipaddress.ip_address(result["host"]))
        return results

    async def close(self) -> None:
        """Nothing is held open."""
        await self._resolver.close()

    def _check(self, where: Origin, address: IPAddress) -> None:
        if not (self._allow_private or where in self._trusted or is_public(address)):
            raise ForbiddenAddress(f"{where[0]} is not on the public internet; 'allow_private: true' would allow it")
