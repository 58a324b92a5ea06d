"""Which checkpoints of a job are kept: the last two, the best, and those that somebody pinned.

Knows rows. Returns the keys of objects to delete after the commit; the store is not touched here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from api.core.errors import Conflict, NotFound
from api.core.lifecycle import TERMINAL, FailureCode, State
from api.core.rows.lookup import owned
from api.core.rows.tables import Checkpoint, Job

KEPT = 2
"""The last, and the one before it in case the last is torn."""
MAX_PINNED = 10
"""Of one job: each is as large as the network, its optimizer and its best weights together."""


def newest_first(s: Session, job_id: str) -> Sequence[Checkpoint]:
    """By attempt, for an attempt that fell back to an older step goes on from there."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return s.scalars(query.order_by(Checkpoint.attempt.desc(), Checkpoint.step.desc())).all()


def dethrone(s: Session, job_id: str) -> None:
    """A better one comes."""
    s.execute(update(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.best).values(best=False))


def drop_superseded(s: Session, job_id: str) -> list[str]:
    """Forget what need not be kept any more; the keys."""
    superseded = [row for row in newest_first(s, job_id)[KEPT:] if not (row.best or row.pinned)]
    s.execute(delete(Checkpoint).where(Checkpoint.id.in_([row.id for row in superseded])))
    return [row.key for row in superseded]


def drop_passed_over(s: Session, job_id: str, torn: Sequence[str], unreadable: Sequence[str]) -> list[str]:
    """Forget what an attempt could not go on from: those of `torn` bytes, and the `unreadable`, whose bytes are whole,
    unless somebody pinned them; the keys."""
    passed = Checkpoint.key.in_(torn) | (Checkpoint.key.in_(unreadable) & ~Checkpoint.pinned)
    gone = delete(Checkpoint).where(Checkpoint.job_id == job_id, passed).returning(Checkpoint.key)
    return list(s.scalars(gone.execution_options(synchronize_session=False)))


def drop_of_the_ended(s: Session) -> list[str]:
    """What ended jobs need not keep: all that nobody pinned, and that is not all there is to show of a job whose loss
    was not finite: the weights of its last finite step; or of one that could not go on from what it had trained."""
    why = func.coalesce(Job.failure_data["checkpoint"].as_string(), "")
    shown = (Job.state == State.failed) & ((Job.failure_code == FailureCode.loss_non_finite) | (why == "another_spec"))
    ended = select(Job.id).where(Job.id == Checkpoint.job_id, Job.state.in_(TERMINAL), ~shown).exists()
    return list(s.scalars(delete(Checkpoint).where(ended, ~Checkpoint.pinned).returning(Checkpoint.key)))


def pin(s: Session, project_id: str, job_id: str, checkpoint_id: str) -> Checkpoint:
    """Keep it until it is unpinned or its job deleted; twice is no error. Raises NotFound, Conflict: one too many."""
    row = _locked(s, project_id, job_id, checkpoint_id)
    pinned = [each.step for each in newest_first(s, job_id) if each.pinned and each.id != row.id]
    if len(pinned) >= MAX_PINNED:
        steps = ", ".join(map(str, sorted(pinned)))
        message = f"{job_id} has {len(pinned)} pinned checkpoints, of steps {steps}, the maximum; unpin one first"
        raise Conflict("too_many_pinned", message)
    row.pinned = True
    s.flush()
    return row


def unpin(s: Session, project_id: str, job_id: str, checkpoint_id: str) -> tuple[Checkpoint, list[str]]:
    """It is kept no longer than others: the keys of what is dropped at once. Raises NotFound."""
    row = _locked(s, project_id, job_id, checkpoint_id)
    row.pinned = False
    s.flush()
    s.expunge(row)
    return row, drop_superseded(s, job_id)


def _locked(s: Session, project_id: str, job_id: str, checkpoint_id: str) -> Checkpoint:
    """The row, with its job's locked, as the attempt that supersedes checkpoints does."""
    owned(s, Job, project_id, job_id, locked=True)
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.id == checkpoint_id)
    row = s.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise NotFound("checkpoint", checkpoint_id)
    return row
