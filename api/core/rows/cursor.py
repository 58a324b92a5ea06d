"""Pages by position, newest first: a cursor names the last row seen, signed so that nobody can make one up."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, tuple_

from api.core.errors import Refused
from api.core.rows.columns import Noun
from api.core.rows.db import Query, Reader

_MAC_BYTES = 16

Only = Callable[[Query], Query]
"""Adds conditions."""


@dataclass(frozen=True)
class Position:
    created_at: datetime
    id: str


@dataclass(frozen=True)
class Slice:
    found: Sequence[Position]
    more: bool
    """Whether others come after these."""


def slice_of(
    s: Reader,
    kind: type[Noun],
    project_id: str,
    only: Only,
    after: Position | None,
    limit: int,
) -> Slice:
    """Up to `limit` rows after a position, the newest first, of those that `only` lets through. Their ids alone, which
    an index has: rows are wide. Rows that are inserted meanwhile move nothing."""
    query = only(select(kind.id, kind.created_at).where(kind.project_id == project_id))
    if after is not None:
        query = query.where(tuple_(kind.created_at, kind.id) < tuple_(after.created_at, after.id))
    rows = s.execute(query.order_by(kind.created_at.desc(), kind.id.desc()).limit(limit + 1)).all()
    more = len(rows) > limit
    rows = rows[:limit]
    return Slice([Position(row.created_at, row.id) for row in rows], more)


def everything(query: Query) -> Query:
    return query


def encode(position: Position, key: bytes, listing: str, filter: str = "") -> str:
    """`listing`: what is being listed; a cursor of one list is worth nothing in another. `filter`: a digest of the
    filters, without which the next page would be one of another list."""
    told = [position.created_at.isoformat(), position.id, filter]
    payload = json.dumps(told if filter else told[:2]).encode()
    return base64.urlsafe_b64encode(_sign(key, listing, payload) + payload).rstrip(b"=").decode()


def decode(cursor: str, key: bytes, listing: str, filter: str = "") -> Position:
    """Raises Refused (400) for anything but a cursor this service gave out for this list and these filters."""
    try:
        raw = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _sign(key, listing, payload)):
        raise Refused("bad_cursor", "this cursor is not from this list; start without a cursor", 400)
    created_at, id, *filters = json.loads(payload)
    if "".join(filters) != filter:
        detail = "this cursor belongs to other filters; send the same filters as before, or start without a cursor"
        raise Refused("cursor_of_other_filters", detail, 400)
    return Position(datetime.fromisoformat(created_at), id)


def _sign(key: bytes, listing: str, payload: bytes) -> bytes:
    return hmac.digest(key, listing.encode() + b"\0" + payload, "sha256")[:_MAC_BYTES]
