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
        raise Refusal(400, "bad_request", _mistakes(error)) from None


def validate_json(model: type[M], data: Json) -> M:
    """Return a body as a model whose fields JSON can only spell, such as times. Raises `Refusal` 422."""
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise Refusal(422, "invalid", _mistakes(error)) from None


def single_values(request: web.BaseRequest) -> dict[str, str]:
    """Return the parameters of a query. Raises `Refusal` if one is given twice."""
    if any(len(request.query.getall(name)) > 1 for name in request.query):
        raise Refusal(400, "bad_request", "each parameter may be given once")
    return dict(request.query)


def _mistakes(error: ValidationError) -> str:
    mistakes = [
        f"{'.'.join(map(str, each['loc']))[:64] or 'body'}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(mistakes[:20])


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
