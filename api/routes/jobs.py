"""/v1/jobs: submit, look, cancel, pause, resume, finish early, delete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.core import submission, workers
from api.core.jobs import removal, requests, waiting
from api.core.lifecycle import Requested, State
from api.core.plans import ended
from api.core.rows import cursor
from api.core.rows.tables import Job, Project, WorkerRow
from api.core.store.names import BlobStore
from api.deps import IdempotencyKey, IfNoneMatch, Prefer, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag, negotiate
from api.http.bodies import StrictRoute
from api.live import Seen
from api.prefer import Prefer as PreferDone
from api.routes import plans
from api.schemas import Cancel, JobPage, JobsQuery, JobView, PlanView
from fgd.spec import SubmitJob

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

_REPLAY: Responses = {
    200: {"model": JobView | PlanView, "description": "This Idempotency-Key made it before; dry_run: measured."},
    202: {"model": PlanView, "description": "dry_run: the plan is being measured; see Location."},
}
_LIST: Responses = {
    200: {
        "description": "One page.",
        "headers": {
            "Link": {"description": 'The next page, rel="next", filters included.', "schema": {"type": "string"}}
        },
    }
}
_ONE: Responses = {
    200: {
        "description": "The job.",
        "headers": {
            "ETag": {"description": "Of this version.", "schema": {"type": "string"}},
            "Preference-Applied": {"description": "wait=<seconds>, if it was asked for.", "schema": {"type": "string"}},
        },
    }
}
_LABELS = {
    "parameters": [
        {
            "name": "metadata.{key}",
            "in": "query",
            "required": False,
            "description": "metadata.owner=me: jobs whose metadata has this value for this key; any number of keys.",
            "schema": {"type": "string"},
        }
    ]
}
_LISTENS_S = 2.0
"""Between two looks whether the caller of a long poll is still there."""
_LISTING = "jobs"
_WISH = {"graceful": Requested.cancel, "now": Requested.cancel_now}


@router.post(
    "",
    status_code=201,
    responses={**_REPLAY, **documented(400, 409, 413, 415, 422)},
)
def submit_job(
    body: SubmitJob,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Insert nothing; say what the job would do and cost.")] = False,
    prefer: PreferDone = None,
) -> JobView | PlanView:
    """Queue a training: a distillation, or plain training with "methods": [] and "teacher": null.

    With dry_run nothing is queued: the answer is a plan, whose `outline` is known at once and whose `measured` comes
    from a few real steps on a worker. 200 if that was done within Prefer: wait, else 202.
    """
    if dry_run:
        return _plan(body, service, project, response, prefer)
    job, new = submission.submit_job(
        service.engine, service.store, service.settings.data_roots, project, body, idempotency_key
    )
    if new:
        after.add_task(service.ring, job.id)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    with service.reading() as s:
        return _tagged(response, _view(s, service, job))


@router.get("", responses={**_LIST, **documented(400, 422)}, openapi_extra=_LABELS)
def list_jobs(
    query: Annotated[JobsQuery, Query()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
) -> JobPage:
    """All jobs, newest first, or those that every given filter lets through. The cursor of a page holds for the
    filters it was given out with."""
    selection = query.selection()
    filter = selection.digest()
    with service.reading() as s:
        key = s.get_one(Project, project).cursor_key
        after = cursor.decode(query.cursor, key, _LISTING, filter) if query.cursor else None
        found = requests.page(s, project, after, query.limit, selection)
        live = workers.live(s, service.settings.lease_s)
        items = [_view(s, service, job, live) for job in found.items]
    next = cursor.encode(found.next, key, _LISTING, filter) if found.next else None
    if next:
        asked = [pair for pair in request.query_params.multi_items() if pair[0] not in ("limit", "cursor")]
        address = urlencode([("limit", str(query.limit)), *asked, ("cursor", next)])
        response.headers["Link"] = f'</v1/jobs?{address}>; rel="next"'
    return JobPage(items=items, next=next)


@router.get("/{job_id}", response_model=JobView, responses={**_ONE, **NOT_MODIFIED, **documented(404, 429)})
async def get_job(
    job_id: str,
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,
) -> Any:
    """One job. Poll with If-None-Match: 304 means that nothing has changed. With Prefer: wait=30 the answer comes as
    soon as something has, or after 30 seconds."""
    view = await run_in_threadpool(_look, service, project, job_id)
    wait_s = negotiate.wait_s(prefer)
    headers = {"Preference-Applied": f"wait={wait_s}"} if wait_s is not None else {}
    known = if_none_match is None or etag.matches(if_none_match, etag.of_version(view.version))
    if wait_s and known and not view.state.terminal:  # what has ended changes no more
        give_back = service.waiters.take()
        try:
            await _until_changed(request, service, view, wait_s)
        finally:
            give_back()
        view = await run_in_threadpool(_look, service, project, job_id)
    tag = etag.of_version(view.version)
    if etag.matches(if_none_match, tag) and (if_none_match or "").strip() != "*":
        return Response(status_code=304, headers={"ETag": tag, **headers})
    response.headers.update({"ETag": tag, **headers})
    return view


def _look(service: Service, project: str, job_id: str) -> JobView:
    with service.reading() as s:
        return _view(s, service, requests.get(s, project, job_id))


async def _until_changed(request: Request, service: Service, view: JobView, wait_s: float) -> None:
    """Until the job is no longer as `view` shows it, the time is over, or nobody listens any more."""

    def changed(seen: Seen | None) -> bool:
        return seen is None or seen.version != view.version

    end = time.monotonic() + wait_s
    while (left_s := end - time.monotonic()) > 0 and not service.changes.ending:
        if await service.changes.wait(view.id, changed, min(left_s, _LISTENS_S)) or await request.is_disconnected():
            return


@router.post("/{job_id}/cancel", status_code=202, responses=documented(400, 404, 409, 413, 415, 422))
def cancel_job(
    job_id: str, service: ServiceDep, project: ProjectDep, response: Response, body: Cancel | None = None
) -> JobView:
    """Ask for an end: a queued job is cancelled at once, a running one within seconds (see `requested`)."""
    with service.transaction() as s:
        job = requests.request(s, project, job_id, _WISH[(body or Cancel()).mode])
        return _tagged(response, _view(s, service, job))


@router.post("/{job_id}/pause", status_code=202, responses=documented(404, 409))
def pause_job(job_id: str, service: ServiceDep, project: ProjectDep, response: Response) -> JobView:
    """Let it wait: a queued job at once, a running one as soon as it has saved a checkpoint (see `requested`). It gives
    its device free."""
    with service.transaction() as s:
        return _tagged(response, _view(s, service, requests.request(s, project, job_id, Requested.pause)))


@router.post("/{job_id}/resume", status_code=202, responses=documented(404, 409))
def resume_job(
    job_id: str, service: ServiceDep, project: ProjectDep, response: Response, after: BackgroundTasks
) -> JobView:
    """Queue a paused job again: it goes on from its last checkpoint. A pause that is not done yet is taken back."""
    with service.transaction() as s:
        job = requests.resume(s, project, job_id)
        after.add_task(service.ring, job.id)
        return _tagged(response, _view(s, service, job))


@router.post("/{job_id}/stop", status_code=202, responses=documented(404, 409))
def stop_job(
    job_id: str, service: ServiceDep, project: ProjectDep, response: Response, after: BackgroundTasks
) -> JobView:
    """Finish early: no step after the current one, and the weights of the best evaluation become the result (those of
    the last step if nothing was evaluated); the job succeeds. A job that does not run is queued just to export what
    its checkpoint has; 409 nothing_to_keep if it has none."""
    with service.transaction() as s:
        job = requests.request(s, project, job_id, Requested.stop)
        if job.state == State.queued:
            after.add_task(service.ring, job.id)
        return _tagged(response, _view(s, service, job))


@router.delete(
    "/{job_id}", status_code=202, response_description="It was this; it is gone now.", responses=documented(404, 409)
)
def delete_job(job_id: str, service: ServiceDep, project: ProjectDep, after: BackgroundTasks) -> JobView:
    """Delete a job that has ended, with its events, metrics, log and artifacts. 409 while it has not, or while an
    unfinished job needs its weights. Files that nothing else refers to are deleted later."""
    with service.transaction() as s:
        job, checkpoints = removal.delete_job(s, project, job_id)
    after.add_task(_delete_objects, service.store, checkpoints)
    return JobView.of(job, None)


def _delete_objects(store: BlobStore, keys: Sequence[str]) -> None:
    for key in keys:
        with suppress(OSError):  # the sweep tries again
            store.delete_object(key)


def _plan(body: SubmitJob, service: Service, project: str, response: Response, prefer: str | None) -> PlanView:
    plan = submission.plan_job(service.engine, service.store, service.settings.data_roots, project, body)
    service.ring(plan.id)  # before the answer, which may wait for what the bell brings
    plan = plans.look(service, project, plan.id, prefer)
    response.status_code = 200 if ended(plan) else 202
    response.headers["Location"] = f"/v1/plans/{plan.id}"
    return plans.shown(service, response, plan, prefer)


def _view(s: Session, service: Service, job: Job, live: Sequence[WorkerRow] | None = None) -> JobView:
    if job.state not in (State.queued, State.paused):
        return JobView.of(job, None)
    live = workers.live(s, service.settings.lease_s) if live is None else live
    return JobView.of(job, waiting.waiting_reason(s, job, live), waiting.queue_position(s, job, live))


def _tagged(response: Response, view: JobView) -> JobView:
    response.headers["ETag"] = etag.of_version(view.version)
    return view
