"""Idempotency-Key: a POST that is sent twice makes one thing (draft-ietf-httpapi-idempotency-key-header-07)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import Engine, delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.core.errors import Conflict, Fault, Invalid
from api.core.rows import db
from api.core.rows.tables import Dataset, IdempotencyKey, Job, Model

KEPT = timedelta(hours=24)

Made = TypeVar("Made", Job, Dataset, Model)


@dataclass(frozen=True)
class Once(Generic[Made]):
    """A request that makes one thing of `kind`, however often it is sent under the same key. Key None: each time."""

    kind: type[Made]
    project_id: str
    key: str | None
    operation: str
    """Method and path."""
    body_sha256: str

    @classmethod
    def of(cls, kind: type[Made], project_id: str, key: str | None, operation: str, body: BaseModel) -> Once[Made]:
        return cls(kind, project_id, key, operation, hashlib.sha256(body.model_dump_json().encode()).hexdigest())

    def replayed(self, s: Session) -> Made | None:
        """What this very request made before; None if the key is new.

        Raises Invalid (422) if the key was used for another request.
        """
        row = s.get(IdempotencyKey, (self.project_id, self.key)) if self.key is not None else None
        if row is None or row.created_at <= db.now(s) - KEPT:
            return None
        if row.operation != self.operation or row.body_sha256 != self.body_sha256:
            detail = "this Idempotency-Key was used for another request; take a new key for each new request"
            raise Invalid(Fault("", "idempotency_key_reused", detail, parameter="Idempotency-Key"))
        return s.get_one(self.kind, row.job_id or row.dataset_id or row.model_id)

    def make(self, engine: Engine, insert: Callable[[Session], Made]) -> tuple[Made, bool]:
        """One transaction: `insert`, unless it was done before. The thing, and whether it is new."""
        try:
            with db.transaction(engine) as s:
                if (made := self.replayed(s)) is not None:
                    return made, False
                made = insert(s)
                self._remember(s, made)
                return made, True
        except IntegrityError as error:
            return self._after_a_race(engine, error), False

    def _remember(self, s: Session, made: Made) -> None:
        """In the transaction of the insert. The primary key stops a second request that runs beside this one."""
        if self.key is None:
            return
        at = db.now(s)
        expired = delete(IdempotencyKey).where(
            IdempotencyKey.project_id == self.project_id,
            IdempotencyKey.key == self.key,
            IdempotencyKey.created_at <= at - KEPT,
        )
        s.execute(expired)
        s.add(
            IdempotencyKey(
                project_id=self.project_id,
                key=self.key,
                operation=self.operation,
                body_sha256=self.body_sha256,
                job_id=made.id if isinstance(made, Job) else None,
                dataset_id=made.id if isinstance(made, Dataset) else None,
                model_id=made.id if isinstance(made, Model) else None,
                created_at=at,
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
            detail = "a request with this key is in flight; send it again"
            raise Conflict("idempotency_key_in_use", detail, True) from error
        return made


def forget_old_keys(s: Session, at: datetime) -> None:
    s.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at <= at - KEPT))
