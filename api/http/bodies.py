"""Reading a JSON body: bounded, strict, UTF-8. Stands before FastAPI's own reader, which would take more.

413 too large (declared or not)   415 not application/json   400 not JSON, a key twice, NaN, too deep
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.core.errors import Refused
from fgd.text import strict_json

MAX_BODY_BYTES = 1 << 20


class StrictRoute(APIRoute):
    """A route whose JSON body is read here; FastAPI finds it already read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        field = self.body_field
        if field is None:
            return handle
        required = field.field_info.is_required()

        async def read_first(request: Request) -> Response:
            request = Request(request.scope, request.receive)
            body = await _read(request)
            if body or required:
                _check_type(request)
                request._json = parse(body)
            request._body = body
            return await handle(request)

        return read_first


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> Refused:
    # What is still on its way will not be read, so the connection cannot be used again.
    return Refused("body_too_large", f"the body may have at most {MAX_BODY_BYTES} bytes", 413, {"Connection": "close"})


def _check_type(request: Request) -> None:
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    if message.get_content_type() != "application/json":
        detail = "send the body as JSON, with the header Content-Type: application/json"
        raise Refused("not_json_type", detail, 415, {"Accept-Post": "application/json"})


def parse(body: bytes) -> Any:
    """One JSON value. Raises Refused (400), see fgd.text.strict_json."""
    try:
        return strict_json.parse(body)
    except strict_json.NotJSON as error:
        raise Refused("malformed_json", f"the body is {error}", 400) from error
