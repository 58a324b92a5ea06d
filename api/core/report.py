"""All that is to be said of a finished job, beside its control and its teacher. Knows rows and the store; no HTTP.

The control is the one whose gain the dashboard shows (jobs/controls.py); a job of a study is compared with the arm that
its study names, over all seeds. Rows are read at each request. Figures and resamples of detections take seconds, so
they are worked out once for each file, beside the server (resampling.py): `pending` says for how many that is to come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import leaderboard
from api.core.jobs import controls, requests
from api.core.lifecycle import State, TaskState
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
from api.core.rows.tables import Artifact, BlobRow, Dataset, Evaluation, Job, JobEvent, Study, StudyJob
from api.core.store.names import BlobStore
from fgd.evaluated import SplitFigures
from fgd.result_files import DETECTIONS, MANIFEST, RECIPE, WEIGHTS
from fgd.spec import JobSpec, SubmitJob
from fgd.statistics.intervals import difference, gap_closed
from fgd.stored import stored_recipe, without_retired

MOST_WARNINGS = 100
MOST_BYTES = 16 * 2**20
"""Of a manifest."""


class CurvePoint(Shown):
    step: int
    ap: float | None


class ReportedNetwork(Shown):
    """The student, its control, or a teacher."""

    role: Literal["teacher", "control", "student"]
    job: str | None
    model: str | None
    name: str
    title: str | None
    """The network in a few words; null: its recipe cannot be read."""
    state: State | None
    """Of the job."""
    seed: int | None
    parameters: int | None
    gflops: float | None
    """For one image; null: nobody counted them."""
    bytes: int | None
    """Of its file of weights."""
    sha256: str | None
    """Of this file."""
    ap: float | None
    """0-100, of the last evaluation on the split."""
    figures: SplitFigures | None
    figures_of: str | None
    """What they are of: detections.npz of the result, or the id of an evaluation."""
    figures_reason: str | None
    """Why there are none, or not yet."""
    latency: dict[str, Any] | None
    """As its manifest says it; null: it was not measured. `latency_budget_ms` in a job's spec has it measured."""
    curve: list[CurvePoint]
    """AP on the validation images, as it was trained."""


class Comparison(Shown):
    """Student minus control, AP points, runs paired by seed."""

    study: str | None
    arm: str | None
    against: str | None
    """The study's arm that the control is of."""
    difference: Interval | None
    """Over seeds, with Student's t."""
    difference_over_images: Interval | None
    """Over seeds and images, by bootstrap; with one seed over images alone."""
    images_reason: str | None
    """Why there is none, or not yet."""
    gap_closed: Interval | None
    """Share of the gap between control and teacher: 1 is a student as good as the teacher."""
    gap_closed_over_images: Interval | None


class ControlRequest(Shown):
    """How to have the control trained, where there is none."""

    body: dict[str, Any]
    """For POST /v1/jobs."""
    command: str
    curl: str
    """$API: the service's address with /v1."""


class ReportWarning(Shown):
    code: str
    message: str
    at: datetime


class JobReport(Shown):
    format: Literal["fgd-report/1"] = "fgd-report/1"
    job: str
    name: str
    state: State
    created_at: datetime
    finished_at: datetime | None
    split: Split
    dataset: str
    dataset_name: str
    classes: list[str]
    networks: list[ReportedNetwork]
    """Teachers first, then the control, then the student."""
    comparison: Comparison | None
    """null: there is no control to compare with."""
    control_request: ControlRequest | None
    """Only where there is no control: a job that trains it. null for a job that has no teacher: it is one."""
    spec: dict[str, Any]
    seeds: list[int]
    """Of the runs that are compared, else the job's own."""
    machine: dict[str, Any]
    versions: dict[str, Any]
    manifest: dict[str, Any] | None
    """manifest.json of the result."""
    digests: dict[str, str]
    """SHA-256 of each file of the result; "tensors": of the student's tensors; "dataset/...": of what it began with."""
    warnings: list[ReportWarning]
    pending: int
    """Files whose figures or resamples are still being worked out; ask again later."""


@dataclass(frozen=True)
class _Side:
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


