"""A study's arms side by side: mean AP, differences to the controls with intervals, gap closed, cost, time to quality.

Read from rows at each request; only what a run's images are worth in the interval over seeds and images is worked out
elsewhere, once for each run (resampling.py). Knows rows. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core.lifecycle import FailureCode, State
from api.core.paired_runs import (
    Facts,
    Interval,
    Resampled,
    Run,
    Shown,
    Split,
    Teacher,
    pairs_over_images,
    teacher_of,
)
from api.core.rows.lookup import owned
from api.core.rows.tables import Job, Study, StudyJob
from fgd.statistics.curves import Reached, time_to_quality
from fgd.statistics.intervals import difference, gap_closed


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
class Found:
    """All that a leaderboard is made of."""

    study: Study
    state: State
    split: Split
    runs: Mapping[tuple[str, str], Sequence[Run]]
    """By arm and student; in the order of seeds."""
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    """By arm."""

    def detections(self) -> list[str]:
        """Digests of what is to be resampled."""
        of_runs = (run.detections for runs in self.runs.values() for run in runs)
        of_teachers = (teacher.detections for teacher in self.teachers.values())
        return list(dict.fromkeys(digest for each in (of_runs, of_teachers) for digest in each if digest is not None))


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
    facts = Facts.of(s, ids, split)
    runs = defaultdict[tuple[str, str], list[Run]](list)
    for of, job_state, failure, progress, spec in rows:
        devices = int(spec.get("resources", {}).get("devices", 1))
        runs[of.arm, of.student].append(
            Run(
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
    teacher = found.teachers.get(arm["name"], Teacher(None, None))
    quality, reached = _quality(runs, controls)
    over_images, gap_over_images, reason = None, None, None
    if against is not None:
        over_images, gap_over_images, reason = pairs_over_images(runs, controls, teacher, resampled)
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


def _run_views(seeds: Sequence[int], runs: Sequence[Run], reached: Mapping[int, Reached]) -> Iterator[RunView]:
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


def _quality(runs: Sequence[Run], controls: Sequence[Run]) -> tuple[Quality | None, dict[int, Reached]]:
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


def _teachers_of(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """Arm, and the reference to its teacher. An arm without methods has that of the study: its gap can be closed too,
    by inheriting or by training longer. Of several teachers by names it is the first."""
    whole = study.body.get("teacher") or next(iter(study.body.get("teachers", {}).values()), None)
    return [(arm["name"], teacher) for arm in study.arms if (teacher := arm.get("teacher") or whole) is not None]


def _teachers(s: Session, study: Study, split: Split) -> dict[str, Teacher]:
    return {
        arm: teacher_of(s, study.project_id, study.dataset_id, teacher, split) for arm, teacher in _teachers_of(study)
    }
