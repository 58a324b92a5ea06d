"""Content-Digest and Repr-Digest (RFC 9530): read and written. Knows SHA-256 only."""

from __future__ import annotations

import base64
import binascii

from api.core.errors import Fault, Invalid, Refused


def field(sha256: str) -> str:
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def parse(header: str | None, name: str) -> str | None:
    """The SHA-256 in hex; None where there is no such header. Raises Invalid for one without a SHA-256, Refused for one
    that is no header at all."""
    if header is None:
        return None
    if not header.isascii():
        raise Refused(
            "header_not_ascii", f"{name} contains characters that are not ASCII", 400, {"Connection": "close"}
        )
    for member in header.split(","):
        algorithm, _, value = member.strip().partition("=")
        if algorithm.lower() == "sha-256" and len(value) > 2 and value[0] == value[-1] == ":":
            try:
                digest = base64.b64decode(value[1:-1], validate=True)
            except binascii.Error:
                break
            if len(digest) == 32:
                return digest.hex()
    detail = f"{name} contains no SHA-256; write it as sha-256=:<base64 of the 32 bytes>:"
    raise Invalid(Fault("", "digest_unreadable", detail, parameter=name))
