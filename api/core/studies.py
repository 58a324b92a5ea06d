"""The verbs of studies: submit, extend, retry what failed, pause, resume, cancel, delete. The jobs are ordinary ones.

Every job of a study is checked before the first is inserted, and all are inserted in one transaction: a request that is
refused leaves nothing. Knows rows, the store, and jobs' verbs. Knows nothing of HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import Session

from api.core import blobs, references, study_bodies
from api.core.errors import Conflict, Fault, Invalid
from api.core.jobs import removal, requests
from api.core.jobs.moves import CANCELS
from api.core.lifecycle import Requested, State
from api.core.rows import db
from api.core.rows.crowd import expect_place
from api.core.rows.idempotency import Once
from api.core.rows.ids import new_id
from api.core.rows.lookup import owned
from api.core.rows.tables import Job, Study, StudyJob
from api.core.settings import Settings
from api.core.store.names import Blob, BlobStore
from api.core.study_bodies import ExtendStudy, Planned, Run, SubmitStudy
from fgd.spec import SubmitJob
from fgd.stored import without_retired

ENDED = frozenset({State.failed, State.cancelled})
"""What is tried once more by `retry`."""


@dataclass(frozen=True)
class Made:
    study: Study
    new: bool
    """False: this Idempotency-Key made it before."""
    jobs: Sequence[str]
    """That were inserted: ring for them."""


@dataclass
class _Checked:
    """Runs, with what they refer to."""

    runs: list[Run] = field(default_factory=list)
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    packed: list[Blob] = field(default_factory=list)


def submit(
    engine: Engine, store: BlobStore, settings: Settings, project_id: str, body: SubmitStudy, key: str | None
) -> Made:
    """A study with its jobs, all queued. Raises Invalid with the faults of all of them, Conflict, Busy."""
    once = Once.of(Study, project_id, key, "POST /v1/studies", body)
    with db.reading(engine) as s:
        if (study := once.replayed(s)) is not None:
            return Made(study, False, ())
        arms = study_bodies.planned(body)
        checked = _looked_up(s, store, settings, project_id, body, arms)
    runs = checked.runs
    jobs: list[str] = []

    def insert(s: Session) -> Study:
        blobs.remember_blobs(s, project_id, db.now(s), *checked.packed)
        study = Study(
            id=new_id("std"),
            project_id=project_id,
            name=body.name,
            dataset_id=runs[0].job.dataset,
            created_at=db.now(s),
        )
        _grow(study, body, arms, [], checked)
        s.add(study)
        s.flush()
        jobs[:] = _fill(s, settings, study)
        return study

    study, new = once.make(engine, insert)
    return Made(study, new, jobs if new else ())


def outline(
    engine: Engine, store: BlobStore, settings: Settings, project_id: str, body: SubmitStudy
) -> tuple[Sequence[Planned], Sequence[Run]]:
    """The arms and the runs of the study that `submit` would make of this body; nothing is made. Refuses what `submit`
    would, except for a queue that is full. Raises Invalid, Conflict."""
    with db.reading(engine) as s:
        arms = study_bodies.planned(body)
        checked = _looked_up(s, store, settings, project_id, body, arms)
    if checked.packed:
        with db.transaction(engine) as s:
            blobs.remember_blobs(s, project_id, db.now(s), *checked.packed)
    return arms, checked.runs


def extend(
    engine: Engine,
    store: BlobStore,
    settings: Settings,
    project_id: str,
    study_id: str,
    body: ExtendStudy,
    key: str | None,
) -> Made:
    """More seeds, more arms. Those that the study has already are left as they are, so the same request twice makes no
    job twice; a study that is paused stays so. Raises NotFound, Invalid, Conflict, Busy."""
    once = Once.of(Study, project_id, key, f"POST /v1/studies/{study_id}/extend", body)
    with db.reading(engine) as s:
        if (study := once.replayed(s)) is not None:
            return Made(study, False, ())
        study = owned(s, Study, project_id, study_id)
        version, had = study.version, {arm["name"] for arm in study.arms}
        larger, places = _extended(study, body)
        with _pointing_into(places):
            arms = study_bodies.planned(larger)
            expect_size(settings, len(arms) * len(larger.students), larger.seeds)
            runs = [run for run in study_bodies.runs(larger, arms) if run.arm not in had]
            checked = _checked(s, store, settings, project_id, runs)
    jobs: list[str] = []

    def insert(s: Session) -> Study:
        study = owned(s, Study, project_id, study_id, locked=True)
        if study.version != version:
            raise Conflict("study_changed", f"{study_id} was changed by another request meanwhile; send it again", True)
        blobs.remember_blobs(s, project_id, db.now(s), *checked.packed)
        paused = _state(s, study) == State.paused
        _grow(study, larger, arms, study.runs, checked)
        s.flush()
        jobs[:] = _fill(s, settings, study, paused=paused)
        return study

    study, new = once.make(engine, insert)
    return Made(study, new, jobs if new else ())


def retry(s: Session, settings: Settings, project_id: str, study_id: str) -> Sequence[str]:
    """A new job in place of each that failed, was cancelled or was deleted; the others stay. Its ids. Raises NotFound,
    Conflict, Busy."""
    study = owned(s, Study, project_id, study_id, locked=True)
    given_up = select(Job.id).where(Job.state.in_(ENDED))
    ended = update(StudyJob).where(StudyJob.study_id == study_id, StudyJob.current, StudyJob.job_id.in_(given_up))
    s.execute(ended.values(current=False).execution_options(synchronize_session=False))
    jobs = _fill(s, settings, study)
    if not jobs:
        raise Conflict("nothing_to_retry", f"no job of {study_id} has failed, was cancelled or deleted")
    return jobs


def request(s: Session, project_id: str, study_id: str, wish: Requested) -> None:
    """Pause or cancel all jobs that have not ended. The same again changes nothing. Raises NotFound; Conflict where all
    have ended."""
    study = owned(s, Study, project_id, study_id, locked=True)
    open_jobs = _open_jobs(s, study)
    if not open_jobs and not (wish in CANCELS and _state(s, study) == State.cancelled):
        raise Conflict("study_finished", f"all jobs of {study_id} have ended; there is nothing left to {wish}")
    for job in open_jobs:
        if wish in CANCELS or job.requested not in CANCELS:
            requests.request(s, project_id, job.id, wish)


def resume(s: Session, project_id: str, study_id: str) -> Sequence[str]:
    """Queue all paused jobs; a pause that has not happened yet is withdrawn. Their ids. Raises NotFound; Conflict where
    all have ended."""
    study = owned(s, Study, project_id, study_id, locked=True)
    open_jobs = _open_jobs(s, study)
    if not open_jobs:
        raise Conflict("study_finished", f"all jobs of {study_id} have ended; there is nothing left to resume")
    paused = [job.id for job in open_jobs if job.state == State.paused or job.requested == Requested.pause]
    for id in paused:
        requests.resume(s, project_id, id)
    return paused


def delete_study(s: Session, project_id: str, study_id: str, *, jobs: bool) -> list[str]:
    """Delete a study all of whose jobs have ended; with `jobs` these too, else they stay as ordinary jobs. Returns the
    keys of checkpoints: delete those objects after the commit. Raises NotFound, Conflict."""
    study = owned(s, Study, project_id, study_id, locked=True)
    if open_jobs := _open_jobs(s, study):
        detail = f"{len(open_jobs)} jobs of {study_id} have not ended; cancel it first"
        raise Conflict("study_running", detail)
    theirs = list(s.scalars(select(StudyJob.job_id).where(StudyJob.study_id == study_id).order_by(StudyJob.job_id)))
    s.execute(delete(StudyJob).where(StudyJob.study_id == study_id).execution_options(synchronize_session=False))
    s.delete(study)
    s.flush()
    if jobs:
        return [key for id in theirs for key in removal.delete_job(s, project_id, id)]
    shown = update(Job).where(Job.id.in_(theirs)).values(version=Job.version + 1)  # their `study` is another now
    s.execute(shown.execution_options(synchronize_session=False))
    return []


def expect_size(settings: Settings, runs: int, seeds: Sequence[int]) -> None:
    """Raises Invalid for more jobs than a study may have."""
    if (jobs := runs * len(seeds)) > settings.max_study_jobs:
        detail = (
            f"arms x students ({runs}, added controls included) x seeds ({len(seeds)}) are {jobs} jobs; a study may "
            f"have {settings.max_study_jobs} (FGD_MAX_STUDY_JOBS)"
        )
        raise Invalid(Fault("/seeds", "too_many_jobs", detail))


# --- what a study is made of ----------------------------------------------------------------------------------


def _looked_up(
    s: Session, store: BlobStore, settings: Settings, project_id: str, body: SubmitStudy, arms: Sequence[Planned]
) -> _Checked:
    """The runs of a new study. Raises Invalid with all faults, or else the first Conflict."""
    expect_size(settings, len(arms) * len(body.students), body.seeds)
    return _checked(s, store, settings, project_id, study_bodies.runs(body, arms))


def _checked(s: Session, store: BlobStore, settings: Settings, project_id: str, runs: Sequence[Run]) -> _Checked:
    """Whatever the runs refer to, looked up. Raises Invalid with all faults of all runs, or else the first Conflict."""
    found, faults, conflicts, looked_up = _Checked(), list[Fault](), list[Conflict](), references.LookedUp()
    for number, run in enumerate(runs):
        try:
            inputs = references.resolve(s, store, settings.data_roots, project_id, run.job, looked_up)
        except Invalid as error:
            faults += [dataclasses.replace(each, pointer=run.pointer(each.pointer)) for each in error.errors]
            continue
        except Conflict as error:
            pointers = [run.pointer(each.pointer) for each in error.errors]
            conflicts.append(Conflict(error.code, error.detail, error.retryable, next(iter(pointers), None)))
            continue
        found.runs.append(run)
        found.inputs |= {f"{number}/{role}": files for role, files in inputs.files.items()}
        found.packed += inputs.packed
    if faults:
        raise Invalid(*dict.fromkeys(faults))
    if conflicts:
        raise conflicts[0]
    return found


def _grow(study: Study, body: SubmitStudy, arms: Sequence[Planned], runs: list[dict[str, Any]], new: _Checked) -> None:
    """Write down what the study is now. runs: that it has already."""
    before = len(runs)
    sent = [each.arm.model_dump(mode="json", exclude_unset=True) for each in arms]  # added controls are its own now
    study.body = {**body.model_dump(mode="json"), "arms": sent}
    study.arms = [_shown(each) for each in arms]
    names = study_bodies.labels(body.students)
    students = [student.model_dump(mode="json") for student in body.students]
    study.students = [{"name": name, "student": student} for name, student in zip(names, students, strict=True)]
    study.seeds = list(body.seeds)
    added = [{"arm": run.arm, "student": run.student, "job": run.job.model_dump(mode="json")} for run in new.runs]
    study.runs = [*runs, *added]
    moved = {f"{before + int(at)}/{role}": files for (at, _, role), files in _by_run(new.inputs)}
    study.inputs = {**(study.inputs or {}), **moved}
    study.jobs = len(study.runs) * len(body.seeds)


def _extended(study: Study, body: ExtendStudy) -> tuple[SubmitStudy, dict[int, int]]:
    """The study's body with what is added, and the places of its arms -> in `body`. Raises Invalid for an arm that the
    study has with other settings."""
    before = stored_body(study)
    there = {arm.name: arm for arm in before.arms}
    faults = [
        Fault(
            f"/arms/{place}/name",
            "arm_exists",
            f"{study.id} has an arm {arm.name!r} that is set differently; take another name",
        )
        for place, arm in enumerate(body.arms)
        if arm.name in there and there[arm.name] != arm
    ]
    if faults:
        raise Invalid(*faults)
    new = [(place, arm) for place, arm in enumerate(body.arms) if arm.name not in there]
    seeds = [*before.seeds, *(seed for seed in body.seeds if seed not in before.seeds)]
    places = {len(before.arms) + number: place for number, (place, _) in enumerate(new)}
    return before.but(arms=(*before.arms, *(arm for _, arm in new)), seeds=tuple(dict.fromkeys(seeds))), places


@contextmanager
def _pointing_into(places: Mapping[int, int]) -> Iterator[None]:
    """Faults of a study that grows, at their places in the body of the extension; "" for what that does not have."""

    def moved(pointer: str) -> str:
        _, _, rest = pointer.partition("/arms/")
        place, slash, inner = rest.partition("/")
        known = place.isdigit() and int(place) in places
        return f"/arms/{places[int(place)]}{slash}{inner}" if known else pointer if pointer == "/seeds" else ""

    try:
        yield
    except Invalid as error:
        raise Invalid(*(dataclasses.replace(each, pointer=moved(each.pointer)) for each in error.errors)) from error
    except Conflict as error:
        pointer = next((moved(each.pointer) for each in error.errors), None)
        raise Conflict(error.code, error.detail, error.retryable, pointer) from error


def _by_run(inputs: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[tuple[str, str, str], dict[str, str]]]:
    return ((key.partition("/"), dict(files)) for key, files in inputs.items())


def _shown(planned: Planned) -> dict[str, Any]:
    """An arm as people see it: what it does not set is left out."""
    arm = planned.arm.model_dump(mode="json", exclude_unset=True)
    return {**{name: value for name, value in arm.items() if name != "against"}, "against": planned.against}


def _fill(s: Session, settings: Settings, study: Study, *, paused: bool = False) -> list[str]:
    """A job for each arm, student and seed that has none: one seed after the other, so that whole pairs come early."""
    rows = s.execute(select(StudyJob.arm, StudyJob.student, StudyJob.seed).where(
        StudyJob.study_id == study.id, StudyJob.current))  # fmt: skip
    there = {(arm, student, seed) for arm, student, seed in rows}
    order = {arm["name"]: place for place, arm in enumerate(study.arms)}
    runs = sorted(enumerate(study.runs), key=lambda each: order[each[1]["arm"]])
    missing = [
        (number, run, seed)
        for seed in study.seeds
        for number, run in runs
        if (run["arm"], run["student"], seed) not in there
    ]
    if missing:
        expect_place(s, Job, study.project_id, settings.max_queued_jobs, "FGD_MAX_QUEUED_JOBS", len(missing))
    specs = {number: _stored_job(run["job"]) for number, run in runs}
    return [_add(s, study, run, number, specs[number], seed, paused) for number, run, seed in missing]


def _add(
    s: Session, study: Study, run: Mapping[str, Any], number: int, spec: SubmitJob, seed: int, paused: bool
) -> str:
    name = study_bodies.job_name(study.name, run["arm"], run["student"] if len(study.students) > 1 else None, seed)
    body = spec.but(name=name, seed=seed)
    start = f"{number}/"
    inputs = {key.removeprefix(start): files for key, files in study.inputs.items() if key.startswith(start)}
    job = requests.submit(s, study.project_id, body, body.spec(), inputs=inputs)
    try:
        references.link(s, job, body.spec())
    except Invalid as error:
        detail = f"{error.detail}: it was deleted, and new jobs of this study need it; submit another study"
        raise Conflict("study_cannot_grow", detail) from error
    s.add(
        StudyJob(
            job_id=job.id,
            project_id=study.project_id,
            study_id=study.id,
            arm=run["arm"],
            student=run["student"],
            seed=seed,
            current=True,
        )
    )
    s.flush()
    if paused:
        requests.request(s, study.project_id, job.id, Requested.pause)
    return job.id


def _stored_job(document: Mapping[str, Any]) -> SubmitJob:
    return SubmitJob.model_validate(without_retired(document, (SubmitJob,)))


def stored_body(study: Study) -> SubmitStudy:
    return SubmitStudy.model_validate(without_retired(study.body, (SubmitStudy,)))


def _open_jobs(s: Session, study: Study) -> Sequence[Job]:
    theirs = select(StudyJob.job_id).where(StudyJob.study_id == study.id)
    query = select(Job).where(Job.id.in_(theirs), Job.state.not_in([*ENDED, State.succeeded]))
    return s.scalars(query.order_by(Job.id).with_for_update().execution_options(populate_existing=True)).all()


def _state(s: Session, study: Study) -> State:
    return State(s.execute(select(Study.state_shown()).where(Study.id == study.id)).scalar_one())
