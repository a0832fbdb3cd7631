"""Who may post a message, and how the gateway shows who it is: every comparison takes the same time for any guess."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

from multidict import CIMultiDictProxy
from pydantic import Field, SecretStr, field_validator

from gateway.connector import StrictModel
from gateway.web.routes import Refusal

Headers: TypeAlias = CIMultiDictProxy[str]
Secrets: TypeAlias = SecretStr | Annotated[list[SecretStr], Field(min_length=1)]

SHORTEST_SECRET = 16
"""Bytes: less than that can be found by trying."""

_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")


class Caller(NamedTuple):
    """Who sent a request. `dedupe_id` is the sender's own id of the message, if its signature scheme has one."""

    principal: str
    dedupe_id: str | None = None


class NoAuth(StrictModel):
    """Everybody may send. Off loopback it must be written out, and is warned of."""

    type: Literal["none"]

    def authenticate(self, headers: Headers) -> Caller:  # noqa: ARG002 - the same call for every type
        """Let everybody in."""
        return Caller("")


class BasicAuth(StrictModel):
    """User and password."""

    type: Literal["basic"]
    username: str = Field(min_length=1, description="user that may send, or is sent")
    password: SecretStr = Field(min_length=1, description="of that user")

    def authenticate(self, headers: Headers) -> Caller:
        """Compare both. Raises `Refusal` 401."""
        given = _credentials(headers, "basic")
        expected = f"{self.username}:{self.password.get_secret_value()}"
        try:
            decoded = base64.b64decode(given, validate=True)
        except binascii.Error:
            decoded = b""
        if not hmac.compare_digest(_digest(decoded), _digest(expected.encode())):
            raise _refused('Basic realm="gateway", charset="UTF-8"')
        return Caller(self.username)

    def headers(self) -> dict[str, str]:
        """Return what to send."""
        pair = f"{self.username}:{self.password.get_secret_value()}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


class BearerAuth(StrictModel):
    """A token, or several while one replaces the other; each is a principal of its own."""

    type: Literal["bearer"]
    token: Secrets = Field(description="token, or several of which any is accepted and the first is sent")

    def authenticate(self, headers: Headers) -> Caller:
        """Compare with each token. Raises `Refusal` 401."""
        return _among(_values(self.token), _credentials(headers, "bearer"), 'Bearer realm="gateway"')

    def headers(self) -> dict[str, str]:
        """Return what to send: the first token."""
        return {"Authorization": f"Bearer {_values(self.token)[0]}"}


class ApiKeyAuth(StrictModel):
    """A token in a header of its own."""

    type: Literal["api_key"]
    token: Secrets = Field(description="token, or several of which any is accepted and the first is sent")
    header: str = Field(default="X-API-Key", pattern=r"^[A-Za-z0-9-]+$", description="header that carries it")

    def authenticate(self, headers: Headers) -> Caller:
        """Compare with each token. Raises `Refusal` 401."""
        return _among(_values(self.token), _single(headers, self.header), 'ApiKey realm="gateway"')

    def headers(self) -> dict[str, str]:
        """Return what to send: the first token."""
        return {self.header: _values(self.token)[0]}


