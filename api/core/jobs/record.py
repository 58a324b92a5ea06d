"""What a running attempt tells: events, metrics, log. Every write first proves that the attempt still owns its job.

Knows rows. Knows nothing of HTTP, of processes, or of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.orm import Session

from api.core.errors import Fenced
from api.core.jobs import focus, metric_blocks
from api.core.lifecycle import State
from api.core.rows import db
from api.core.rows.tables import Attempt, Job, JobEvent, LogChunk, MetricPoint, Series
from api.core.rows.upsert import insert_for
from fgd.events import OF_A_CLASS, Evaluated, Event, Note, Phase, Started, Stepped

MAX_LOG_BYTES = 32 * 1024**2
"""Of one attempt; what comes after is dropped, and the log says so."""
FEW = 200
"""Numbers of a batch that are looked up by name: a job of 10,000 classes has as many series."""
_LOG_FULL = b"\n[the log is full; nothing after this is kept]\n"

MetricSample = tuple[tuple[str, str], int, float | None]
"""(name, split), step, value."""


def held(s: Session, job_id: str, attempt: int, worker_id: str | None = None) -> Job:
    """The job's row, locked, if this attempt still runs it; Fenced otherwise."""
    query = select(Job).where(Job.id == job_id, Job.attempt == attempt, Job.state == State.running)
    if worker_id is not None:
        query = query.where(Job.lease_owner == worker_id)
    job = s.scalar(query.with_for_update().execution_options(populate_existing=True))
    if job is None:
        raise Fenced(job_id, attempt)
    return job


def add_event(s: Session, job: Job, at: datetime, type: str, /, **data: Any) -> None:
    """Append to the job's story, in the same transaction as what it tells."""
    job.event_seq += 1
    s.add(
        JobEvent(
            job_id=job.id,
            seq=job.event_seq,
            project_id=job.project_id,
            type=type,
            at=at,
            attempt=job.attempt,
            data=data,
        )
    )


def record(s: Session, job_id: str, attempt: int, events: Sequence[Event], log: bytes = b"") -> None:
    """Store a batch of what a trainer said, all or nothing. Raises Fenced if the attempt is stale.

    Saved, Finished and Failed are not stored here: the supervisor answers them with checkpoint, finish and fail.
    """
    job = held(s, job_id, attempt)
    at = db.now(s)
    points: list[MetricSample] = []
    for event in events:
        match event:
            case Started():
                _write_points(s, job, at, points)
                points = []
                reached = int((job.progress or {}).get("step") or 0)
                _rewind(s, job, event.step)
                _begin(s, job, event)
                epoch = _epoch_at(event.step, event.total_steps, event.epochs)
                _advance(job, step=event.step, total_steps=event.total_steps, epoch=epoch, epochs=event.epochs)
                lost = {"steps_lost": max(0, reached - event.step)}  # that were reported; of the last second none were
                add_event(s, job, at, "started", **event.model_dump(exclude={"type"}), **lost)
            case Phase():
                job.phase = event.phase
                add_event(s, job, at, "phase", phase=event.phase)
            case Note():
                add_event(s, job, at, f"note:{event.code[:80]}", **event.model_dump(exclude={"type", "code"}))
            case Stepped():
                points += [((name, "train"), event.step, value) for name, value in event.values.items()]
                _advance(job, event.values, step=event.step, epoch=event.epoch)
            case Evaluated():
                points += [((name, event.split), event.step, value) for name, value in event.values.items()]
                if event.values and all(name.startswith(OF_A_CLASS) for name in event.values):
                    continue  # more of the evaluation before: too much for every answer that shows the job
                _advance(job, {f"{event.split}/{name}": value for name, value in event.values.items()})
                if event.split == "val" and "ap" in event.values:
                    job.ap, job.ap_step = event.values["ap"], event.step
                add_event(s, job, at, "evaluated", **event.model_dump(exclude={"type"}))
            case _:
                pass
    _write_points(s, job, at, points)
    append_log(s, job, at, log)
    s.flush()


def _begin(s: Session, job: Job, event: Started) -> None:
    """Where this attempt stands; and how much of the one before is to be done again, for a checkpoint may be torn."""
    row = s.get_one(Attempt, (job.id, job.attempt))
    row.first_step, row.device = event.step, event.device
    before = s.get(Attempt, (job.id, job.attempt - 1))
    if before is not None and before.last_step is not None:
        before.lost_steps = max(0, before.last_step - event.step)


def _advance(job: Job, values: Mapping[str, float | None] | None = None, **counters: int) -> None:
    before = job.progress or {"step": 0, "total_steps": None, "epoch": 0, "epochs": None, "values": {}}
    job.progress = {**before, **counters, "values": {**before["values"], **(values or {})}}


