"""The rows that a job's report is made of: the job, its control and its teachers, and what is known of each.

The control is the one whose gain the dashboard shows (jobs/controls.py); a job of a study is compared with the arm that
its study names, over all seeds. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import inspections, leaderboard, references, tasks, workers
from api.core.inspections import Subject
from api.core.jobs import controls, requests
from api.core.lifecycle import State, TaskState
from api.core.paired_runs import Facts, Run, Split, Teacher, teacher_of
from api.core.report_views import ReportWarning
from api.core.rows import db
from api.core.rows.tables import Artifact, BlobRow, Dataset, Evaluation, Inspection, Job, JobEvent, Study, StudyJob
from fgd.result_files import DETECTIONS, MANIFEST, RECIPE, WEIGHTS
from fgd.spec import JobSpec
from fgd.stored import without_retired

MOST_WARNINGS = 100


@dataclass(frozen=True)
class Side:
    """A network, as rows know it."""

    role: Literal["teacher", "control", "student"]
    job: Job | None
    model: str | None
    name: str
    files: Mapping[str, str]
    """Name -> digest."""
    size: int | None
    run: Run | None
    known: Teacher
    evaluation: tuple[str, dict[str, Any]] | None = None
    place: str = ""
    """The role; of one of several teachers with its name."""


@dataclass(frozen=True)
class Found:
    """All rows that a report is made of."""

    job: Job
    split: Split
    dataset: Dataset | None
    sides: Sequence[Side]
    study: tuple[Study, StudyJob, str] | None
    """The third: the arm that it is compared with."""
    runs: Sequence[Run]
    controls: Sequence[Run]
    teacher: Teacher
    warnings: Sequence[ReportWarning]
    subject: Subject | None
    """What is to be inspected; None: the job has no result."""
    inspection: Inspection | None
    """Of that subject."""
    waits: str | None
    """Why no worker is at it."""
    served: bool
    """There is a worker."""
    wanted: bool
    """The inspection is to be asked for."""

    def shown(self) -> list[str]:
        """Digests of the detections whose figures are shown."""
        return list(dict.fromkeys(digest for side in self.sides if (digest := side.known.detections) is not None))

    def compared(self) -> list[str]:
        """Digests of what is to be resampled."""
        if not self.controls:
            return []
        of = [*(run.detections for run in (*self.runs, *self.controls)), self.teacher.detections]
        return list(dict.fromkeys(digest for digest in of if digest is not None))


def read(s: Session, project_id: str, job_id: str, split: Split, lease_s: float) -> Found:
    """Raises NotFound."""
    job = requests.get(s, project_id, job_id)
    study, runs, against = _of_study(s, job, split)
    control = next((run.job for run in against if run.seed == seed_of(job)), None)
    if control is None and study is None:
        control = s.scalar(select(controls.control_of_job()).where(Job.id == job.id))
        against = [_run(s, requests.get(s, project_id, control), split)] if control else []
    mine = next((run for run in runs if run.job == job.id), None) or _run(s, job, split)
    sides = list(_teachers(s, job, split))
    if control is not None:
        there = next(run for run in against if run.job == control)
        sides.append(_trained(s, "control", requests.get(s, project_id, control), there))
    sides.append(_trained(s, "student", job, mine))
    dataset = s.scalar(select(Dataset).where(Dataset.project_id == project_id, Dataset.id == job.dataset_id))
    subject = _subject(job, split, dataset, sides)
    inspection = inspections.of_job(s, job.id, split)
    wanted = subject is not None and inspections.is_wanted(inspection, subject, db.now(s))
    if inspection is not None and (subject is None or inspection.subject != subject.digest()):
        inspection = None
    return Found(
        job=job,
        split=split,
        dataset=dataset,
        sides=sides,
        study=study,
        runs=runs or [mine],
        controls=against,
        teacher=next((side.known for side in sides if side.role == "teacher"), Teacher(None, None)),
        warnings=_warnings(s, job),
        subject=subject,
        inspection=inspection,
        waits=tasks.waiting_reason(s, inspection, lease_s) if inspection is not None else None,
        served=bool(workers.live(s, lease_s)),
        wanted=wanted,
    )


def _of_study(
    s: Session, job: Job, split: Split
) -> tuple[tuple[Study, StudyJob, str] | None, Sequence[Run], Sequence[Run]]:
    """Its study with the arm that it is compared with, and the runs of both arms."""
    place = s.get(StudyJob, job.id)
    if place is None or not place.current:
        return None, [], []
    found = leaderboard.read(s, job.project_id, place.study_id, split)
    against = next((arm["against"] for arm in found.study.arms if arm["name"] == place.arm), None)
    if against is None:
        return None, [], []
    own, theirs = (found.runs.get((arm, place.student), []) for arm in (place.arm, against))
    return (found.study, place, against), own, theirs


def _run(s: Session, job: Job, split: Split) -> Run:
    facts = Facts.of(s, [job.id], split)
    return Run(
        seed=seed_of(job),
        job=job.id,
        state=State(job.state),
        failure=None,
        progress=job.progress or {},
        device_s=facts.ran_s(job.id),
        curve=facts.curve(job.id, "val"),
        ap=facts.last(job.id, split),
        detections=facts.detections.get(job.id) if job.state == State.succeeded else None,
    )


def _trained(s: Session, role: Literal["control", "student"], job: Job, run: Run) -> Side:
    rows = s.execute(select(Artifact.name, Artifact.digest, Artifact.size).where(Artifact.job_id == job.id)).all()
    size = next((row.size for row in rows if row.name == WEIGHTS), None)
    files = {row.name: row.digest for row in rows}
    return Side(role, job, None, job.name, files, size, run, Teacher(run.ap, run.detections), place=role)


def _teachers(s: Session, job: Job, split: Split) -> Iterator[Side]:
    spec = job.spec
    named = {"": spec["teacher"]} if spec.get("teacher") else {}
    for name, ref in {**named, **(spec.get("teachers") or {})}.items():
        files = dict(job.inputs.get(f"teachers/{name}" if name else "teacher") or {})
        same = BlobRow.project_id == job.project_id, BlobRow.digest == files.get(WEIGHTS)
        source = s.scalar(select(Job).where(Job.project_id == job.project_id, Job.id == ref.get("job")))
        if source is not None:
            kept = select(Artifact.digest).where(Artifact.job_id == source.id, Artifact.name == MANIFEST)
            files |= {MANIFEST: digest} if (digest := s.scalar(kept)) else {}
        known = teacher_of(s, job.project_id, job.dataset_id, ref, split)
        yield Side(
            role="teacher",
            job=source,
            model=ref.get("model"),
            name=name
            or (source.name if source else ref.get("model") or ref.get("job") or ref.get("path") or "teacher"),
            files=files,
            size=s.scalar(select(BlobRow.size).where(*same)),
            run=_run(s, source, split) if source is not None and source.dataset_id == job.dataset_id else None,
            known=known,
            place=f"teacher {name}" if name else "teacher",
            evaluation=None if known.detections else _evaluated(s, job, ref, split, alone=not spec.get("teachers")),
        )


def _evaluated(
    s: Session, job: Job, ref: Mapping[str, Any], split: Split, *, alone: bool
) -> tuple[str, dict[str, Any]] | None:
    """The newest evaluation of a teacher on the same images. alone: it is the job's only one."""
    asked = Evaluation.request
    query = (
        select(Evaluation.id, Evaluation.request, Evaluation.result)
        .where(
            Evaluation.project_id == job.project_id,
            Evaluation.state == TaskState.succeeded,
            asked["dataset"].as_string() == job.dataset_id,
            asked["split"].as_string() == split,
        )
        .order_by(Evaluation.created_at.desc(), Evaluation.id.desc())
    )
    for row in s.execute(query):
        of_this = row.request.get("job") == job.id and row.request.get("network") == "teacher" and alone
        of_model = ref.get("model") is not None and row.request.get("model") == ref["model"]
        if (of_this or of_model) and row.result is not None:
            return row.id, row.result
    return None


