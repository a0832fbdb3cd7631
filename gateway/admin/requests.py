"""What comes with a request, read and checked."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from gateway.message import Json
from gateway.web.routes import Refusal

M = TypeVar("M", bound=BaseModel)

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""


async def read_json(request: web.BaseRequest) -> Json:
    """Return the object that the body is. Raises `Refusal` for anything else."""
    if request.content_type != "application/json":
        raise Refusal(400, "bad_request", "send the body as Content-Type: application/json")
    body = bytearray()
    async for chunk in request.content.iter_chunked(65_536):
        body += chunk
        if len(body) > MAX_BODY:
            raise Refusal(413, "too_large", f"a body has at most {MAX_BODY} bytes")
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refusal(400, "bad_request", "the body is not JSON") from None
    if not isinstance(data, dict):
        raise Refusal(400, "bad_request", "the body is a JSON object")
    return data


def validate(model: type[M], data: Mapping[str, Any]) -> M:
    """Return what was sent as a model. Raises `Refusal` with all mistakes."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(map(str, each['loc']))[:64] or 'body'}: {each['msg']}"
            for each in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise Refusal(400, "bad_request", "; ".join(mistakes[:20])) from None


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
