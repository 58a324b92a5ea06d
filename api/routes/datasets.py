"""/v1/datasets: register a folder or send a zip, see what the import made of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response

from api.core import datasets, submission
from api.core.errors import Conflict
from api.core.lifecycle import DatasetState
from api.core.request_bodies import SubmitDataset
from api.core.rows import cursor
from api.core.rows.tables import Dataset, Project
from api.core.store import uploads
from api.core.uploading import Upload
from api.deps import IdempotencyKey, IfNoneMatch, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag, receiving
from api.http.bodies import StrictRoute
from api.schemas import DatasetPage, DatasetView, PageQuery
from fgd.data.index import Report

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=StrictRoute)

_REPLAY: Responses = {200: {"model": DatasetView, "description": "This Idempotency-Key made it before."}}
_LISTING = "datasets"


@router.post("", status_code=202, responses={**_REPLAY, **documented(400, 409, 413, 415, 422)})
def submit_dataset(
    body: SubmitDataset,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
) -> DatasetView:
    """Register a folder on the server's host, or, without a path, a zip that is sent next to `upload_url`.

    A worker reads it and makes it ready, or rejects it and says why.
    """
    dataset, new = submission.submit_dataset(
        service.engine, service.settings.data_roots, project, body, idempotency_key
    )
    if new and body.path is not None:
        after.add_task(service.ring, dataset.id)
    return _told(response, dataset, 202 if new else 200)


@router.get("", responses=documented(400, 422))
def list_datasets(
    query: Annotated[PageQuery, Query()], service: ServiceDep, project: ProjectDep, response: Response
) -> DatasetPage:
    """All data sets, newest first."""
    with service.reading() as s:
        key = s.get_one(Project, project).cursor_key
        after = cursor.decode(query.cursor, key, _LISTING) if query.cursor else None
        found = datasets.page(s, project, after, query.limit)
    next = cursor.encode(found.next, key, _LISTING) if found.next else None
    if next:
        response.headers["Link"] = f'</v1/datasets?limit={query.limit}&cursor={next}>; rel="next"'
    return DatasetPage(items=[DatasetView.of(dataset) for dataset in found.items], next=next)


@router.get("/{dataset_id}", responses={**NOT_MODIFIED, **documented(404)})
def get_dataset(
    dataset_id: str, service: ServiceDep, project: ProjectDep, response: Response, if_none_match: IfNoneMatch = None
) -> DatasetView:
    """One data set."""
    with service.reading() as s:
        dataset = datasets.get(s, project, dataset_id)
    tag = etag.of_version(dataset.version)
    if etag.matches(if_none_match, tag):
        return Response(status_code=304, headers={"ETag": tag})  # type: ignore[return-value]
    response.headers["ETag"] = tag
    return DatasetView.of(dataset)


@router.get("/{dataset_id}/report", responses=documented(404, 409))
def get_report(dataset_id: str, service: ServiceDep, project: ProjectDep) -> Report:
    """What the importer saw: counts, and every defect with what was done about it."""
    with service.reading() as s:
        dataset = datasets.get(s, project, dataset_id)
        if dataset.state == DatasetState.awaiting_upload:
            raise Conflict("dataset_not_ready", f"{dataset_id} waits for its zip", retryable=True)
        if dataset.state == DatasetState.verifying:
            raise Conflict("dataset_not_ready", f"{dataset_id} is still being imported", retryable=True)
        return datasets.report_of(dataset)


@router.put("/{dataset_id}/content", status_code=202, responses=receiving.REFUSALS, openapi_extra=receiving.WHOLE_BODY)
async def put_content(
    dataset_id: str,
    headers: Annotated[receiving.WholeHeaders, Header()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    after: BackgroundTasks,
) -> DatasetView:
    """All of the zip in one stream; what was there before is dropped. One that breaks can be gone on with by PATCH."""
    dataset = await receiving.whole(request, headers, _upload(service, project, dataset_id))
    after.add_task(service.ring, dataset.id)
    return _told(response, dataset, 202)


@router.head("/{dataset_id}/content", status_code=204, responses={**receiving.OFFSET, **documented(404)})
def head_content(dataset_id: str, service: ServiceDep, project: ProjectDep) -> Response:
    """How much of the zip is there."""
    return receiving.progress(_upload(service, project, dataset_id)).answer()


@router.patch(
    "/{dataset_id}/content",
    status_code=204,
    responses={**receiving.OFFSET, **receiving.REFUSALS},
    openapi_extra=receiving.PIECE_BODY,
)
async def patch_content(
    dataset_id: str,
    headers: Annotated[receiving.PieceHeaders, Header()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
) -> Response:
    """The next bytes of the zip."""
    there = await receiving.piece(request, headers, _upload(service, project, dataset_id))
    if there.complete:
        after.add_task(service.ring, dataset_id)
    return there.answer()


@router.delete("/{dataset_id}", status_code=204, responses=documented(404, 409))
def delete_dataset(dataset_id: str, service: ServiceDep, project: ProjectDep) -> None:
    """Delete a data set that no job uses. An upload or import that is going on ends with it."""
    with service.transaction() as s:
        datasets.delete(s, project, dataset_id)
    uploads.drop(service.settings.uploads, dataset_id)


def _upload(service: Service, project: str, dataset_id: str) -> Upload[Dataset]:
    """Its zip. Only the importer looks into it."""
    return Upload(
        Dataset,
        project,
        dataset_id,
        service.engine,
        service.store,
        service.settings.uploads,
        service.settings.upload_bytes,
        "FGD_UPLOAD_BYTES",
    )


def _told(response: Response, dataset: Dataset, status: int) -> DatasetView:
    response.status_code = status
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    response.headers["ETag"] = etag.of_version(dataset.version)
    return DatasetView.of(dataset)
