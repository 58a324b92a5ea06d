"""A study's arms side by side: mean AP, differences to the controls with intervals, gap closed, cost, time to quality.

Read from rows at each request; only what a run's images are worth in the interval over seeds and images is worked out
elsewhere, once for each run (resampling.py). Knows rows. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean, median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core.lifecycle import FailureCode, State
from api.core.rows import db
from api.core.rows.lookup import owned
from api.core.rows.tables import Artifact, Attempt, Job, MetricPoint, Model, Series, Study, StudyJob
from fgd.result_files import DETECTIONS
from fgd.statistics.curves import Point, Reached, time_to_quality
from fgd.statistics.intervals import (
    Drawn,
    Estimate,
    difference,
    difference_of_drawn,
    gap_closed,
    gap_closed_of_drawn,
)

Split = Literal["val", "test"]


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


class Quality(Shown):
    """When runs first had the control's final AP on the validation images."""

    ap: float
    """The control's: mean over its runs that have ended."""
    reached: int
    """How many runs did."""
    runs: int
    """Of so many that were evaluated."""
    step: float | None
    """Median over the runs that did; so are the others."""
    seconds: float | None
    """Of training until then, without pauses and waiting."""
    steps_ratio: float | None
    """`step` as a share of all steps of the control: 0.5 is half the training."""


class RunView(Shown):
    seed: int
    job: str | None
    """null: it was deleted."""
    state: State | None
    failure: FailureCode | None
    step: int | None
    total_steps: int | None
    ap: float | None
    """0-100, of the last evaluation; that of the finished training if the job has succeeded."""
    device_seconds: float
    """Time of all attempts x devices."""
    quality_step: int | None
    quality_seconds: float | None
    """When it first had the control's final AP; null: it had not."""


class Row(Shown):
    """One arm and one student."""

    arm: str
    student: str
    against: str | None
    """The arm that it is compared with."""
    succeeded: int
    """Runs that count in the figures."""
    ap: float | None
    """Mean over them, 0-100."""
    difference: Interval | None
    """AP points above the other arm, over seeds: mean of the paired differences, with Student's t interval."""
    difference_over_images: Interval | None
    """The same over seeds and images: a bootstrap that draws both."""
    images_reason: str | None
    """Why there is no interval over images, or not yet."""
    gap_closed: Interval | None
    """How much of the gap between the other arm and the teacher it closes: 1 is a student as good as the teacher. null
    without a teacher's AP, or where the gap is under one AP point."""
    gap_closed_over_images: Interval | None
    device_seconds: float | None
    """Mean of its runs that have succeeded."""
    device_seconds_total: float
    """Of all its runs, those included that failed."""
    quality: Quality | None
    """For an arm that is compared with none: when it first had its own final AP."""
    runs: list[RunView]


class TeacherView(Shown):
    teacher: dict[str, Any]
    ap: float | None
    """AP on the same split. null: it is not known, since the teacher was not trained here on this data set."""


class Leaderboard(Shown):
    study: str
    state: State
    split: Split
    teachers: list[TeacherView]
    rows: list[Row]
    """Arms in the study's order, each with its students."""
    pending: int
    """Runs whose part of the intervals over images is still being worked out; ask again later."""


@dataclass(frozen=True)
class _Run:
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
class _Teacher:
    ap: float | None
    detections: str | None


@dataclass(frozen=True)
class Found:
    """All that a leaderboard is made of."""

    study: Study
    state: State
    split: Split
    runs: Mapping[tuple[str, str], Sequence[_Run]]
    """By arm and student; in the order of seeds."""
    teachers: Mapping[str, _Teacher] = field(default_factory=dict)
    """By arm."""

    def detections(self) -> list[str]:
        """Digests of what is to be resampled."""
        of_runs = (run.detections for runs in self.runs.values() for run in runs)
        of_teachers = (teacher.detections for teacher in self.teachers.values())
        return list(dict.fromkeys(digest for each in (of_runs, of_teachers) for digest in each if digest is not None))


Resampled = Mapping[str, Drawn | str]
"""By digest; text: why there is none. What is absent is being worked on."""


def read(s: Session, project_id: str, study_id: str, split: Split) -> Found:
    """Raises NotFound."""
    study = owned(s, Study, project_id, study_id)
    state = State(s.execute(select(Study.state_shown()).where(Study.id == study.id)).scalar_one())
    query = (
        select(StudyJob, Job.state, Job.failure_code, Job.progress, Job.spec)
        .join(Job, Job.id == StudyJob.job_id)
        .where(StudyJob.study_id == study_id, StudyJob.current)
        .order_by(StudyJob.seed)
    )
    rows = s.execute(query).all()
    ids = [row.StudyJob.job_id for row in rows]
    facts = _Facts.of(s, ids, split)
    runs = defaultdict[tuple[str, str], list[_Run]](list)
    for of, job_state, failure, progress, spec in rows:
        devices = int(spec.get("resources", {}).get("devices", 1))
        runs[of.arm, of.student].append(
            _Run(
                seed=of.seed,
                job=of.job_id,
                state=State(job_state),
                failure=FailureCode(failure) if failure else None,
                progress=progress or {},
                device_s=devices * facts.ran_s(of.job_id),
                curve=facts.curve(of.job_id, "val"),
                ap=facts.last(of.job_id, split),
                detections=facts.detections.get(of.job_id) if job_state == State.succeeded else None,
            )
        )
    return Found(study, state, split, runs, _teachers(s, study, split))


