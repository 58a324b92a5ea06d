"""Pages by position, newest first: a cursor names the last row seen, signed so that nobody can make one up."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from api.core.errors import Refused

_MAC_BYTES = 16


class Listed(Protocol):
    """A row that can stand in a list."""

    id: Any
    created_at: Any


Row = TypeVar("Row", bound=Listed)


@dataclass(frozen=True)
class Position:
    created_at: datetime
    id: str


@dataclass(frozen=True)
class Slice(Generic[Row]):
    items: Sequence[Row]
    next: Position | None
    """None: this was the last page."""


def slice_of(s: Session, query: Select[Row], table: Any, after: Position | None, limit: int) -> Slice[Row]:
    """Up to `limit` rows after a position. Rows that are inserted meanwhile move nothing."""
    if after is not None:
        query = query.where(tuple_(table.created_at, table.id) < tuple_(after.created_at, after.id))
    rows = list(s.scalars(query.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)))
    more = len(rows) > limit
    rows = rows[:limit]
    return Slice(rows, Position(rows[-1].created_at, rows[-1].id) if more else None)


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
        raise Refused("bad_cursor", "cursor is not one this service gave out for this list; start without it", 400)
    created_at, id, *filters = json.loads(payload)
    if "".join(filters) != filter:
        detail = "cursor is of a list with other filters; repeat the filters it began with, or start without the cursor"
        raise Refused("cursor_of_other_filters", detail, 400)
    return Position(datetime.fromisoformat(created_at), id)


def _sign(key: bytes, listing: str, payload: bytes) -> bytes:
    return hmac.digest(key, listing.encode() + b"\0" + payload, "sha256")[:_MAC_BYTES]
