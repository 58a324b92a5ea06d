"""Addresses that work once: a browser follows a link without a key, so the link holds a ticket for this one download.

A ticket is random, kept as its digest only, good for one path within a minute, and taken from its table when it is
used: of two requests, at whichever server, one gets it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from api.core.errors import Fault, Invalid
from api.core.rows import db
from api.core.rows.ids import ID_PATTERN
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import TicketRow

LIVES = timedelta(seconds=60)
_DOWNLOADS = re.compile(
    rf"/v1/(artifacts/art{ID_PATTERN}/content|jobs/job{ID_PATTERN}/(logs|metrics|report)"
    rf"|datasets/ds{ID_PATTERN}/samples/\d{{1,9}}/image)(\?[\x21-\x7e]{{1,500}})?"
)


@dataclass(frozen=True)
class Ticket:
    token: str
    """Shown this once."""
    expires_at: datetime


def issue(s: Session, project_id: str, path: str) -> Ticket:
    """For a GET of this path, its query included. Raises Invalid for what is no download."""
    if _DOWNLOADS.fullmatch(path) is None:
        detail = (
            "tickets are for downloads: /v1/artifacts/ID/content, /v1/jobs/ID/logs, /v1/jobs/ID/metrics, "
            "/v1/jobs/ID/report and /v1/datasets/ID/samples/N/image, each with its query"
        )
        raise Invalid(Fault("/path", "not_a_download", detail))
    token = f"tkt_{secrets.token_urlsafe(32)}"
    ticket = Ticket(token, db.now(s) + LIVES)
    s.add(TicketRow(sha256=_digest(token), project_id=project_id, path=path, expires_at=ticket.expires_at))
    s.flush()
    return ticket


def redeem(s: Session, token: str, path: str) -> bool:
    """Whether the ticket is good for this path; it is not afterwards."""
    mine = delete(TicketRow).where(TicketRow.sha256 == _digest(token), TicketRow.path == path)
    return s.execute(mine.where(TicketRow.expires_at > db.now(s)).returning(TicketRow.sha256)).first() is not None


def sweep(s: Session, moment: Moment) -> SweepResult:
    s.execute(delete(TicketRow).where(TicketRow.expires_at <= moment.at))
    return SweepResult()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