def board(found: Found, resampled: Resampled) -> Leaderboard:
    """The figures of what was read."""
    arms = found.study.arms
    rows = [_row(found, resampled, arm, student["name"]) for arm in arms for student in found.study.students]
    teachers = {repr(teacher): (teacher, found.teachers[arm]) for arm, teacher in _teachers_of(found.study)}
    return Leaderboard(
        study=found.study.id,
        state=found.state,
        split=found.split,
        teachers=[TeacherView(teacher=ref, ap=teacher.ap) for ref, teacher in teachers.values()],
        rows=rows,
        pending=sum(digest not in resampled for digest in found.detections()),
    )


def _row(found: Found, resampled: Resampled, arm: Mapping[str, Any], student: str) -> Row:
    runs, against = found.runs.get((arm["name"], student), []), arm["against"]
    controls = found.runs.get((against, student), []) if against is not None else runs
    ended = [run for run in runs if run.final_ap is not None]
    own, theirs = ({run.seed: run.final_ap for run in each} for each in (runs, controls))
    teacher = found.teachers.get(arm["name"], _Teacher(None, None))
    quality, reached = _quality(runs, controls)
    over_images, gap_over_images, reason = None, None, None
    if against is not None:
        over_images, gap_over_images, reason = _over_images(runs, controls, teacher, resampled)
    succeeded = [run for run in runs if run.state == State.succeeded]
    return Row(
        arm=arm["name"],
        student=student,
        against=against,
        succeeded=len(succeeded),
        ap=fmean(run.final_ap for run in ended if run.final_ap is not None) if ended else None,
        difference=Interval.of(difference(own, theirs)) if against is not None else None,
        difference_over_images=Interval.of(over_images),
        images_reason=reason,
        gap_closed=Interval.of(gap_closed(own, theirs, teacher.ap)) if against is not None else None,
        gap_closed_over_images=Interval.of(gap_over_images),
        device_seconds=fmean(run.device_s for run in succeeded) if succeeded else None,
        device_seconds_total=sum(run.device_s for run in runs),
        quality=quality,
        runs=list(_run_views(found.study.seeds, runs, reached)),
    )


def _run_views(seeds: Sequence[int], runs: Sequence[_Run], reached: Mapping[int, Reached]) -> Iterator[RunView]:
    by_seed = {run.seed: run for run in runs}
    for seed in seeds:
        run, there = by_seed.get(seed), reached.get(seed)
        yield RunView(
            seed=seed,
            job=run.job if run else None,
            state=run.state if run else None,
            failure=run.failure if run else None,
            step=run.progress.get("step") if run else None,
            total_steps=run.progress.get("total_steps") if run else None,
            ap=run.ap if run else None,
            device_seconds=run.device_s if run else 0.0,
            quality_step=there.step if there else None,
            quality_seconds=there.seconds if there else None,
        )


def _quality(runs: Sequence[_Run], controls: Sequence[_Run]) -> tuple[Quality | None, dict[int, Reached]]:
    """Together, and of each seed that reached it."""
    ended = [run for run in controls if run.state == State.succeeded and run.curve and run.curve[-1].ap is not None]
    if not ended:
        return None, {}
    target, steps = fmean(run.curve[-1].ap or 0.0 for run in ended), max(run.steps for run in ended)
    evaluated = [run for run in runs if run.curve]
    each = {run.seed: time_to_quality(run.curve, target, steps) for run in evaluated}
    reached = {seed: there for seed, there in each.items() if there is not None}
    seconds = [there.seconds for there in reached.values() if there.seconds is not None]
    quality = Quality(
        ap=target,
        reached=len(reached),
        runs=len(evaluated),
        step=median(there.step for there in reached.values()) if reached else None,
        seconds=median(seconds) if seconds else None,
        steps_ratio=median(there.steps_ratio for there in reached.values()) if reached else None,
    )
    return quality, reached


def _over_images(
    runs: Sequence[_Run], controls: Sequence[_Run], teacher: _Teacher, resampled: Resampled
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


# --- reading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """Of some jobs, by id."""

    now: datetime
    attempts: Mapping[str, Sequence[tuple[int, datetime, datetime | None]]]
    points: Mapping[tuple[str, str], Sequence[tuple[int, float | None, int, datetime]]]
    """By job and split, in the order of steps: step, AP, attempt, time."""
    detections: Mapping[str, str]

    @classmethod
    def of(cls, s: Session, ids: Sequence[str], split: Split) -> _Facts:
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


def _teachers_of(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """Arm, and the reference to its teacher. An arm without methods has that of the study: its gap can be closed too,
    by inheriting or by training longer. Of several teachers by names it is the first."""
    whole = study.body.get("teacher") or next(iter(study.body.get("teachers", {}).values()), None)
    return [(arm["name"], teacher) for arm in study.arms if (teacher := arm.get("teacher") or whole) is not None]


def _teachers(s: Session, study: Study, split: Split) -> dict[str, _Teacher]:
    return {arm: _teacher(s, study, teacher, split) for arm, teacher in _teachers_of(study)}


def _teacher(s: Session, study: Study, ref: Mapping[str, Any], split: Split) -> _Teacher:
    """What is known of it: of a job that was trained on the same data set, or a model that was made of one."""
    job, step = ref.get("job"), None
    if "model" in ref:
        model = s.scalar(select(Model).where(Model.project_id == study.project_id, Model.id == ref["model"]))
        source = model.source if model is not None else {}
        of_the_end = source.get("kind") == "job" and source.get("which") == "last"
        step = None if of_the_end else source.get("step")
        job = source.get("job") if of_the_end or step is not None else None
    same = select(Job.id).where(Job.project_id == study.project_id, Job.dataset_id == study.dataset_id)
    if job is None or s.scalar(same.where(Job.id == job, Job.state == State.succeeded)) is None:
        return _Teacher(None, None)
    facts = _Facts.of(s, [job], split)
    if step is not None:
        return _Teacher(facts.at(job, split, step), None)
    return _Teacher(facts.last(job, split), facts.detections.get(job))
