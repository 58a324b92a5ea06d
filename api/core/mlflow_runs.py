"""Which jobs are to be brought to MLflow, by whom, and how far that is. Knows rows; knows no HTTP and no MLflow.

A job gets a row when it is first seen running, or within a day after its end: who sets FGD_MLFLOW_TRACKING_URI on an
old service does not want its whole history copied. The row is taken for a while by one process, and is due again
whenever the job has changed. What fails is tried again later and later, without an effect on the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, func, literal, select, update
from sqlalchemy.orm import Session

from api.core.errors import Fenced
from api.core.jobs.record import add_event
from api.core.lifecycle import State
from api.core.rows import db
from api.core.rows.tables import Checkpoint, Job, MlflowRun
from api.core.rows.upsert import insert_for

SINCE = timedelta(days=1)
"""Jobs that ended earlier, and have no row yet, are left out."""
GIVE_UP = timedelta(days=7)
"""After a job's end nothing is tried any longer."""
LIVE_S = 15.0
"""Between two looks at a running job."""
TAKEN_S = 120.0
"""A process that says nothing for so long has lost what it took."""
BACK_OFF_S, MAX_BACK_OFF_S = 10.0, 600.0


@dataclass(frozen=True)
class Taken:
    job: Job
    """As it was; read only."""
    owner: str
    logged_step: int | None
    """Points before this step are there."""
    final_step: int | None
    """No attempt will make points up to here again; None: all are final, for the job has ended."""

    @property
    def ended(self) -> bool:
        return State(self.job.state).terminal

    def begun(self) -> bool:
        """There are points that may be brought."""
        return self.ended or self.final_step is not None


def note(s: Session) -> None:
    """A row for each job that needs one. Twice at once is the same."""
    at = db.now(s)
    known = select(MlflowRun.job_id).where(MlflowRun.job_id == Job.id)
    wanted = (Job.state == State.running) | (Job.finished_at > at - SINCE)
    values = select(Job.id, Job.project_id, literal(0), literal(False), literal(at, MlflowRun.not_before.type))
    rows = values.where(wanted, ~known.exists())
    names = ["job_id", "project_id", "failures", "done", "not_before"]
    s.execute(insert_for(s, MlflowRun).from_select(names, rows).on_conflict_do_nothing(index_elements=["job_id"]))


def wanted(s: Session) -> bool:
    """Whether `note` or `take` would find anything; reads only."""
    at = db.now(s)
    known = select(MlflowRun.job_id).where(MlflowRun.job_id == Job.id)
    new = select(Job.id).where((Job.state == State.running) | (Job.finished_at > at - SINCE), ~known.exists())
    return s.scalar(_due(at).limit(1)) is not None or s.scalar(new.limit(1)) is not None


def take(s: Session, owner: str) -> Taken | None:
    """What has waited longest."""
    at = db.now(s)
    first = s.scalar(_due(at).order_by(MlflowRun.not_before, MlflowRun.job_id).limit(1))
    if first is None:
        return None
    mine = update(MlflowRun).where(MlflowRun.job_id == first, _free(at))
    mine = mine.values(taken_by=owner, taken_until=at + timedelta(seconds=TAKEN_S)).returning(MlflowRun.logged_step)
    row = s.execute(mine.execution_options(synchronize_session=False)).one_or_none()
    if row is None:  # another was quicker
        return None
    job = s.get_one(Job, first)
    last = s.scalar(select(func.max(Checkpoint.step)).where(Checkpoint.job_id == first))
    return Taken(job, owner, row.logged_step, None if State(job.state).terminal else last)


def keep(s: Session, taken: Taken) -> None:
    """It is still being worked on. Raises Fenced if another has it by now, or the job was deleted."""
    _change(s, taken, taken_until=db.now(s) + timedelta(seconds=TAKEN_S))


def logged(s: Session, taken: Taken, run_id: str, step: int | None, *, again_s: float | None) -> None:
    """Everything up to now is there. again_s: when to look again in any case; None: when the job has changed, or, if it
    has ended, never. Raises Fenced."""
    soon = LIVE_S if again_s is None else again_s
    _change(
        s, taken,
        run_id=run_id, logged_step=step, failures=0, error=None,
        seen_version=taken.job.version if again_s is None else None,
        done=taken.ended and again_s is None,
        not_before=db.now(s) + timedelta(seconds=soon), taken_by=None, taken_until=None,
    )  # fmt: skip


def failed(s: Session, taken: Taken, error: str) -> bool:
    """It is tried again later. False: it was given up, or the first failure of a row, whose job's events then say so.
    Raises Fenced."""
    at = db.now(s)
    row = s.get_one(MlflowRun, taken.job.id, populate_existing=True)
    over = taken.job.finished_at is not None and at - taken.job.finished_at > GIVE_UP
    delay_s = min(MAX_BACK_OFF_S, BACK_OFF_S * 2.0 ** min(row.failures, 10))
    known = row.failures > 0 or row.error is not None
    _change(
        s, taken,
        failures=row.failures + 1, error=error, done=over,
        not_before=at + timedelta(seconds=delay_s), taken_by=None, taken_until=None,
    )  # fmt: skip
    if over:
        tell(s, taken, "mlflow_given_up", f"nothing more is tried, after {GIVE_UP.days} days: {error}")
    elif not known:
        tell(s, taken, "mlflow_away", f"it is tried again later: {error}")
    return known and not over


def tell(s: Session, taken: Taken, type: str, message: str, level: str = "warning", **data: str) -> None:
    """Among the job's events. It is no warning about the training, so it is no note."""
    query = select(Job).where(Job.id == taken.job.id).with_for_update()
    job = s.scalar(query.execution_options(populate_existing=True))
    if job is not None:
        add_event(s, job, db.now(s), type, message=message, level=level, **data)


def _due(at: datetime) -> Select[str]:
    changed = MlflowRun.seen_version.is_distinct_from(Job.version)
    query = select(MlflowRun.job_id).join(Job, Job.id == MlflowRun.job_id)
    return query.where(~MlflowRun.done, MlflowRun.not_before <= at, changed, _free(at))


def _free(at: datetime) -> ColumnElement[bool]:
    return MlflowRun.taken_until.is_(None) | (MlflowRun.taken_until <= at)


def _change(s: Session, taken: Taken, **values: object) -> None:
    mine = update(MlflowRun).where(MlflowRun.job_id == taken.job.id, MlflowRun.taken_by == taken.owner)
    changed = mine.values(**values).returning(MlflowRun.job_id)
    if s.scalar(changed.execution_options(synchronize_session=False)) is None:
        raise Fenced(taken.job.id, taken.job.attempt)
