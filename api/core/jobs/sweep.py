"""The sweep of jobs: lost attempts are queued again or given up, bells ring again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api.core.jobs import checkpoints
from api.core.jobs.moves import close_attempt, give_up, lose
from api.core.jobs.queue_order import DEVICES
from api.core.jobs.record import add_event
from api.core.jobs.waiting import IS_QUEUED, THREADS, unable
from api.core.lifecycle import FailureCode, State
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Job, JobEvent, WorkerRow
from api.core.workers import LiveWorker

logger = logging.getLogger(__name__)

CANNOT_RUN = timedelta(days=7)
"""A job that no worker could take for so long fails: over a week-end somebody may still start the one that can."""
TOLD_AFTER, SETTLED = timedelta(minutes=1), timedelta(hours=1)
"""After a start of the service the workers come one by one, and the first are not yet all there is: it is reported
after the one, and ends a job after the other."""


def sweep(s: Session, moment: Moment) -> SweepResult:
    """Rings no more often than there is room, and not at all where no worker lives: bells nobody hears pile up."""
    at = moment.at
    expired = select(Job).where(Job.state == State.running, Job.lease_expires <= at).with_for_update(skip_locked=True)
    lost = list(s.scalars(expired.execution_options(populate_existing=True)))
    stuck = _each(s, lost, lambda job: _lose_silent(s, job, at))
    stuck += _each(s, _overdue(s, at), lambda job: _give_up_waiting(s, job, at))
    for job, reason in _cannot_run(s, moment):
        stuck += _each(s, [job], partial(_tell_or_give_up, s, reason=reason, at=at))
    willing = {worker.id: worker.slots for worker in moment.live if worker.complaint is None}
    theirs = select(func.count()).select_from(Job).where(Job.state == State.running, Job.lease_owner.in_(willing))
    free = max(0, sum(willing.values()) - (s.scalar(theirs) or 0))
    claimable = select(Job.id).where(Job.state == State.queued, Job.not_before <= at)
    ring = s.scalars(claimable.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(free)).all()
    swept = [job.id for job in lost if job.id not in stuck]
    return SweepResult(ring, swept, checkpoints.drop_of_the_ended(s), stuck)


def _each(s: Session, found: Sequence[Job], act: Callable[[Job], None]) -> list[str]:
    """Put right one job after the other; the ids of those that could not be: one bad row must not keep the others."""
    stuck = []
    for job in found:
        try:
            with s.begin_nested():
                act(job)
                s.flush()
        except OperationalError:  # the database, not the job
            raise
        except Exception:
            logger.exception("%s could not be repaired", job.id)
            stuck.append(job.id)
    return stuck


def _lose_silent(s: Session, job: Job, at: datetime) -> None:
    reason = f"no heartbeat from {job.lease_owner}"
    close_attempt(s, job, at, "lost", reason, None, FailureCode.worker_lost)
    add_event(s, job, at, "attempt_lost", attempt=job.attempt, reason=reason, code=FailureCode.worker_lost)
    lose(s, job, at, FailureCode.worker_lost, reason, None)


def _overdue(s: Session, at: datetime) -> list[Job]:
    """Jobs that no worker took within limits.max_wait_s; one that ran once waits as long as it must."""
    limit_s = Job.limits["max_wait_s"].as_float()
    bounded = select(Job).where(Job.state == State.queued, Job.attempt == 0, limit_s.is_not(None))
    rows = s.scalars(bounded.with_for_update(skip_locked=True).execution_options(populate_existing=True))
    # since its submission; for one that was paused before it ever ran, since it was resumed
    return [job for job in rows if (at - job.not_before).total_seconds() >= float(job.limits["max_wait_s"])]


def _cannot_run(s: Session, moment: Moment) -> list[tuple[Job, str]]:
    """Queued jobs that no worker could ever take, of those that live, and why; none while none of them takes jobs."""
    willing = [each for each in moment.live if isinstance(each, LiveWorker) and each.complaint is None]
    if not willing:
        return []
    queued = select(Job.device, DEVICES, THREADS).where(IS_QUEUED).distinct()
    found = []
    for device, devices, threads in s.execute(queued).all():
        if (reason := unable(device, devices, devices * threads, willing)) is not None:
            same = select(Job).where(IS_QUEUED, Job.device == device, devices == DEVICES, threads == THREADS)
            rows = s.scalars(same.with_for_update(skip_locked=True).execution_options(populate_existing=True))
            found += [(job, reason) for job in rows]
    return found


def _tell_or_give_up(s: Session, job: Job, reason: str, at: datetime) -> None:
    """Its story says why it waits; in the end it waits no longer for a worker that never came."""
    waited = at - job.not_before
    told = select(JobEvent.seq).where(JobEvent.job_id == job.id, JobEvent.type == "cannot_run")
    if waited >= TOLD_AFTER and s.scalar(told.where(JobEvent.at >= job.not_before).limit(1)) is None:
        add_event(s, job, at, "cannot_run", reason=reason, ends_at=(job.not_before + CANNOT_RUN).isoformat())
    there = WorkerRow.last_beat > at - SETTLED, WorkerRow.started_at <= at - SETTLED
    if waited >= CANNOT_RUN and s.scalar(select(WorkerRow.id).where(*there).limit(1)) is not None:
        message = f"no worker could run it for {CANNOT_RUN.days} days: {reason}"
        give_up(s, job, at, FailureCode.user_error, message, {"waited_s": waited.total_seconds()})


def _give_up_waiting(s: Session, job: Job, at: datetime) -> None:
    allowed_s = float(job.limits["max_wait_s"])
    message = f"no worker took it within limits.max_wait_s ({allowed_s:g} s)"
    give_up(s, job, at, FailureCode.preempted, message, {"limit": "max_wait_s", "limit_s": allowed_s})