@dataclass(frozen=True)
class Found:
    """All rows that a report is made of."""

    job: Job
    split: Split
    dataset: Dataset | None
    sides: Sequence[_Side]
    study: tuple[Study, StudyJob, str] | None
    """The third: the arm that it is compared with."""
    runs: Sequence[Run]
    controls: Sequence[Run]
    teacher: Teacher
    warnings: Sequence[ReportWarning]

    def shown(self) -> list[str]:
        """Digests of the detections whose figures are shown."""
        return list(dict.fromkeys(digest for side in self.sides if (digest := side.known.detections) is not None))

    def compared(self) -> list[str]:
        """Digests of what is to be resampled."""
        if not self.controls:
            return []
        of = [*(run.detections for run in (*self.runs, *self.controls)), self.teacher.detections]
        return list(dict.fromkeys(digest for digest in of if digest is not None))


def read(s: Session, project_id: str, job_id: str, split: Split) -> Found:
    """Raises NotFound."""
    job = requests.get(s, project_id, job_id)
    study, runs, against = _of_study(s, job, split)
    control = next((run.job for run in against if run.seed == _seed(job)), None)
    if control is None and study is None:
        control = s.scalar(select(controls.control_of_job()).where(Job.id == job.id))
        against = [_run(s, requests.get(s, project_id, control), split)] if control else []
    mine = next((run for run in runs if run.job == job.id), None) or _run(s, job, split)
    sides = list(_teachers(s, job, split))
    if control is not None:
        there = next(run for run in against if run.job == control)
        sides.append(_trained(s, "control", requests.get(s, project_id, control), there))
    sides.append(_trained(s, "student", job, mine))
    return Found(
        job=job,
        split=split,
        dataset=s.scalar(select(Dataset).where(Dataset.project_id == project_id, Dataset.id == job.dataset_id)),
        sides=sides,
        study=study,
        runs=runs or [mine],
        controls=against,
        teacher=next((side.known for side in sides if side.role == "teacher"), Teacher(None, None)),
        warnings=_warnings(s, job),
    )


def report(
    found: Found, store: BlobStore, resampled: Resampled, figures: Mapping[str, SplitFigures | str]
) -> JobReport:
    """Raises StoreAway."""
    job = found.job
    of_result = next(side for side in found.sides if side.role == "student").files
    manifest = _manifest(store, of_result)
    recipe = _json(store, of_result.get(RECIPE)) or {}
    spec = without_retired(job.spec, (JobSpec,))
    seeds = sorted({run.seed for run in found.runs} & {run.seed for run in found.controls})
    digests = dict(of_result) | ({"tensors": job.weights_digest} if job.weights_digest else {})
    digests |= {f"{role}/{name}": digest for role, files in job.inputs.items() for name, digest in files.items()}
    waiting = [digest for digest in found.compared() if digest not in resampled]
    return JobReport(
        job=job.id,
        name=job.name,
        state=State(job.state),
        created_at=job.created_at,
        finished_at=job.finished_at,
        split=found.split,
        dataset=job.dataset_id,
        dataset_name=found.dataset.name if found.dataset else job.dataset_id,
        classes=list(recipe.get("classes") or (found.dataset.classes if found.dataset else None) or ()),
        networks=[_network(side, store, figures, found.split) for side in found.sides],
        comparison=_comparison(found, resampled),
        control_request=_control_request(job, spec) if job.taught and not found.controls else None,
        spec=spec,
        seeds=seeds or [_seed(job)],
        machine=dict((manifest or {}).get("machine") or {}),
        versions=dict((manifest or {}).get("versions") or {}),
        manifest=manifest,
        digests=digests,
        warnings=list(found.warnings),
        pending=len(waiting) + sum(digest not in figures for digest in found.shown()),
    )


# --- what is made of it ---


def _comparison(found: Found, resampled: Resampled) -> Comparison | None:
    if not found.controls:
        return None
    own, theirs = ({run.seed: run.final_ap for run in each} for each in (found.runs, found.controls))
    over_images, gap_over_images, reason = pairs_over_images(found.runs, found.controls, found.teacher, resampled)
    return Comparison(
        study=found.study[0].id if found.study else None,
        arm=found.study[1].arm if found.study else None,
        against=found.study[2] if found.study else None,
        difference=Interval.of(difference(own, theirs)),
        difference_over_images=Interval.of(over_images),
        images_reason=reason,
        gap_closed=Interval.of(gap_closed(own, theirs, found.teacher.ap)),
        gap_closed_over_images=Interval.of(gap_over_images),
    )


