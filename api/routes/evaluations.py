"""/v1/evaluations: how well a network finds the objects of a split."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import evaluations, tasks
from api.core.request_bodies import SubmitEvaluation
from api.core.rows.tables import Evaluation
from api.deps import EvaluationInPath, IdempotencyKey, IfNoneMatch, Prefer, ProjectDep, ServiceDep
from api.errors import Responses, documented
from api.http.bodies import StrictRoute
from api.http.conditional import POLL_ANSWERS, POLLED, ended_or_pending, polled
from api.http.files import FILE, FILE_OR_RANGE, IfRange, RangeHeader, described, sent
from api.http.pages import PAGE, paged
from api.schemas import EvaluationPage, EvaluationView, TasksOnDataQuery
from api.views import EVALUATIONS

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"], route_class=StrictRoute)

_MADE: Responses = {
    200: {"model": EvaluationView, "description": "It ended within Prefer: wait, or this key made it before."},
    202: {"model": EvaluationView, "description": "A worker will do it; see Location."},
}


@router.post("", status_code=202, responses={**_MADE, **documented(400, 409, 413, 415, 422, 429, 507)})
async def submit_evaluation(
    body: SubmitEvaluation,
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Evaluate a network on a split of a data set, without a training: a model, or the student or teacher of a job.
    Classes are matched by name. `result` has AP and AR; the detections of each image are a file."""
    await run_in_threadpool(service.expect_room)
    evaluation, new = await run_in_threadpool(
        evaluations.submit, service.engine, service.store, service.settings, project, body, idempotency_key
    )
    if new:
        await run_in_threadpool(service.ring, evaluation.id)
    return await ended_or_pending(request, service, project, EVALUATIONS, evaluation.id, prefer)


@router.get("", response_model=EvaluationPage, responses=PAGE)
async def list_evaluations(query: Annotated[TasksOnDataQuery, Query()], request: Request) -> Response:
    """All evaluations, newest first, or those that match all filters. The cursor of a page holds for the filters it
    was given out with."""
    selection = query.selection(Evaluation)
    return await paged(request, EVALUATIONS, query, selection.of, selection.digest(), selection.bounded)


@router.get("/{evaluation_id}", response_model=EvaluationView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_evaluation(evaluation_id: EvaluationInPath, request: Request) -> Response:
    """One evaluation. Poll as you poll a job."""
    return await polled(request, EVALUATIONS, evaluation_id)


@router.get("/{evaluation_id}/detections", response_class=Response, responses={**FILE_OR_RANGE, **documented(404, 409)})
def download_detections(
    evaluation_id: EvaluationInPath,
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """What was found on each image, beside its boxes: detections.npz, which any numpy reads. Resume an interrupted
    download with Range and If-Range."""
    with service.reading() as s:
        file = tasks.file_of(s, Evaluation, project, evaluation_id, "detections")
    return sent(service, file, range, if_range, if_none_match)


@router.head("/{evaluation_id}/detections", response_class=Response, responses={**FILE, **documented(404, 409)})
def describe_detections(
    evaluation_id: EvaluationInPath, service: ServiceDep, project: ProjectDep, if_none_match: IfNoneMatch = None
) -> Response:
    """Size and digest of the detections, without the bytes."""
    with service.reading() as s:
        file = tasks.file_of(s, Evaluation, project, evaluation_id, "detections")
    return described(file, if_none_match)


@router.delete("/{evaluation_id}", status_code=204, responses=documented(404))
def delete_evaluation(evaluation_id: EvaluationInPath, service: ServiceDep, project: ProjectDep) -> None:
    """Delete an evaluation, with its files; a worker that is at it stops."""
    with service.transaction() as s:
        tasks.delete(s, Evaluation, project, evaluation_id)
