"""Idempotency-Key: a POST that is sent twice makes one thing (draft-ietf-httpapi-idempotency-key-header-07)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import Engine, delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.core.errors import Conflict, Fault, Invalid
from api.core.rows import db
from api.core.rows.columns import Noun
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import IdempotencyKey

KEPT = timedelta(hours=24)
LATER = {
    "take",
    "rho",
    "split",
    "attend",
    "attention",
    "global_module",
    "where",
    "unlabelled",
    "perplexity",
    "shares",
    "latency",
    "latency_budget_ms",
    "focus_images",
    "max_ap_loss",
}
"""Fields of a request, of its methods and of its resources that version 13949c9 did not have."""

Made = TypeVar("Made", bound=Noun)


@dataclass(frozen=True)
class Once(Generic[Made]):
    """A request that makes one thing of `kind`, however often it is sent under the same key. Key None: each time."""

    kind: type[Made]
    project_id: str
    key: str | None
    operation: str
    """Method and path."""
    body_sha256: str
    """Of the fields that were sent: one that a later version adds or retires makes no other request of it."""
    of_13949c9: str
    """As version 13949c9 kept it: of every field that it had. To be taken out when nobody upgrades from there: a key
    lives for a day."""

    @classmethod
    def of(cls, kind: type[Made], project_id: str, key: str | None, operation: str, body: BaseModel) -> Once[Made]:
        with_compile = body.model_dump_json(exclude=_later(body)).replace(
            '"on_out_of_memory":', '"compile":false,"on_out_of_memory":'
        )
        return cls(
            kind, project_id, key, operation, _digest(body.model_dump_json(exclude_unset=True)), _digest(with_compile)
        )

    def replayed(self, s: Session) -> Made | None:
        """What this very request made before; None if the key is new, or what it made was deleted: a deleted
        thing can be made again.

        Raises Invalid (422) if the key was used for another request.
        """
        return self._replayed(s, self._row(s))

    def _row(self, s: Session) -> IdempotencyKey | None:
        return s.get(IdempotencyKey, (self.project_id, self.key)) if self.key is not None else None

    def _replayed(self, s: Session, row: IdempotencyKey | None) -> Made | None:
        if row is None or row.created_at <= db.now(s) - KEPT:
            return None
        if row.operation != self.operation or row.body_sha256 not in (self.body_sha256, self.of_13949c9):
            detail = "this Idempotency-Key was used for a different request; use a new key for each new request"
            raise Invalid(Fault("", "idempotency_key_reused", detail, parameter="Idempotency-Key"))
        return s.get(self.kind, row.made_id)

    def make(self, engine: Engine, insert: Callable[[Session], Made]) -> tuple[Made, bool]:
        """One transaction: `insert`, unless it was done before. The thing, and whether it is new."""
        try:
            with db.transaction(engine) as s:
                before = self._row(s)
                if (made := self._replayed(s, before)) is not None:
                    return made, False
                made = insert(s)
                self._remember(s, made, before)
                return made, True
        except IntegrityError as error:
            return self._after_a_race(engine, error), False

    def _remember(self, s: Session, made: Made, before: IdempotencyKey | None) -> None:
        """In the transaction of the insert. The primary key stops a second request that runs beside this one.

        before: the row that is in the way: expired, or of a thing that was deleted.
        """
        if self.key is None:
            return
        if before is not None:
            this_one = IdempotencyKey.made_id == before.made_id  # not one that took its place meanwhile
            mine = IdempotencyKey.project_id == self.project_id, IdempotencyKey.key == self.key
            s.execute(delete(IdempotencyKey).where(*mine, this_one))
        s.add(
            IdempotencyKey(
                project_id=self.project_id,
                key=self.key,
                operation=self.operation,
                body_sha256=self.body_sha256,
                made_kind=made.noun(),
                made_id=made.id,
                created_at=db.now(s),
            )
        )
        s.flush()

    def _after_a_race(self, engine: Engine, error: IntegrityError) -> Made:
        """Another request with the same key committed between our look and our insert (PostgreSQL only)."""
        if self.key is None:
            raise error
        with db.reading(engine) as s:
            made = self.replayed(s)
        if made is None:
            detail = "another request with this key is in progress; send it again later"
            raise Conflict("idempotency_key_in_use", detail, True) from error
        return made


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sweep(s: Session, moment: Moment) -> SweepResult:
    """Forget old keys."""
    s.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at <= moment.at - KEPT))
    return SweepResult()


def _later(body: BaseModel) -> dict[str, Any]:
    """Of `LATER` what was not sent, as pydantic leaves it out."""
    methods = enumerate(getattr(body, "methods", ()))
    of_methods = {place: LATER - method.model_fields_set for place, method in methods}
    parts: dict[str, Any] = {"methods": of_methods} if of_methods else {}
    if (resources := getattr(body, "resources", None)) is not None:
        parts["resources"] = LATER - resources.model_fields_set
    return dict.fromkeys(LATER - body.model_fields_set, True) | parts
