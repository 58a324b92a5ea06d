"""The verbs of tallies: the boxes of each class in a data set, counted by a worker under a lease.

counting --finish--> counted
         --fail----> failed     no other try would help
         --lose----> counting   tried again, MAX_TRIES times in all
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.core.blobs import remember_blobs
from api.core.errors import Conflict
from api.core.rows import db, leases
from api.core.rows.idempotency import Once
from api.core.rows.ids import new_id
from api.core.rows.lookup import delete_row, owned
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Dataset, Tally
from api.core.store.names import Blob
from fgd.spec_fields import Name, Spec

MAX_TRIES = 3


class SubmitTally(Spec):
    """The body of POST /v1/tallies."""

    name: Name
    dataset: str
    """Id of a data set that is ready."""


@dataclass(frozen=True)
class TallyClaim:
    id: str
    attempt: int
    """Fencing token."""
    inputs: Mapping[str, Mapping[str, str]]


def submit(engine: Engine, project_id: str, body: SubmitTally, key: str | None) -> tuple[Tally, bool]:
    """The tally, and whether it is new (False: this Idempotency-Key made it before). Raises NotFound, Conflict."""

    def insert(s: Session) -> Tally:
        index = owned(s, Dataset, project_id, body.dataset).index_digest
        if index is None:
            raise Conflict("dataset_not_ready", f"{body.dataset} is not ready", pointer="/dataset")
        tally = Tally(
            id=new_id("tal"),
            project_id=project_id,
            name=body.name,
            state=Tally.leased_in,
            inputs={"dataset": {"index": index}},
            created_at=db.now(s),
        )
        s.add(tally)
        s.flush()
        return tally

    return Once.of(Tally, project_id, key, "POST /v1/tallies", body).make(engine, insert)


def delete(s: Session, project_id: str, tally_id: str) -> None:
    """A worker that counts just now finds its lease gone. Raises NotFound."""
    delete_row(s, owned(s, Tally, project_id, tally_id, locked=True))


def claim(s: Session, worker_id: str, lease_s: float) -> TallyClaim | None:
    tally = leases.claim(s, Tally, worker_id, lease_s)
    return TallyClaim(tally.id, tally.attempt, tally.inputs) if tally is not None else None


def finish(s: Session, tally_id: str, attempt: int, counts: Mapping[str, int], listing: Blob) -> None:
    """counting -> counted. The listing is in the store already. Raises Fenced."""
    tally = leases.held(s, Tally, tally_id, attempt)
    remember_blobs(s, tally.project_id, db.now(s), listing)
    tally.counts, tally.listing_digest = dict(counts), listing.digest
    _end(s, tally, "counted")


def fail(s: Session, tally_id: str, attempt: int, error: str) -> None:
    """counting -> failed. Raises Fenced."""
    tally = leases.held(s, Tally, tally_id, attempt)
    tally.error = error
    _end(s, tally, "failed")


def lose(s: Session, tally_id: str, attempt: int, reason: str) -> None:
    """The try was in vain: counting again, or failed if that happened too often. Raises Fenced."""
    _lose(s, leases.held(s, Tally, tally_id, attempt), reason)


def sweep(s: Session, moment: Moment) -> SweepResult:
    return leases.sweep(s, Tally, moment, lambda tally, reason: _lose(s, tally, reason))


def _lose(s: Session, tally: Tally, reason: str) -> None:
    if error := leases.lose(tally, reason, MAX_TRIES):
        tally.error = error
        _end(s, tally, "failed")
    s.flush()


def _end(s: Session, tally: Tally, state: str) -> None:
    tally.state, tally.finished_at = state, db.now(s)
    leases.let_go(tally)
    s.flush()
