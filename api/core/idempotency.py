"""Idempotency-Key: a POST that is sent twice makes one job (draft-ietf-httpapi-idempotency-key-header-07)."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from api.core import db
from api.core.errors import Fault, Invalid
from api.core.tables import IdempotencyKey, Job

KEPT = timedelta(hours=24)


def replayed(s: Session, project_id: str, key: str, operation: str, body_sha256: str) -> Job | None:
    """The job that this very request made before; None if the key is new.

    Raises Invalid (422) if the key was used for another request.
    """
    row = s.get(IdempotencyKey, (project_id, key))
    if row is None or row.created_at <= db.now(s) - KEPT:
        return None
    if row.operation != operation or row.body_sha256 != body_sha256:
        detail = "this Idempotency-Key was used for another request; take a new key for each new request"
        raise Invalid(Fault("", "idempotency_key_reused", detail, parameter="Idempotency-Key"))
    return s.get_one(Job, row.job_id)


def remember(s: Session, project_id: str, key: str, operation: str, body_sha256: str, job: Job) -> None:
    """In the transaction that inserts the job. The primary key stops a second request that runs beside this one."""
    at = db.now(s)
    expired = delete(IdempotencyKey).where(
        IdempotencyKey.project_id == project_id, IdempotencyKey.key == key, IdempotencyKey.created_at <= at - KEPT
    )
    s.execute(expired)
    s.add(
        IdempotencyKey(
            project_id=project_id, key=key, operation=operation, body_sha256=body_sha256, job_id=job.id, created_at=at
        )
    )
    s.flush()


def forget_old_keys(s: Session, at: datetime) -> None:
    s.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at <= at - KEPT))
