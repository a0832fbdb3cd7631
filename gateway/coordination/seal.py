"""Values as they lie in a cache: JSON behind a MAC over it and its key, so that what another wrote is no value."""

import hashlib
import hmac
import json
from typing import Any

LONGEST = 4096
"""Bytes of a sealed value."""
_MAC = 32


class Seal:
    """Seals and opens with a secret that the instances of one database share."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def close(self, key: str, value: Any) -> bytes:
        """Return `value` (JSON) as it is stored under `key`."""
        text = json.dumps(value, separators=(",", ":")).encode()
        return self._mac(key, text) + text

    def open(self, key: str, sealed: bytes | None) -> Any:
        """Return what was stored under `key`; None for nothing, or anything that was not sealed for that key."""
        if not isinstance(sealed, bytes) or not _MAC < len(sealed) <= LONGEST:
            return None
        mac, text = sealed[:_MAC], sealed[_MAC:]
        if not hmac.compare_digest(mac, self._mac(key, text)):
            return None
        return json.loads(text)

    def _mac(self, key: str, text: bytes) -> bytes:
        name = key.encode()
        made = hmac.new(self._secret, b"%d:%b%b" % (len(name), name, text), hashlib.sha256)
        return made.hexdigest()[:_MAC].encode()
