"""/v1/studies: a grid of jobs that are compared, and their leaderboard."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.core import leaderboard, paired_runs, queue, studies
from api.core.leaderboard import Leaderboard
from api.core.lifecycle import Requested, State
from api.core.rows.db import Columns, Reader
from api.core.rows.named import NameAndState
from api.core.rows.tables import Job, Study, StudyJob
from api.core.store.names import delete_objects
from api.core.study_bodies import ExtendStudy, Run, SubmitStudy, job_name
from api.deps import Accept, IdempotencyKey, IfMatch, IfNoneMatch, ProjectDep, Service, ServiceDep, StudyInPath
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag, negotiate, tabular
from api.http.bodies import StrictRoute
from api.http.changing import RENAMED, renamed
from api.http.conditional import POLL_ANSWERS, POLLED, answered, made, polled, unchanged
from api.http.pages import PAGE, paged
from api.schemas import Cancel, PageQuery, Rename, View, Words
from api.views import JSON, Resource, dumps
from fgd.spec_fields import Spec
from fgd.stored import text_without_retired

router = APIRouter(prefix="/v1/studies", tags=["studies"], route_class=StrictRoute)

FIRST_BELLS = 16
"""Of a study's jobs: the sweep rings for the others as workers are free."""


class StudyStudent(View):
    name: str
    """What the leaderboard calls it."""
    student: dict[str, Any]


class StudyJobs(View):
    """How many jobs it has, and how many of them are in each state. Those that another took the place of do not count;
    those that were deleted count in `total` alone."""

    total: int
    """Arms x students x seeds."""
    queued: int
    running: int
    paused: int
    succeeded: int
    failed: int
    cancelled: int


class StudyView(View):
    id: str
    name: str
    state: State
    """Follows from its jobs. queued: none has started; running: some are queued or run; paused: the others wait for a
    resume; then all have ended: failed if any has, cancelled if any was or was deleted, else succeeded."""
    jobs: StudyJobs
    arms: list[dict[str, Any]]
    """What is compared: each arm as it was sent, with `against`, the arm that it is compared with (null: none). Added
    controls are among them, and come first."""
    students: list[StudyStudent]
    seeds: list[int]
    spec: dict[str, Any]
    """The body that it was made of, with what was added since."""
    jobs_url: str
    """Its jobs; each is paused, watched, cancelled like any other."""
    leaderboard_url: str
    created_at: datetime
    finished_at: datetime | None
    """When the last of its jobs ended; null while any has not."""
    version: int
    """Increases with every change of the study or of one of its jobs; the ETag is "v<version>"."""


class OutlinedRun(View):
    """An arm and a student: one job for each seed."""

    arm: str
    student: str
    """What the leaderboard will call it."""
    against: str | None
    """The arm that it will be compared with; null: none."""
    jobs: int
    """One for each seed."""
    spec: dict[str, Any]
    """The body of its first job, with every number filled in: POST /v1/plans says what it costs."""


class StudyOutline(View):
    jobs: int
    """Arms x students x seeds; added controls are among the arms."""
    runs: list[OutlinedRun]


class StudyPage(View):
    items: list[StudyView]
    next: str | None
    """Cursor of the next page; null on the last."""


class StudiesQuery(PageQuery):
    name: Words | None = None
    """The whole name; with * at the end how it begins, at the beginning how it ends, at both what is in it. Letter case
    counts."""
    state: Annotated[tuple[State, ...], Field(max_length=32)] = ()
    """One of these; may be given several times."""


class LeaderboardQuery(Spec):
    split: paired_runs.Split = "val"
    """Whose images the AP is of. Time to quality is always of val."""


def _study(study: JSON) -> None:
    study["spec"] = text_without_retired(study["spec"], SubmitStudy)
    study["jobs_url"] = f"/v1/jobs?study={study['id']}"
    study["leaderboard_url"] = f"/v1/studies/{study['id']}/leaderboard"


def _counts(s: Reader, rows: Sequence[Columns], _lease_s: float) -> Mapping[str, JSON]:
    """How many of each one's jobs are in which state."""
    query = (
        select(StudyJob.study_id, Job.state, func.count())
        .join(Job, Job.id == StudyJob.job_id)
        .where(StudyJob.study_id.in_([row.id for row in rows]), StudyJob.current)
        .group_by(StudyJob.study_id, Job.state)
    )
    found = {row.id: {"total": row.jobs, **dict.fromkeys(map(str, State), 0)} for row in rows}
    for id, state, count in s.execute(query):
        found[id][state] = count
    return {id: {"jobs": counts} for id, counts in found.items()}