def _network(side: _Side, store: BlobStore, figures: Mapping[str, SplitFigures | str], split: Split) -> ReportedNetwork:
    manifest = _manifest(store, side.files) or {}
    shown, of, reason = _figures(side, figures, split)
    return ReportedNetwork(
        role=side.role,
        job=side.job.id if side.job else None,
        model=side.model,
        name=side.name,
        title=_title(store, side.files.get(RECIPE)),
        state=State(side.job.state) if side.job else None,
        seed=_seed(side.job) if side.job else None,
        parameters=manifest.get("parameters"),
        gflops=manifest.get("gflops"),
        bytes=side.size,
        sha256=side.files.get(WEIGHTS),
        ap=side.known.ap if side.known.ap is not None or side.evaluation is None else side.evaluation[1].get("ap"),
        figures=shown,
        figures_of=of,
        figures_reason=reason,
        latency=manifest.get("latency"),
        curve=[CurvePoint(step=point.step, ap=point.ap) for point in (side.run.curve if side.run else ())],
    )


def _figures(
    side: _Side, figures: Mapping[str, SplitFigures | str], split: Split
) -> tuple[SplitFigures | None, str | None, str | None]:
    """What there is, of what, and why there is nothing."""
    digest = side.known.detections
    if digest is None and side.evaluation is not None:
        id, result = side.evaluation
        return SplitFigures.model_validate(result), id, None
    if digest is None and side.role == "teacher":
        whose = f"model {side.model}" if side.model else "the teacher"
        return (
            None,
            None,
            f"{whose} was not evaluated on these images: `fgd evaluate JOB --teacher --split {split}` does",
        )
    if digest is None:
        ended = side.job is not None and side.job.state == State.succeeded
        return None, None, f"the result has no {DETECTIONS}" if ended else "the job has no result"
    known = figures.get(digest)
    if known is None:
        return None, DETECTIONS, "being worked out; ask again later"
    return (None, DETECTIONS, known) if isinstance(known, str) else (known, DETECTIONS, None)


def _control_request(job: Job, spec: Mapping[str, Any]) -> ControlRequest:
    alone: dict[str, Any] = {"teacher": None, "teachers": {}, "methods": [], "unlabelled": None}
    body = {**spec, **{name: value for name, value in alone.items() if name in JobSpec.model_fields}}
    lean = SubmitJob.model_validate({**body, "name": f"control of {job.id}"}).model_dump(mode="json")
    text = json.dumps(lean)  # one line, ASCII: no name in it can end what the shell reads
    return ControlRequest(
        body=lean,
        command=f"fgd job submit - <<'END'\n{text}\nEND",
        curl=f"curl -X POST \"$API/jobs\" -H 'Content-Type: application/json' --data-binary @- <<'END'\n{text}\nEND",
    )


def _manifest(store: BlobStore, files: Mapping[str, str]) -> dict[str, Any] | None:
    return _json(store, files.get(MANIFEST))


def _json(store: BlobStore, digest: str | None) -> dict[str, Any] | None:
    """None for what is not there, or is no object."""
    if digest is None:
        return None
    try:
        told = json.loads(b"".join(store.read(digest, 0, MOST_BYTES)))
    except (KeyError, FileNotFoundError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _title(store: BlobStore, digest: str | None) -> str | None:
    if (told := _json(store, digest)) is None:
        return None
    try:
        return stored_recipe(json.dumps(told).encode()).detector.title()
    except (ValidationError, ValueError):
        return None


# --- reading rows ---


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
        seed=_seed(job),
        job=job.id,
        state=State(job.state),
        failure=None,
        progress=job.progress or {},
        device_s=facts.ran_s(job.id),
        curve=facts.curve(job.id, "val"),
        ap=facts.last(job.id, split),
        detections=facts.detections.get(job.id) if job.state == State.succeeded else None,
    )


def _trained(s: Session, role: Literal["control", "student"], job: Job, run: Run) -> _Side:
    rows = s.execute(select(Artifact.name, Artifact.digest, Artifact.size).where(Artifact.job_id == job.id)).all()
    size = next((row.size for row in rows if row.name == WEIGHTS), None)
    files = {row.name: row.digest for row in rows}
    return _Side(role, job, None, job.name, files, size, run, Teacher(run.ap, run.detections))


def _teachers(s: Session, job: Job, split: Split) -> Iterator[_Side]:
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
        yield _Side(
            role="teacher",
            job=source,
            model=ref.get("model"),
            name=name
            or (source.name if source else ref.get("model") or ref.get("job") or ref.get("path") or "teacher"),
            files=files,
            size=s.scalar(select(BlobRow.size).where(*same)),
            run=_run(s, source, split) if source is not None and source.dataset_id == job.dataset_id else None,
            known=known,
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


def _seed(job: Job) -> int:
    return int(job.spec.get("seed") or 0)
