"""What a request would like: Accept and Accept-Encoding (RFC 9110, 12.5) and Prefer (RFC 7240). Unreadable wishes are
no wishes."""

from __future__ import annotations

import re

LONGEST_WAIT_S = 60

_WAIT = re.compile(r'wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?', re.ASCII | re.IGNORECASE)


def prefers(accept: str | None, media_type: str, default: str) -> bool:
    """True if an Accept header names `media_type` itself, and wants it more than `default`. Otherwise the default is
    served, whatever the header says: an answer helps more than a 406."""
    wanted = _weights(accept or "")
    mine = wanted.get(media_type, 0.0)
    if default in wanted:
        return mine > wanted[default]
    general = max(wanted.get(f"{default.partition('/')[0]}/*", 0.0), wanted.get("*/*", 0.0))
    return mine > 0 and mine >= general


def wait_s(prefer: str | None) -> int | None:
    """The seconds of a `Prefer: wait=...`, at most LONGEST_WAIT_S; None if it asks for none."""
    for wish in (prefer or "").split(","):
        if match := _WAIT.fullmatch(wish.strip()):
            return min(int(match[1]), LONGEST_WAIT_S)
    return None


def takes_gzip(accept_encoding: str | None) -> bool:
    """True if an Accept-Encoding header names gzip. One that only lets everything pass gets plain bytes."""
    return _weights(accept_encoding or "").get("gzip", 0.0) > 0


def _weights(accept: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in accept.split(",")[:64]:
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        q = next((piece.removeprefix("q=") for piece in parameters if piece.startswith("q=")), "1")
        found[name] = float(q) if re.fullmatch(r"[01](\.\d{0,3})?", q, re.ASCII) else 0.0
    return found