def _epoch_at(step: int, total_steps: int, epochs: int) -> int:
    """Of a step that was done, counted from 1; 0 before the first."""
    return -(-step * epochs // total_steps) if total_steps else 0


def _rewind(s: Session, job: Job, step: int) -> None:
    """An attempt goes on from `step`: what older attempts measured after it did not happen."""
    removed = delete(MetricPoint).where(MetricPoint.job_id == job.id, MetricPoint.step > step)
    if s.scalars(removed.returning(MetricPoint.step)).all():
        _find_latest_again(s, job.id)
        metric_blocks.rewind(s, job.id, step)
    focus.rewind(s, job.id, step)
    if job.progress is not None:
        values = {name: value for name, value in _latest_values(s, job.id).items() if name in job.progress["values"]}
        job.progress = {**job.progress, "step": step, "values": values}
    if job.ap_step is not None and job.ap_step > step:
        last = select(Series.latest_value, Series.latest_step)
        row = s.execute(last.where(Series.job_id == job.id, Series.name == "ap", Series.split == "val")).one_or_none()
        job.ap = row.latest_value if row is not None else None
        job.ap_step = row.latest_step if row is not None else None


def _find_latest_again(s: Session, job_id: str) -> None:
    s.execute(
        update(Series)
        .where(Series.job_id == job_id)
        .values(latest_step=None, latest_value=None, latest_at=None)
        .execution_options(synchronize_session=False)
    )
    last = (
        select(MetricPoint.series_id, func.max(MetricPoint.step).label("step"))
        .where(MetricPoint.job_id == job_id)
        .group_by(MetricPoint.series_id)
        .subquery()
    )
    query = select(MetricPoint.series_id, MetricPoint.step, MetricPoint.value, MetricPoint.at).join(
        last, (MetricPoint.series_id == last.c.series_id) & (MetricPoint.step == last.c.step)
    )
    rows = s.execute(query.where(MetricPoint.job_id == job_id)).all()
    _set_latest(s, [(row.series_id, row.step, row.value, row.at) for row in rows])


def _latest_values(s: Session, job_id: str) -> dict[str, float | None]:
    rows = s.execute(
        select(Series.name, Series.split, Series.latest_value).where(
            Series.job_id == job_id, Series.latest_step.is_not(None)
        )
    )
    return {name if split == "train" else f"{split}/{name}": value for name, split, value in rows}


def _write_points(s: Session, job: Job, at: datetime, points: Sequence[MetricSample]) -> None:
    """Upsert: a batch that is sent twice is stored once."""
    if not points:
        return
    series = _intern(s, job, {key for key, _, _ in points})
    ids = {key: extent.id for key, extent in series.items()}
    rows = [
        {
            "job_id": job.id,
            "series_id": ids[key],
            "step": step,
            "project_id": job.project_id,
            "attempt": job.attempt,
            "value": value,
            "finite": value is not None,
            "at": at,
        }
        for key, step, value in points
    ]
    statement = insert_for(s, MetricPoint)
    changed = {name: statement.excluded[name] for name in ("attempt", "value", "finite", "at")}
    upsert = statement.on_conflict_do_update(index_elements=["job_id", "series_id", "step"], set_=changed)
    s.connection().execute(upsert, rows)  # past the mapper, which would take as long as the database
    newest = {key: (ids[key], step, value, at) for key, step, value in sorted(points, key=lambda point: point[1])}
    _set_latest(s, newest.values())
    written: dict[int, set[int]] = {}
    for key, step, _ in points:
        written.setdefault(ids[key], set()).add(step)
    metric_blocks.keep(s, job, written, {extent.id: extent for extent in series.values()})


def _intern(s: Session, job: Job, keys: set[tuple[str, str]]) -> dict[tuple[str, str], metric_blocks.Extent]:
    known = _series(s, job.id, keys)
    missing = sorted(keys - known.keys())
    if not missing:
        return known
    statement = insert_for(s, Series).on_conflict_do_nothing(index_elements=["job_id", "name", "split"])
    s.execute(
        statement,
        [{"project_id": job.project_id, "job_id": job.id, "name": name, "split": split} for name, split in missing],
    )
    return _series(s, job.id, keys)


def _series(s: Session, job_id: str, keys: set[tuple[str, str]]) -> dict[tuple[str, str], metric_blocks.Extent]:
    columns = (Series.name, Series.split, Series.id, Series.latest_step, Series.covered, Series.loose)
    query = select(*columns).where(Series.job_id == job_id)
    if len(keys) <= FEW:
        query = query.where(Series.name.in_({name for name, _ in keys}))
    rows = s.execute(query)
    return {
        (name, split): metric_blocks.Extent(id, latest, covered, loose)
        for name, split, id, latest, covered, loose in rows
    }


def _set_latest(s: Session, rows: Iterable[tuple[int, int, float | None, datetime]]) -> None:
    told = [{"of": id, "step": step, "value": value, "at": at} for id, step, value, at in rows]
    if told:
        s.connection().execute(_LATEST, told)


_LATEST = (
    update(Series)
    .where(Series.id == bindparam("of"), Series.latest_step.is_(None) | (Series.latest_step <= bindparam("step")))
    .values(latest_step=bindparam("step"), latest_value=bindparam("value"), latest_at=bindparam("at"))
)


def append_log(s: Session, job: Job, at: datetime, log: bytes) -> None:
    """Append to the attempt's log, up to MAX_LOG_BYTES."""
    if not log:
        return
    attempt = s.get_one(Attempt, (job.id, job.attempt))
    if attempt.log_bytes >= MAX_LOG_BYTES:
        return
    if attempt.log_bytes + len(log) > MAX_LOG_BYTES:
        log = log[: MAX_LOG_BYTES - attempt.log_bytes] + _LOG_FULL
    s.add(
        LogChunk(
            job_id=job.id, attempt=job.attempt, offset=attempt.log_bytes, project_id=job.project_id, data=log, at=at
        )
    )
    attempt.log_bytes += len(log)
