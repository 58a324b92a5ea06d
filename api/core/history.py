"""Reading what a job left behind: events, metrics, log, artifacts. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.core.errors import NotFound
from api.core.tables import Artifact, Attempt, Job, JobEvent, LogChunk, MetricPoint, Series

MAX_LOG_ANSWER = 1 << 20
"""Bytes of one answer, about: whole chunks are read."""


@dataclass(frozen=True)
class Point:
    name: str
    split: str
    step: int
    value: float | None
    at: datetime


@dataclass(frozen=True)
class Log:
    attempt: int
    """0: no attempt was made yet."""
    data: bytes
    next_offset: int


def events(s: Session, job: Job, after: int, limit: int) -> Sequence[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.seq > after)
    return s.scalars(query.order_by(JobEvent.seq).limit(limit)).all()


def metrics(s: Session, job: Job, name: str | None = None, split: str | None = None) -> list[Point]:
    """Every point, by series, then step."""
    query = (
        select(Series.name, Series.split, MetricPoint.step, MetricPoint.value, MetricPoint.at)
        .join(Series, (Series.job_id == MetricPoint.job_id) & (Series.id == MetricPoint.series_id))
        .where(MetricPoint.job_id == job.id)
    )
    if name is not None:
        query = query.where(Series.name == name)
    if split is not None:
        query = query.where(Series.split == split)
    rows = s.execute(query.order_by(Series.name, Series.split, MetricPoint.step))
    return [Point(*row) for row in rows]


def latest(s: Session, job: Job) -> list[Point]:
    """The last point of each series."""
    query = select(Series.name, Series.split, Series.latest_step, Series.latest_value, Series.latest_at)
    query = query.where(Series.job_id == job.id, Series.latest_step.is_not(None))
    rows = s.execute(query.order_by(Series.name, Series.split))
    return [Point(name, split, step or 0, value, at) for name, split, step, value, at in rows if at is not None]


def log(s: Session, job: Job, attempt: int | None, after_offset: int) -> Log:
    """A piece of an attempt's log from a byte offset on; of the last attempt if none is named."""
    if attempt is None:
        attempt = s.scalar(select(func.max(Attempt.attempt)).where(Attempt.job_id == job.id))
        if attempt is None:
            return Log(0, b"", 0)
    row = s.get(Attempt, (job.id, attempt))
    if row is None:
        raise NotFound("attempt", str(attempt))
    chunks = select(LogChunk.offset, LogChunk.data).where(
        LogChunk.job_id == job.id,
        LogChunk.attempt == attempt,
        LogChunk.offset + func.length(LogChunk.data) > after_offset,
    )
    data = b""
    with s.execute(chunks.order_by(LogChunk.offset).execution_options(yield_per=16)) as found:
        for offset, piece in found:
            data += piece[max(after_offset - offset, 0) :]
            if len(data) >= MAX_LOG_ANSWER:
                break
    return Log(attempt, data, min(after_offset, row.log_bytes) + len(data))


def artifacts(s: Session, job: Job) -> Sequence[Artifact]:
    return s.scalars(select(Artifact).where(Artifact.job_id == job.id).order_by(Artifact.name)).all()


def artifact(s: Session, project_id: str, artifact_id: str) -> Artifact:
    row = s.scalar(select(Artifact).where(Artifact.project_id == project_id, Artifact.id == artifact_id))
    if row is None:
        raise NotFound("artifact", artifact_id)
    return row
