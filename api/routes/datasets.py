"""/v1/datasets: register a folder or upload a zip, rename it, and read the import's report."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import datasets, submission, uploading
from api.core.errors import Conflict
from api.core.lifecycle import DatasetState
from api.core.request_bodies import SubmitDataset
from api.core.rows.named import NameAndState
from api.core.rows.tables import Dataset
from api.core.store import uploads
from api.core.uploading import Upload
from api.deps import DatasetInPath, IdempotencyKey, IfMatch, ProjectDep, Service, ServiceDep
from api.errors import Responses, documented
from api.http import receiving
from api.http.bodies import StrictRoute
from api.http.changing import RENAMED, renamed
from api.http.conditional import POLL_ANSWERS, POLLED, made, polled
from api.http.pages import PAGE, paged
from api.schemas import DatasetPage, DatasetsQuery, DatasetView, Rename
from api.views import DATASETS
from fgd.data.index import Report

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=StrictRoute)

_REPLAY: Responses = {200: {"model": DatasetView, "description": "This Idempotency-Key already made it."}}


@router.post(
    "",
    status_code=202,
    response_model=DatasetView,
    responses={**_REPLAY, **documented(400, 409, 413, 415, 422, 429, 507)},
)
def submit_dataset(
    body: SubmitDataset,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Register a folder on the server's host, or without a path a zip that you upload to `upload_url` afterwards.

    A worker imports it; then its state is ready, or rejected with the reason.
    """
    service.expect_room()
    dataset, new = submission.submit_dataset(service.engine, service.settings, project, body, idempotency_key)
    if new and body.path is not None:
        after.add_task(service.ring, dataset.id)
    return made(service, project, DATASETS, dataset.id, 202 if new else 200)


@router.get("", response_model=DatasetPage, responses=PAGE)
async def list_datasets(query: Annotated[DatasetsQuery, Query()], request: Request) -> Response:
    """All data sets, newest first, or those that match all filters. The cursor of a page holds for the filters it was
    given out with."""
    selection = NameAndState(Dataset, query.name, frozenset(query.state))
    return await paged(request, DATASETS, query, selection.of, selection.digest(), selection.bounded)


@router.get("/{dataset_id}", response_model=DatasetView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_dataset(dataset_id: DatasetInPath, request: Request) -> Response:
    """One data set. Poll as you poll a job."""
    return await polled(request, DATASETS, dataset_id)


@router.patch("/{dataset_id}", response_model=DatasetView, responses=RENAMED)
def rename_dataset(
    dataset_id: DatasetInPath, body: Rename, service: ServiceDep, project: ProjectDep, if_match: IfMatch = None
) -> Response:
    """Change its name, in whatever state it is. With If-Match only if the data set is still the version that this ETag
    names."""
    return renamed(service, project, DATASETS, dataset_id, if_match, body)


@router.get("/{dataset_id}/report", responses=documented(404, 409))
def get_report(dataset_id: DatasetInPath, service: ServiceDep, project: ProjectDep) -> Report:
    """What the importer found: counts, and every defect with what was done about it."""
    with service.reading() as s:
        dataset = datasets.get(s, project, dataset_id)
        if dataset.state == DatasetState.awaiting_upload:
            raise Conflict("dataset_not_ready", f"{dataset_id} is waiting for its zip; upload it first", retryable=True)
        if dataset.state == DatasetState.verifying:
            raise Conflict("dataset_not_ready", f"{dataset_id} is still being imported", retryable=True)
        return datasets.report_of(dataset)


@router.put(
    "/{dataset_id}/content",
    status_code=202,
    response_model=DatasetView,
    responses=receiving.REFUSALS,
    openapi_extra=receiving.WHOLE_BODY,
)
async def put_content(
    dataset_id: DatasetInPath,
    headers: Annotated[receiving.WholeHeaders, Header()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
) -> Response:
    """The whole zip in one request; it replaces what was sent before. Resume a broken upload with PATCH."""
    await receiving.whole(request, headers, _upload(service, project, dataset_id))
    after.add_task(service.ring, dataset_id)
    return await run_in_threadpool(made, service, project, DATASETS, dataset_id, 202)


@router.head("/{dataset_id}/content", status_code=204, responses={**receiving.OFFSET, **documented(404)})
def head_content(dataset_id: DatasetInPath, service: ServiceDep, project: ProjectDep) -> Response:
    """How much of the zip has been received."""
    return receiving.progress(_upload(service, project, dataset_id)).answer()


@router.patch(
    "/{dataset_id}/content",
    status_code=204,
    responses={**receiving.OFFSET, **receiving.REFUSALS},
    openapi_extra=receiving.PIECE_BODY,
)
async def patch_content(
    dataset_id: DatasetInPath,
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
def delete_dataset(dataset_id: DatasetInPath, service: ServiceDep, project: ProjectDep) -> None:
    """Delete a data set that no job uses. That also ends an upload or import in progress."""
    uploading.drop_part(service.engine, service.settings.uploads, Dataset, project, dataset_id)
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
        service.room,
        service.settings.upload_bytes,
        "FGD_UPLOAD_BYTES",
    )
