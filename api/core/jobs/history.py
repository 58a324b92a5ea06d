"""Reading what a job left behind: events, log, checkpoints, artifacts; its curves are in `curves`. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, bindparam, func, select
from sqlalchemy.orm import Session

from api.core.errors import NotFound
from api.core.lifecycle import State
from api.core.rows import db, lookup
from api.core.rows.db import Reader
from api.core.rows.tables import Artifact, Attempt, Job, JobEvent, LogChunk, Series

MAX_LOG_ANSWER = 1 << 20
"""Bytes of one answer, about: whole chunks are read."""


@dataclass(frozen=True)
class LatestPoint:
    name: str
    split: str
    step: int
    value: float | None
    at: datetime


@dataclass(frozen=True)
class LogOf:
    """Which attempt's log, and its bytes until now; it only grows."""

    job_id: str
    attempt: int
    """0: no attempt was made yet."""
    size: int


@dataclass(frozen=True)
class Log:
    data: bytes
    next_offset: int


def events(s: Session, job: Job, after: int, limit: int) -> Sequence[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.seq > after)
    return s.scalars(query.order_by(JobEvent.seq).limit(limit)).all()


def latest(s: Reader, project_id: str, job_id: str) -> list[LatestPoint]:
    """The last point of each series. Raises NotFound."""
    lookup.version(s, Job, project_id, job_id)
    rows = s.execute(_LATEST, {"job": job_id})
    return [LatestPoint(name, split, step or 0, value, at) for name, split, step, value, at in rows if at is not None]


_LATEST = (
    select(Series.name, Series.split, Series.latest_step, Series.latest_value, Series.latest_at)
    .where(Series.job_id == bindparam("job"), Series.latest_step.is_not(None))
    .order_by(Series.name, Series.split)
)


def log_of(s: Session, job: Job, attempt: int | None) -> LogOf:
    """The log of an attempt; of the last one if none is named. Raises NotFound."""
    if attempt is None:
        attempt = s.scalar(select(func.max(Attempt.attempt)).where(Attempt.job_id == job.id))
        if attempt is None:
            return LogOf(job.id, 0, 0)
    row = s.get(Attempt, (job.id, attempt))
    if row is None:
        raise NotFound("attempt", str(attempt))
    return LogOf(job.id, attempt, row.log_bytes)


def log(s: Session, of: LogOf, after_offset: int) -> Log:
    """A piece of a log from a byte offset on."""
    data = _log_piece(s, of, after_offset)
    return Log(data, min(after_offset, of.size) + len(data))


def log_range(engine: Engine, of: LogOf, start: int, length: int) -> Iterator[bytes]:
    """That many bytes of a log, about a megabyte at a time, each read in a short session of its own."""
    while length > 0:
        with db.reading(engine) as s:
            data = _log_piece(s, of, start)[:length]
        if not data:
            return  # the job was deleted meanwhile: the answer breaks off
        start, length = start + len(data), length - len(data)
        yield data


def _log_piece(s: Session, of: LogOf, after_offset: int) -> bytes:
    chunks = select(LogChunk.offset, LogChunk.data).where(
        LogChunk.job_id == of.job_id,
        LogChunk.attempt == of.attempt,
        LogChunk.offset + func.length(LogChunk.data) > after_offset,
    )
    data = b""
    with s.execute(chunks.order_by(LogChunk.offset).execution_options(yield_per=16)) as found:
        for offset, piece in found:
            data += piece[max(after_offset - offset, 0) :]
            if len(data) >= MAX_LOG_ANSWER:
                break
    return data


def artifacts(s: Session, job: Job) -> Sequence[Artifact]:
    return s.scalars(select(Artifact).where(Artifact.job_id == job.id).order_by(Artifact.name)).all()


def artifact(s: Session, project_id: str, artifact_id: str) -> Artifact:
    row = s.scalar(select(Artifact).where(Artifact.project_id == project_id, Artifact.id == artifact_id))
    if row is None:
        raise NotFound("artifact", artifact_id)
    return row


def attempts(s: Session, job: Job) -> Sequence[Attempt]:
    """The first one first."""
    return s.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)).all()


def running(s: Session) -> Sequence[tuple[Job, Attempt]]:
    """Every job that runs, with its attempt, the longest running first."""
    query = select(Job, Attempt).join(Attempt, (Attempt.job_id == Job.id) & (Attempt.attempt == Job.attempt))
    rows = s.execute(query.where(Job.state == State.running).order_by(Attempt.started_at, Job.id))
    return [(job, attempt) for job, attempt in rows]
