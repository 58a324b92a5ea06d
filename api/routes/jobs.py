"""/v1/jobs: submit, read, cancel, pause, resume, finish early, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.core import submission
from api.core.jobs import removal, requests
from api.core.lifecycle import Requested, State
from api.core.rows.changing import IsMeant
from api.core.store.names import delete_objects
from api.deps import IdempotencyKey, IfMatch, JobInPath, Prefer, ProjectDep, Service, ServiceDep
from api.errors import Responses, documented
from api.http.bodies import StrictRoute
from api.http.changing import changed
from api.http.conditional import POLL_ANSWERS, POLLED, answered, made, polled
from api.http.pages import PAGE, paged
from api.http.planning import planned
from api.schemas import Cancel, ChangeJob, JobPage, JobsQuery, JobView, PlanView
from api.views import JOBS
from fgd.spec import SubmitJob

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

_MADE: Responses = {
    200: {
        "model": JobView | PlanView,
        "description": "This Idempotency-Key already made it; with dry_run: the plan is measured.",
    },
    201: {"model": JobView, "description": "The job is queued."},
    202: {"model": PlanView, "description": "With dry_run: the plan is being measured; see Location."},
}
_LABELS = {
    "parameters": [
        {
            "name": "metadata.{key}",
            "in": "query",
            "required": False,
            "description": "metadata.owner=me: jobs whose metadata has this value for this key. Any number of keys.",
            "schema": {"type": "string"},
        }
    ]
}
_WISH = {"graceful": Requested.cancel, "now": Requested.cancel_now}


@router.post("", status_code=201, responses={**_MADE, **documented(400, 409, 413, 415, 422, 429, 507)})
async def submit_job(
    body: SubmitJob,
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Make a plan instead of a job: the same as POST /v1/plans.")] = False,
    prefer: Prefer = None,
) -> Response:
    """Queue a training: a distillation, or plain training with "methods": [] and "teacher": null.

    With dry_run nothing is queued. It stores a plan, like POST /v1/plans: `outline` is in the answer at once,
    `measured` follows when a worker has tried a few real steps. 200 if that happens within Prefer: wait, else 202.
    """
    if dry_run:
        return await planned(request, service, project, body, prefer)
    return await run_in_threadpool(_submitted, service, project, body, after, idempotency_key)


@router.get("", response_model=JobPage, responses=PAGE, openapi_extra=_LABELS)
async def list_jobs(query: Annotated[JobsQuery, Query()], request: Request) -> Response:
    """All jobs, newest first, or those that match every given filter. A cursor is only valid with the filters of the
    request that returned it."""
    selection = query.selection()
    return await paged(request, JOBS, query, selection.of, selection.digest(), selection.bounded)


@router.get("/{job_id}", response_model=JobView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_job(job_id: JobInPath, request: Request) -> Response:
    """One job. Poll with If-None-Match: 304 means that nothing has changed. With Prefer: wait=30 the answer comes at
    the first change, or after 30 seconds."""
    return await polled(request, JOBS, job_id)


@router.patch("/{job_id}", response_model=JobView, responses=documented(400, 404, 409, 412, 413, 415, 422))
def change_job(
    job_id: JobInPath, body: ChangeJob, service: ServiceDep, project: ProjectDep, if_match: IfMatch = None
) -> Response:
    """Change name, metadata or priority. With If-Match only if the job is still the version that this ETag names; the
    progress of a running job makes new versions. `spec` stays as it was submitted, its name too."""

    def change(s: Session, is_meant: IsMeant) -> None:
        requests.change(s, project, job_id, **dict(body), is_meant=is_meant)

    return changed(service, project, JOBS, job_id, if_match, change)


@router.post(
    "/{job_id}/cancel", status_code=202, response_model=JobView, responses=documented(400, 404, 409, 413, 415, 422)
)
def cancel_job(job_id: JobInPath, service: ServiceDep, project: ProjectDep, body: Cancel | None = None) -> Response:
    """Cancel a job: a queued one at once, a running one within seconds (see `requested`)."""
    return _asked(service, project, job_id, _WISH[(body or Cancel()).mode])


@router.post("/{job_id}/pause", status_code=202, response_model=JobView, responses=documented(404, 409))
def pause_job(job_id: JobInPath, service: ServiceDep, project: ProjectDep) -> Response:
    """Pause a job: a queued one at once, a running one as soon as it has saved a checkpoint (see `requested`). Pausing
    releases the device."""
    return _asked(service, project, job_id, Requested.pause)


@router.post("/{job_id}/resume", status_code=202, response_model=JobView, responses=documented(404, 409))
def resume_job(job_id: JobInPath, service: ServiceDep, project: ProjectDep, after: BackgroundTasks) -> Response:
    """Queue a paused job again: it continues from its last checkpoint. A pause that has not happened yet is
    withdrawn."""
    with service.transaction() as s:
        requests.resume(s, project, job_id)
        after.add_task(service.ring, job_id)
        return answered(JOBS.one(s, project, job_id, service.settings.lease_s), 202)


@router.post("/{job_id}/stop", status_code=202, response_model=JobView, responses=documented(404, 409))
def stop_job(job_id: JobInPath, service: ServiceDep, project: ProjectDep, after: BackgroundTasks) -> Response:
    """Finish early: training ends after the current step, the weights of the best evaluation become the result (those
    of the last step if nothing was evaluated), and the job succeeds. A job that is not running is queued only to
    export its checkpoint; 409 nothing_to_keep if it has none."""
    return _asked(service, project, job_id, Requested.stop, after)


@router.delete("/{job_id}", status_code=204, responses=documented(404, 409))
def delete_job(job_id: JobInPath, service: ServiceDep, project: ProjectDep, after: BackgroundTasks) -> None:
    """Delete a job that has ended, with its events, metrics, log and artifacts. 409 if it has not ended, or an
    unfinished job needs its weights. Files that nothing else refers to are deleted later."""
    with service.transaction() as s:
        checkpoints = removal.delete_job(s, project, job_id)
    after.add_task(delete_objects, service.store, checkpoints)


def _submitted(
    service: Service, project: str, body: SubmitJob, after: BackgroundTasks, idempotency_key: str | None
) -> Response:
    service.expect_room()
    settings = service.settings
    job, new = submission.submit_job(service.engine, service.store, settings, project, body, idempotency_key)
    if new:
        after.add_task(service.ring, job.id)
    return made(service, project, JOBS, job.id, 201 if new else 200)


def _asked(
    service: Service, project: str, job_id: str, wish: Requested, after: BackgroundTasks | None = None
) -> Response:
    with service.transaction() as s:
        job = requests.request(s, project, job_id, wish)
        if after is not None and job.state == State.queued:
            after.add_task(service.ring, job.id)
        return answered(JOBS.one(s, project, job_id, service.settings.lease_s), 202)