STUDIES = Resource(
    "/v1/studies",
    Study,
    [
        *(Study.id, Study.name, Study.created_at, Study.jobs),
        Study.state_shown().label("state"),
        Study.end_shown().label("finished_at"),
        Study.version_shown().label("version"),
    ],
    [Study.body.label("spec"), Study.arms, Study.students, Study.seeds],
    _study,
    _counts,
    at_once=20,
)
COLUMNS = (
    *("arm", "student", "against", "succeeded", "ap"),
    *("difference", "difference_low", "difference_high"),
    *("difference_over_images_low", "difference_over_images_high"),
    *("gap_closed", "gap_closed_low", "gap_closed_high"),
    *("device_seconds", "device_seconds_total"),
    *("quality_ap", "quality_reached", "quality_step", "quality_seconds", "quality_steps_ratio"),
)
"""Of the leaderboard as CSV."""


def _cells(row: leaderboard.Row) -> list[object]:
    def bounds(interval: paired_runs.Interval | None) -> list[object]:
        return [interval.low, interval.high] if interval is not None else [None, None]

    quality = row.quality
    return [
        *(row.arm, row.student, row.against, row.succeeded, row.ap),
        *(row.difference.value if row.difference else None, *bounds(row.difference)),
        *bounds(row.difference_over_images),
        *(row.gap_closed.value if row.gap_closed else None, *bounds(row.gap_closed)),
        *(row.device_seconds, row.device_seconds_total),
        *((quality.ap, quality.reached, quality.step, quality.seconds, quality.steps_ratio) if quality else [None] * 5),
    ]


_BOARD: Responses = {
    200: {
        "model": Leaderboard,
        "description": "One row for each arm and student; with Accept: text/csv as CSV (RFC 4180) with a header line, "
        "without the single runs.",
        "content": {"text/csv": {"schema": {"type": "string"}}},
        "headers": {"ETag": {"description": "Of this content.", "schema": {"type": "string"}}},
    },
    **NOT_MODIFIED,
}
_MADE: Responses = {
    200: {
        "model": StudyView | StudyOutline,
        "description": "This Idempotency-Key already made it; with dry_run: what it would be.",
    },
    201: {"model": StudyView, "description": "Its jobs are queued."},
}
_GROWN: Responses = {200: {"model": StudyView, "description": "This Idempotency-Key already did it."}}


@router.post("", status_code=201, responses={**_MADE, **documented(400, 409, 413, 415, 422, 429, 507)})
def submit_study(
    body: SubmitStudy,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Make nothing: answer what the study would be.")] = False,
) -> Response:
    """Queue a job for each arm, student and seed, and for the control of each. All are checked first: if one would be
    refused, none is made, and the pointers name its arm or student in this body.

    With dry_run nothing is made: the answer has the number of jobs, and for each arm and student the spec of its first
    one. Sent to POST /v1/plans, that says what one costs."""
    service.expect_room()
    if dry_run:
        return Response(dumps(_outlined(service, project, body)), media_type="application/json")
    done = studies.submit(service.engine, service.store, service.settings, project, body, idempotency_key)
    _ring(service, after, done.jobs)
    return made(service, project, STUDIES, done.study.id, 201 if done.new else 200)


@router.get("", response_model=StudyPage, responses=PAGE)
async def list_studies(query: Annotated[StudiesQuery, Query()], request: Request) -> Response:
    """All studies, newest first, or those that match all filters. The cursor of a page holds for the filters it was
    given out with."""
    selection = NameAndState(Study, query.name, frozenset(query.state))
    return await paged(request, STUDIES, query, selection.of, selection.digest(), selection.bounded)


