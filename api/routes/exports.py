"""/v1/exports: files that run without torch."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import exports, tasks
from api.core.request_bodies import SubmitExport
from api.core.rows.tables import Export
from api.deps import ExportInPath, IdempotencyKey, IfNoneMatch, Prefer, ProjectDep, ServiceDep
from api.errors import Responses, documented
from api.http.bodies import StrictRoute
from api.http.conditional import POLL_ANSWERS, POLLED, ended_or_pending, polled
from api.http.files import FILE, FILE_OR_RANGE, IfRange, RangeHeader, described, sent
from api.http.pages import PAGE, paged
from api.schemas import ExportPage, ExportView, TasksOnDataQuery
from api.views import EXPORTS

router = APIRouter(prefix="/v1/exports", tags=["exports"], route_class=StrictRoute)

_MADE: Responses = {
    200: {"model": ExportView, "description": "It ended within Prefer: wait, or this key made it before."},
    202: {"model": ExportView, "description": "A worker will do it; see Location."},
}


@router.post("", status_code=202, responses={**_MADE, **documented(400, 409, 413, 415, 422, 429, 507)})
async def submit_export(
    body: SubmitExport,
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Have a worker write an ONNX file of a model, or of the student or teacher of a job: RGB in 0..1 goes in, final
    boxes, scores and labels come out. It succeeds only if onnxruntime finds in it what torch finds. The file says
    itself what it is: classes, sizes and digests are in its metadata.

    "onnx-int8" then quantises it. It fails, and leaves no file, where even with layers left in float32 more AP is lost
    than `max_ap_loss`, or where the file would be slower and worse than the float32 one. `result` has AP and latency
    of both."""
    await run_in_threadpool(service.expect_room)
    export, new = await run_in_threadpool(
        exports.submit, service.engine, service.store, service.settings, project, body, idempotency_key
    )
    if new:
        await run_in_threadpool(service.ring, export.id)
    return await ended_or_pending(request, service, project, EXPORTS, export.id, prefer)


@router.get("", response_model=ExportPage, responses=PAGE)
async def list_exports(query: Annotated[TasksOnDataQuery, Query()], request: Request) -> Response:
    """All exports, newest first, or those that match all filters. The cursor of a page holds for the filters it
    was given out with."""
    selection = query.selection(Export)
    return await paged(request, EXPORTS, query, selection.of, selection.digest(), selection.bounded)


@router.get("/{export_id}", response_model=ExportView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_export(export_id: ExportInPath, request: Request) -> Response:
    """One export. Poll as you poll a job."""
    return await polled(request, EXPORTS, export_id)


@router.get("/{export_id}/content", response_class=Response, responses={**FILE_OR_RANGE, **documented(404, 409)})
def download_export(
    export_id: ExportInPath,
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The file. Resume an interrupted download with Range and If-Range."""
    with service.reading() as s:
        file = tasks.file_of(s, Export, project, export_id, "content")
    return sent(service, file, range, if_range, if_none_match)


@router.head("/{export_id}/content", response_class=Response, responses={**FILE, **documented(404, 409)})
def describe_export(
    export_id: ExportInPath, service: ServiceDep, project: ProjectDep, if_none_match: IfNoneMatch = None
) -> Response:
    """Size and digest of the file, without its bytes."""
    with service.reading() as s:
        file = tasks.file_of(s, Export, project, export_id, "content")
    return described(file, if_none_match)


@router.get("/{export_id}/usage", response_class=Response, responses={**FILE_OR_RANGE, **documented(404, 409)})
def download_usage(
    export_id: ExportInPath,
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """How to use the file: a short program that scales and pads a picture as evaluation does, and prints what is found.
    It needs onnxruntime, numpy and pillow."""
    with service.reading() as s:
        file = tasks.file_of(s, Export, project, export_id, "usage")
    return sent(service, file, range, if_range, if_none_match)


@router.head("/{export_id}/usage", response_class=Response, responses={**FILE, **documented(404, 409)})
def describe_usage(
    export_id: ExportInPath, service: ServiceDep, project: ProjectDep, if_none_match: IfNoneMatch = None
) -> Response:
    """Size and digest of that program, without its bytes."""
    with service.reading() as s:
        file = tasks.file_of(s, Export, project, export_id, "usage")
    return described(file, if_none_match)


@router.get("/{export_id}/report", response_class=Response, responses={**FILE_OR_RANGE, **documented(404, 409)})
def download_report(
    export_id: ExportInPath,
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Of a file in INT8, as JSON: `result` of the export, with AP and latency before and after. Other files have none:
    409."""
    with service.reading() as s:
        file = tasks.file_of(s, Export, project, export_id, "report")
    return sent(service, file, range, if_range, if_none_match)


@router.head("/{export_id}/report", response_class=Response, responses={**FILE, **documented(404, 409)})
def describe_report(
    export_id: ExportInPath, service: ServiceDep, project: ProjectDep, if_none_match: IfNoneMatch = None
) -> Response:
    """Size and digest of that report, without its bytes."""
    with service.reading() as s:
        file = tasks.file_of(s, Export, project, export_id, "report")
    return described(file, if_none_match)


@router.delete("/{export_id}", status_code=204, responses=documented(404))
def delete_export(export_id: ExportInPath, service: ServiceDep, project: ProjectDep) -> None:
    """Delete an export, with its files; a worker that is at it stops."""
    with service.transaction() as s:
        tasks.delete(s, Export, project, export_id)
