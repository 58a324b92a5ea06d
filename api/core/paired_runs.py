"""Runs that are compared in pairs, student and control of a seed: what rows say of them, and what their difference is
worth. A study's leaderboard and a job's report are made of these. Knows rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core.lifecycle import FailureCode, State
from api.core.rows import db
from api.core.rows.tables import Artifact, Attempt, Job, MetricPoint, Model, Series
from fgd.result_files import DETECTIONS
from fgd.statistics.curves import Point
from fgd.statistics.intervals import Drawn, Estimate, difference_of_drawn, gap_closed_of_drawn

Split = Literal["val", "test"]
Resampled = Mapping[str, Drawn | str]
"""By digest; text: why there is none. What is absent is being worked on."""


class Shown(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Interval(Shown):
    """A figure with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    """null: there is one pair of runs, and the interval is over seeds."""
    seeds: list[int]
    """Whose runs have ended in both arms."""

    @classmethod
    def of(cls, found: Estimate | None) -> Interval | None:
        return cls(value=found.value, low=found.low, high=found.high, seeds=list(found.seeds)) if found else None


@dataclass(frozen=True)
class Run:
    """What rows say of a job."""

    seed: int
    job: str
    state: State
    failure: FailureCode | None
    progress: Mapping[str, Any]
    device_s: float
    curve: Sequence[Point]
    """On the validation images."""
    ap: float | None
    detections: str | None
    """Digest."""

    @property
    def final_ap(self) -> float | None:
        return self.ap if self.state == State.succeeded else None

    @property
    def steps(self) -> int:
        return max((point.step for point in self.curve), default=0)


@dataclass(frozen=True)
class Teacher:
    ap: float | None
    detections: str | None


def pairs_over_images(
    runs: Sequence[Run], controls: Sequence[Run], teacher: Teacher, resampled: Resampled
) -> tuple[Estimate | None, Estimate | None, str | None]:
    """Difference and gap over seeds and images, and why there is none."""
    ended = [{run.seed: run.detections for run in each if run.state == State.succeeded} for each in (runs, controls)]
    pairs = sorted(ended[0].keys() & ended[1].keys())
    if not pairs:
        return None, None, "no seed has ended in both arms yet"
    digests = [{seed: each[seed] for seed in pairs} for each in ended]
    if any(digest is None for each in digests for digest in each.values()):
        return None, None, f"a result has no {DETECTIONS}: it is of an earlier version"
    states = [resampled.get(digest or "") for each in digests for digest in each.values()]
    if reason := next((state for state in states if isinstance(state, str)), None):
        return None, None, reason
    if any(state is None for state in states):
        return None, None, "being worked out; ask again later"
    ours, theirs = ({seed: _drawn(resampled, digest) for seed, digest in each.items()} for each in digests)
    of_teacher = resampled.get(teacher.detections or "")
    try:
        found = difference_of_drawn(ours, theirs)
    except ValueError as error:
        return None, None, str(error)
    gap = None
    if isinstance(of_teacher, Drawn) and of_teacher.images == ours[pairs[0]].images:
        gap = gap_closed_of_drawn(ours, theirs, of_teacher)
    return found, gap, None if found is not None else "the images have no boxes"


def _drawn(resampled: Resampled, digest: str | None) -> Drawn:
    found = resampled[digest or ""]
    assert isinstance(found, Drawn), "the others were looked at before"
    return found


@dataclass(frozen=True)
class Facts:
    """Of some jobs, by id."""

    now: datetime
    attempts: Mapping[str, Sequence[tuple[int, datetime, datetime | None]]]
    points: Mapping[tuple[str, str], Sequence[tuple[int, float | None, int, datetime]]]
    """By job and split, in the order of steps: step, AP, attempt, time."""
    detections: Mapping[str, str]

    @classmethod
    def of(cls, s: Session, ids: Sequence[str], split: Split) -> Facts:
        attempts = defaultdict[str, list[tuple[int, datetime, datetime | None]]](list)
        tried = select(Attempt.job_id, Attempt.attempt, Attempt.started_at, Attempt.finished_at)
        for id, attempt, started, finished in s.execute(tried.where(Attempt.job_id.in_(ids)).order_by(Attempt.attempt)):
            attempts[id].append((attempt, started, finished))
        points = defaultdict[tuple[str, str], list[tuple[int, float | None, int, datetime]]](list)
        measured = (
            select(
                Series.job_id, Series.split, MetricPoint.step, MetricPoint.value, MetricPoint.attempt, MetricPoint.at
            )
            .join(MetricPoint, (MetricPoint.job_id == Series.job_id) & (MetricPoint.series_id == Series.id))
            .where(Series.job_id.in_(ids), Series.name == "ap", Series.split.in_({"val", split}))
            .order_by(MetricPoint.step)
        )
        for id, of, step, ap, attempt, at in s.execute(measured):
            points[id, of].append((step, ap, attempt, at))
        kept = select(Artifact.job_id, Artifact.digest).where(Artifact.job_id.in_(ids), Artifact.name == DETECTIONS)
        return cls(db.now(s), attempts, points, {row.job_id: row.digest for row in s.execute(kept)})

    def ran_s(self, job: str) -> float:
        return sum((_or(ended, self.now) - begun).total_seconds() for _, begun, ended in self.attempts.get(job, ()))

    def curve(self, job: str, split: str) -> list[Point]:
        return [
            Point(step, ap, self._ran_until(job, attempt, at))
            for step, ap, attempt, at in self.points.get((job, split), ())
        ]

    def last(self, job: str, split: str) -> float | None:
        points = self.points.get((job, split), ())
        return points[-1][1] if points else None

    def at(self, job: str, split: str, step: int) -> float | None:
        return next((ap for at, ap, *_ in self.points.get((job, split), ()) if at == step), None)

    def _ran_until(self, job: str, attempt: int, at: datetime) -> float:
        """Seconds of its attempts until a point was written."""
        tried = self.attempts.get(job, ())
        return sum((min(_or(ended, at), at) - begun).total_seconds() for n, begun, ended in tried if n <= attempt)


def _or(moment: datetime | None, otherwise: datetime) -> datetime:
    return moment if moment is not None else otherwise


def teacher_of(s: Session, project_id: str, dataset_id: str, ref: Mapping[str, Any], split: Split) -> Teacher:
    """What is known of it: of a job that was trained on the same data set, or a model that was made of one."""
    job, step = ref.get("job"), None
    if "model" in ref:
        model = s.scalar(select(Model).where(Model.project_id == project_id, Model.id == ref["model"]))
        source = model.source if model is not None else {}
        of_the_end = source.get("kind") == "job" and source.get("which") == "last"
        step = None if of_the_end else source.get("step")
        job = source.get("job") if of_the_end or step is not None else None
    same = select(Job.id).where(Job.project_id == project_id, Job.dataset_id == dataset_id)
    if job is None or s.scalar(same.where(Job.id == job, Job.state == State.succeeded)) is None:
        return Teacher(None, None)
    facts = Facts.of(s, [job], split)
    if step is not None:
        return Teacher(facts.at(job, split, step), None)
    return Teacher(facts.last(job, split), facts.detections.get(job))
