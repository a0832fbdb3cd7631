"""What a running gateway answers on its admin listener."""

import asyncio
from dataclasses import dataclass
from typing import Any

from gateway.config import AdminConfig
from gateway.message import Json

_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A status code, and the JSON that came with it."""

    status: int
    body: Any

    @property
    def fault(self) -> str:
        """Why it was refused, in words."""
        error = self.body.get("error") if isinstance(self.body, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        return str(message) if message else f"it answered with {self.status}"


async def ask(admin: AdminConfig | None, path: str, *, method: str = "GET", body: Json | None = None) -> Answer | None:
    """Ask the gateway that runs with this configuration; None if none answers."""
    if admin is None or admin.port == 0:
        return None
    import aiohttp

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(admin.host, admin.host)  # noqa: S104 - turned into loopback
    url = f"http://{f'[{host}]' if ':' in host else host}:{admin.port}{path}"
    headers = {"Authorization": f"Bearer {admin.token.get_secret_value()}"} if admin.token else {}
    try:
        async with (
            asyncio.timeout(_SECONDS),
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, json=body, allow_redirects=False) as response,
        ):
            return Answer(response.status, await response.json())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