class HmacAuth(StrictModel):
    """A signature over the body: Standard Webhooks, or GitHub's, which has no time and so no limit to a replay.

    A secret beginning with `whsec_` is base64; several secrets are accepted while one replaces the other.
    """

    type: Literal["hmac"]
    secret: Secrets = Field(description="shared secret of 16 bytes at least, or several while one replaces the other")
    scheme: Literal["standard-webhooks", "github"] = Field(
        default="standard-webhooks", description="what is signed, and in which headers"
    )
    tolerance: float = Field(default=300, gt=0, le=3600, description="seconds a signature is valid, both ways")

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: Secrets) -> Secrets:
        for value in _values(secret):
            if value.startswith("whsec_") and _decoded(value[6:]) is None:
                raise ValueError("a secret that begins with 'whsec_' goes on as base64")
            if any(len(key) < SHORTEST_SECRET for key in _keys(value)):
                raise ValueError(f"a secret has at least {SHORTEST_SECRET} bytes, random ones")
        return secret

    def verify(self, headers: Headers, body: bytes, now: float) -> Caller:
        """Check the signature over the body as it will be stored. Raises `Refusal` 401."""
        if self.scheme == "github":
            signature = _single(headers, "X-Hub-Signature-256")
            expected = [f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}" for key in self._all_keys()]
            dedupe_id = headers.get("X-GitHub-Delivery")
            valid = _any_equal([signature], expected) and (dedupe_id is None or _VISIBLE.fullmatch(dedupe_id))
        else:
            dedupe_id, moment = _single(headers, "webhook-id"), _single(headers, "webhook-timestamp")
            given = _single(headers, "webhook-signature").split(" ")[:16]
            # Without a dot in the id, what is signed can be read in one way only.
            valid = _VISIBLE.fullmatch(dedupe_id) and "." not in dedupe_id and re.fullmatch(r"[0-9]{1,12}", moment)
            expected = self._signatures(dedupe_id, moment, body) if valid else []
            valid = valid and _any_equal(given, expected) and abs(now - int(moment)) <= self.tolerance
        if not valid:
            raise _refused("Signature")
        return Caller("", dedupe_id)

    def sign(self, message_id: str, body: bytes, now: float) -> dict[str, str]:
        """Return the headers to send; signed with every secret, so that the receiver may have either."""
        if self.scheme == "github":
            digest = hmac.new(self._all_keys()[0], body, hashlib.sha256).hexdigest()
            return {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": message_id}
        moment = str(int(now))
        signature = " ".join(self._signatures(message_id, moment, body, first_only=True))
        return {"webhook-id": message_id, "webhook-timestamp": moment, "webhook-signature": signature}

    def _signatures(self, message_id: str, moment: str, body: bytes, *, first_only: bool = False) -> list[str]:
        signed = f"{message_id}.{moment}.".encode("utf-8", "surrogateescape") + body
        keys = [_keys(value)[0] for value in _values(self.secret)] if first_only else self._all_keys()
        digests = [hmac.new(key, signed, hashlib.sha256).digest() for key in keys]
        return ["v1," + base64.b64encode(digest).decode() for digest in digests]

    def _all_keys(self) -> list[bytes]:
        if self.scheme == "github":
            return [value.encode() for value in _values(self.secret)]
        return [key for value in _values(self.secret) for key in _keys(value)]


InboundAuth: TypeAlias = Annotated[NoAuth | BasicAuth | BearerAuth | ApiKeyAuth | HmacAuth, Field(discriminator="type")]
OutboundAuth: TypeAlias = Annotated[BasicAuth | BearerAuth | ApiKeyAuth | HmacAuth, Field(discriminator="type")]


def _values(secrets: Secrets) -> Sequence[str]:
    several = secrets if isinstance(secrets, list) else [secrets]
    return [secret.get_secret_value() for secret in several]


def _keys(secret: str) -> list[bytes]:
    """Return the keys a secret may stand for: some senders take text without the prefix for base64, some do not."""
    decoded = _decoded(secret.removeprefix("whsec_"))
    if secret.startswith("whsec_"):
        return [decoded or b""]
    return [secret.encode()] + ([decoded] if decoded is not None and len(decoded) >= SHORTEST_SECRET else [])


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _single(headers: Headers, name: str) -> str:
    """Return a header's value; '' if it is absent or there is more than one, which no secret equals."""
    values = headers.getall(name, [])
    return values[0].strip() if len(values) == 1 else ""


def _credentials(headers: Headers, scheme: str) -> str:
    name, _, rest = _single(headers, "Authorization").partition(" ")
    return rest.strip() if name.lower() == scheme else ""


def _among(tokens: Sequence[str], given: str, challenge: str) -> Caller:
    if not given or not _any_equal([given], tokens):
        raise _refused(challenge)
    return Caller(_digest(given.encode("utf-8", "surrogateescape")).hex()[:16])


def _any_equal(given: Iterable[str], expected: Sequence[str]) -> bool:
    found = False
    for one in given:
        for other in expected:
            left, right = (_digest(text.encode("utf-8", "surrogateescape")) for text in (one, other))
            found |= hmac.compare_digest(left, right)
    return found


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _refused(challenge: str) -> Refusal:
    message = "this request is not authenticated, or not by anyone known here"
    return Refusal(401, "unauthorized", message, WWW_Authenticate=challenge)