def _warnings(s: Session, job: Job) -> list[ReportWarning]:
    """Of its events; the same words once."""
    query = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.type.startswith("note:")).order_by(JobEvent.seq)
    found: dict[str, ReportWarning] = {}
    for event in s.scalars(query.execution_options(yield_per=200)):
        message = str(event.data.get("message", ""))
        if event.data.get("level") == "warning" and message not in found:
            found[message] = ReportWarning(code=event.type.removeprefix("note:"), message=message, at=event.at)
        if len(found) == MOST_WARNINGS:
            break
    return list(found.values())


def _subject(job: Job, split: Split, dataset: Dataset | None, sides: Sequence[Side]) -> Subject | None:
    networks = {
        side.place: {name: side.files[name] for name in (RECIPE, WEIGHTS)}
        | ({DETECTIONS: side.known.detections} if side.known.detections else {})
        for side in sides
        if {RECIPE, WEIGHTS} <= side.files.keys()
    }
    if job.state != State.succeeded or "student" not in networks or dataset is None:
        return None
    schedule = JobSpec.model_validate(without_retired(job.spec, (JobSpec,))).schedule
    return Subject(
        job=job.id,
        split=split,
        networks=networks,
        archive=references.files_of(dataset)["archive"],
        min_size=schedule.min_size,
        max_size=schedule.max_size,
        device="cpu" if job.device == "cpu" else "auto",
    )


def seed_of(job: Job) -> int:
    return int(job.spec.get("seed") or 0)
