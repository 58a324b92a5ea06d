"""Receiving a picture as the body of a request: whole, bounded, in memory. Larger files come as uploads."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from api.core.errors import Fault, Invalid, Refused

_CLOSE = {"Connection": "close"}
"""What is still on its way will not be read, so the connection cannot be used again."""
PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


async def picture(request: Request, most: int, setting: str) -> bytes:
    """The bytes of the body, at most `most`, as `setting` has it. Raises Refused, Invalid."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        detail = (
            "send the bytes of the picture alone, with a header such as Content-Type: image/jpeg "
            "(curl --data-binary @photo.jpg, not curl -F)"
        )
        raise Refused("not_raw", detail, 415, {"Accept": "image/*, application/octet-stream", **_CLOSE})
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refused("not_raw", "send the picture without Content-Encoding", 415, {"Accept-Encoding": "", **_CLOSE})
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    if not declared.isdecimal() or int(declared[:20]) > most:
        raise _too_large(most, setting)
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise _too_large(most, setting)
    except ClientDisconnect:
        raise Refused("upload_cut", f"received {len(body)} of {declared} bytes; send it again", 400, _CLOSE) from None
    if not body:
        raise Invalid(Fault("", "upload_empty", "the body is empty; send the bytes of the picture"))
    return bytes(body)


def _too_large(most: int, setting: str) -> Refused:
    return Refused("body_too_large", f"a picture may have at most {most} bytes ({setting})", 413, _CLOSE)