@router.get("/{study_id}", response_model=StudyView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_study(study_id: StudyInPath, request: Request) -> Response:
    """One study. Poll as you poll a job: its version rises with those of its jobs."""
    return await polled(request, STUDIES, study_id)


@router.get("/{study_id}/leaderboard", response_model=Leaderboard, responses={**_BOARD, **documented(404, 422)})
def get_leaderboard(
    study_id: StudyInPath,
    query: Annotated[LeaderboardQuery, Query()],
    service: ServiceDep,
    project: ProjectDep,
    accept: Accept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The arms side by side: mean AP, paired difference to the control with its 95 % interval over seeds, and over
    seeds and images, gap to the teacher closed, device-seconds, and when each run first had the control's final AP.

    It can be asked for at any time; only jobs that have succeeded count. What intervals over images need of a run is
    worked out after the first request that needs it: `pending` says for how many runs that is still to come."""
    with service.reading() as s:
        found = leaderboard.read(s, project, study_id, query.split)
    board = leaderboard.board(found, service.resampler.ask(found.detections(), query.split))
    as_csv = negotiate.prefers(accept, "text/csv", "application/json")
    body = tabular.table(COLUMNS, map(_cells, board.rows)) if as_csv else board.model_dump_json().encode()
    headers = {"ETag": etag.of_digest(hashlib.sha256(body).hexdigest()), "Vary": "Accept"}
    if (same := unchanged(if_none_match, headers["ETag"], {"Vary": "Accept"})) is not None:
        return same
    if as_csv:
        headers["Content-Disposition"] = f'attachment; filename="{study_id}-leaderboard.csv"'
    return Response(body, headers=headers, media_type=tabular.CSV_TYPE if as_csv else "application/json")


@router.patch("/{study_id}", response_model=StudyView, responses=RENAMED)
def rename_study(
    study_id: StudyInPath, body: Rename, service: ServiceDep, project: ProjectDep, if_match: IfMatch = None
) -> Response:
    """Change its name; jobs that it has already keep theirs. With If-Match only if the study is still the version that
    this ETag names; the progress of its jobs makes new versions."""
    return renamed(service, project, STUDIES, study_id, if_match, body)


@router.post(
    "/{study_id}/extend",
    status_code=202,
    response_model=StudyView,
    responses={**_GROWN, **documented(400, 404, 409, 413, 415, 422, 429, 507)},
)
def extend_study(
    study_id: StudyInPath,
    body: ExtendStudy,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Add seeds, or arms. New jobs differ from those of other seeds in nothing but the seed. What the study has already
    is left as it is, so that nothing is made twice. The new jobs of a paused study are paused."""
    service.expect_room()
    done = studies.extend(service.engine, service.store, service.settings, project, study_id, body, idempotency_key)
    _ring(service, after, done.jobs)
    return made(service, project, STUDIES, done.study.id, 202 if done.new else 200)


@router.post("/{study_id}/retry", status_code=202, response_model=StudyView, responses=documented(404, 409, 429))
def retry_study(study_id: StudyInPath, service: ServiceDep, project: ProjectDep, after: BackgroundTasks) -> Response:
    """Make a new job in place of each that failed, was cancelled or was deleted. 409 if there is none."""
    with service.transaction() as s:
        jobs = studies.retry(s, service.settings, project, study_id)
        shown = _answer(s, service, project, study_id)
    _ring(service, after, jobs)
    return shown


@router.post(
    "/{study_id}/cancel", status_code=202, response_model=StudyView, responses=documented(400, 404, 409, 413, 415, 422)
)
def cancel_study(
    study_id: StudyInPath, service: ServiceDep, project: ProjectDep, body: Cancel | None = None
) -> Response:
    """Cancel all jobs that have not ended. Those that have keep their results."""
    wish = Requested.cancel_now if (body or Cancel()).mode == "now" else Requested.cancel
    return _asked(service, project, study_id, wish)


@router.post("/{study_id}/pause", status_code=202, response_model=StudyView, responses=documented(404, 409))
def pause_study(study_id: StudyInPath, service: ServiceDep, project: ProjectDep) -> Response:
    """Pause all jobs that have not ended; those that run save a checkpoint first."""
    return _asked(service, project, study_id, Requested.pause)


@router.post("/{study_id}/resume", status_code=202, response_model=StudyView, responses=documented(404, 409))
def resume_study(study_id: StudyInPath, service: ServiceDep, project: ProjectDep, after: BackgroundTasks) -> Response:
    """Queue all paused jobs again; each continues from its last checkpoint."""
    with service.transaction() as s:
        jobs = studies.resume(s, project, study_id)
        shown = _answer(s, service, project, study_id)
    _ring(service, after, jobs)
    return shown


@router.delete("/{study_id}", status_code=204, responses=documented(404, 409, 422))
def delete_study(
    study_id: StudyInPath,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    jobs: Annotated[bool, Query(description="Delete its jobs too. By default they stay, as ordinary jobs.")] = False,
) -> None:
    """Delete a study whose jobs have all ended."""
    with service.transaction() as s:
        checkpoints = studies.delete_study(s, project, study_id, jobs=jobs)
    after.add_task(delete_objects, service.store, checkpoints)


def _outlined(service: Service, project: str, body: SubmitStudy) -> JSON:
    arms, runs = studies.outline(service.engine, service.store, service.settings, project, body)
    against, seeds = {each.arm.name: each.against for each in arms}, len(body.seeds)
    several = len(body.students) > 1

    def shown(run: Run) -> JSON:
        name = job_name(body.name, run.arm, run.student if several else None, body.seeds[0])
        spec = run.job.but(name=name, seed=body.seeds[0]).model_dump(mode="json")
        return {"arm": run.arm, "student": run.student, "against": against[run.arm], "jobs": seeds, "spec": spec}

    return {"jobs": len(runs) * seeds, "runs": [shown(run) for run in runs]}


def _asked(service: Service, project: str, study_id: str, wish: Requested) -> Response:
    with service.transaction() as s:
        studies.request(s, project, study_id, wish)
        return _answer(s, service, project, study_id)


def _answer(s: Session, service: Service, project: str, study_id: str) -> Response:
    return answered(STUDIES.one(s, project, study_id, service.settings.lease_s), 202)


def _ring(service: Service, after: BackgroundTasks, jobs: Sequence[str]) -> None:
    after.add_task(queue.ring_all, service.bell, jobs[:FIRST_BELLS])
