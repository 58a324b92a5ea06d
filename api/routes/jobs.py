"""/v1/jobs: submit, look, cancel, and what a job left behind."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Response
from sqlalchemy.orm import Session

from api import etag
from api.bodies import StrictRoute
from api.core import cursor, history, jobs, submission, workers
from api.core.lifecycle import Requested, State
from api.core.plans import ended
from api.core.tables import Job, Project
from api.deps import IdempotencyKey, IfNoneMatch, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, Responses, documented
from api.prefer import Prefer
from api.routes import plans
from api.schemas import (
    Artifacts,
    ArtifactView,
    Cancel,
    EventPage,
    EventQuery,
    EventView,
    JobPage,
    JobView,
    LogQuery,
    MetricQuery,
    PageQuery,
    PlanView,
    Points,
    PointView,
)
from fgd.spec import SubmitJob

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

_REPLAY: Responses = {
    200: {"model": JobView | PlanView, "description": "This Idempotency-Key made it before; dry_run: measured."},
    202: {"model": PlanView, "description": "dry_run: the plan is being measured; see Location."},
}
_LOG: Responses = {200: {"content": {"text/plain": {}}, "description": "Bytes; see X-Next-Offset and X-Attempt."}}
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
    prefer: Prefer = None,
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


@router.get("", responses=documented(400, 422))
def list_jobs(
    query: Annotated[PageQuery, Query()], service: ServiceDep, project: ProjectDep, response: Response
) -> JobPage:
    """All jobs, newest first."""
    with service.reading() as s:
        key = s.get_one(Project, project).cursor_key
        after = cursor.decode(query.cursor, key, _LISTING) if query.cursor else None
        found = jobs.page(s, project, after, query.limit)
        live = workers.live(s, service.settings.lease_s)
        items = [JobView.of(job, jobs.waiting_reason(s, job, live=live)) for job in found.items]
    next = cursor.encode(found.next, key, _LISTING) if found.next else None
    if next:
        response.headers["Link"] = f'</v1/jobs?limit={query.limit}&cursor={next}>; rel="next"'
    return JobPage(items=items, next=next)


@router.get("/{job_id}", responses={**NOT_MODIFIED, **documented(404)})
def get_job(
    job_id: str, service: ServiceDep, project: ProjectDep, response: Response, if_none_match: IfNoneMatch = None
) -> JobView:
    """One job. Poll with If-None-Match: 304 means that nothing has changed."""
    with service.reading() as s:
        job = jobs.get(s, project, job_id)
        tag = etag.of_version(job.version)
        if etag.matches(if_none_match, tag):
            return Response(status_code=304, headers={"ETag": tag})  # type: ignore[return-value]
        return _tagged(response, _view(s, service, job))


@router.post("/{job_id}/cancel", status_code=202, responses=documented(400, 404, 409, 413, 415, 422))
def cancel_job(
    job_id: str, service: ServiceDep, project: ProjectDep, response: Response, body: Cancel | None = None
) -> JobView:
    """Ask for an end: a queued job is cancelled at once, a running one within seconds (see `requested`)."""
    with service.transaction() as s:
        job = jobs.request(s, project, job_id, _WISH[(body or Cancel()).mode])
        return _tagged(response, _view(s, service, job))


@router.get("/{job_id}/events", responses=documented(404, 422))
def list_events(
    job_id: str, query: Annotated[EventQuery, Query()], service: ServiceDep, project: ProjectDep
) -> EventPage:
    """What happened, oldest first; follow with `after` = `next_after`."""
    with service.reading() as s:
        items = history.events(s, jobs.get(s, project, job_id), query.after, query.limit)
    return EventPage(items=[EventView.of(event) for event in items], next_after=items[-1].seq if items else query.after)


@router.get("/{job_id}/metrics", responses=documented(404, 422))
def list_metrics(
    job_id: str, query: Annotated[MetricQuery, Query()], service: ServiceDep, project: ProjectDep
) -> Points:
    """Every number the job reported."""
    with service.reading() as s:
        points = history.metrics(s, jobs.get(s, project, job_id), query.name, query.split)
    return Points(items=[PointView.of(point) for point in points])


@router.get("/{job_id}/metrics/latest", responses=documented(404))
def latest_metrics(job_id: str, service: ServiceDep, project: ProjectDep) -> Points:
    """The last of each number."""
    with service.reading() as s:
        points = history.latest(s, jobs.get(s, project, job_id))
    return Points(items=[PointView.of(point) for point in points])


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={**_LOG, **documented(404, 422)},
)
def read_log(job_id: str, query: Annotated[LogQuery, Query()], service: ServiceDep, project: ProjectDep) -> Response:
    """The trainer's log from a byte offset on, about a megabyte at a time."""
    with service.reading() as s:
        log = history.log(s, jobs.get(s, project, job_id), query.attempt, query.after_offset)
    headers = {"X-Next-Offset": str(log.next_offset), "X-Attempt": str(log.attempt), "Cache-Control": "no-store"}
    return Response(log.data, media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/{job_id}/artifacts", responses=documented(404))
def list_artifacts(job_id: str, service: ServiceDep, project: ProjectDep) -> Artifacts:
    """The files of the result; each is at /v1/artifacts/{id}/content."""
    with service.reading() as s:
        rows = history.artifacts(s, jobs.get(s, project, job_id))
    return Artifacts(items=[ArtifactView.of(row) for row in rows])


def _plan(body: SubmitJob, service: Service, project: str, response: Response, prefer: str | None) -> PlanView:
    plan = submission.plan_job(service.engine, service.store, service.settings.data_roots, project, body)
    service.ring(plan.id)  # before the answer, which may wait for what the bell brings
    plan = plans.look(service, project, plan.id, prefer)
    response.status_code = 200 if ended(plan) else 202
    response.headers["Location"] = f"/v1/plans/{plan.id}"
    return plans.shown(service, response, plan, prefer)


def _view(s: Session, service: Service, job: Job) -> JobView:
    reason = jobs.waiting_reason(s, job, service.settings.lease_s) if job.state == State.queued else None
    return JobView.of(job, reason)


def _tagged(response: Response, view: JobView) -> JobView:
    response.headers["ETag"] = etag.of_version(view.version)
    return view
