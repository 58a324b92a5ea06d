"""/v1/models: upload weights or promote a job's, rename them, read their check's report; and checkpoints to promote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import models, promotion, uploading
from api.core.errors import Fault, Invalid, Refused
from api.core.jobs import checkpoints, requests
from api.core.lifecycle import ModelState
from api.core.promotion import PromotableWeights
from api.core.request_bodies import SubmitModel
from api.core.rows.named import NameAndState
from api.core.rows.tables import Model
from api.core.store import uploads
from api.core.store.names import delete_objects
from api.core.uploading import Upload
from api.deps import (
    CheckpointInPath,
    IdempotencyKey,
    IfMatch,
    JobInPath,
    ModelInPath,
    ProjectDep,
    Service,
    ServiceDep,
    WeightsInPath,
)
from api.errors import Responses, documented
from api.http import receiving
from api.http.bodies import StrictRoute
from api.http.changing import RENAMED, renamed
from api.http.conditional import POLL_ANSWERS, POLLED, made, polled
from api.http.pages import PAGE, paged
from api.schemas import Checkpoints, CheckpointView, ModelPage, ModelsQuery, ModelView, Promote, Rename
from api.views import MODELS
from fgd import weights_file
from fgd.errors import WeightsError

router = APIRouter(tags=["models"], route_class=StrictRoute)

_REPLAY: Responses = {200: {"model": ModelView, "description": "This Idempotency-Key already made it."}}
_VERIFYING: Responses = {202: {"model": ModelView, "description": "A worker reads the checkpoint first."}}


@router.post(
    "/v1/models",
    status_code=201,
    response_model=ModelView,
    responses={**_REPLAY, **documented(400, 409, 413, 415, 422, 429, 507)},
)
def submit_model(
    body: SubmitModel, service: ServiceDep, project: ProjectDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Start an upload: name the detector and its classes, then PUT the file to `content_url`. Or make a model of a
    finished job, {"name", "job", "which"}, which is ready at once. A model can teach, be inherited from, or be the
    starting point of a training."""
    service.expect_room()
    model, new = promotion.submit_model(service.engine, service.store, service.settings, project, body, idempotency_key)
    return made(service, project, MODELS, model.id, 201 if new else 200)


@router.get("/v1/models", response_model=ModelPage, responses=PAGE)
async def list_models(query: Annotated[ModelsQuery, Query()], request: Request) -> Response:
    """All models, newest first, or those that match all filters. The cursor of a page holds for the filters it was
    given out with."""
    selection = NameAndState(Model, query.name, frozenset(query.state))
    return await paged(request, MODELS, query, selection.of, selection.digest(), selection.bounded)


@router.get("/v1/models/{model_id}", response_model=ModelView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_model(model_id: ModelInPath, request: Request) -> Response:
    """One model. Poll as you poll a job."""
    return await polled(request, MODELS, model_id)


@router.patch("/v1/models/{model_id}", response_model=ModelView, responses=RENAMED)
def rename_model(
    model_id: ModelInPath, body: Rename, service: ServiceDep, project: ProjectDep, if_match: IfMatch = None
) -> Response:
    """Change its name, in whatever state it is. With If-Match only if the model is still the version that this ETag
    names."""
    return renamed(service, project, MODELS, model_id, if_match, body)


@router.put(
    "/v1/models/{model_id}/content",
    status_code=202,
    response_model=ModelView,
    responses=receiving.REFUSALS,
    openapi_extra=receiving.WHOLE_BODY,
)
async def put_content(
    model_id: ModelInPath,
    headers: Annotated[receiving.WholeHeaders, Header()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
) -> Response:
    """The whole file in one request: safetensors, or a state dict written by torch.save (.pth), which a confined
    process reads with weights_only. A worker then checks it against the detector, key by key. Resume a broken upload
    with PATCH; with Content-Digest you can send the same content twice."""
    await receiving.whole(request, headers, _upload(service, project, model_id))
    after.add_task(service.ring, model_id)
    return await run_in_threadpool(made, service, project, MODELS, model_id, 202)


@router.head("/v1/models/{model_id}/content", status_code=204, responses={**receiving.OFFSET, **documented(404)})
def head_content(model_id: ModelInPath, service: ServiceDep, project: ProjectDep) -> Response:
    """How much of the file has been received."""
    return receiving.progress(_upload(service, project, model_id)).answer()


@router.patch(
    "/v1/models/{model_id}/content",
    status_code=204,
    responses={**receiving.OFFSET, **receiving.REFUSALS},
    openapi_extra=receiving.PIECE_BODY,
)
async def patch_content(
    model_id: ModelInPath,
    headers: Annotated[receiving.PieceHeaders, Header()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
) -> Response:
    """The next bytes of the file."""
    there = await receiving.piece(request, headers, _upload(service, project, model_id))
    if there.complete:
        after.add_task(service.ring, model_id)
    return there.answer()


@router.delete("/v1/models/{model_id}", status_code=204, responses=documented(404, 409))
def delete_model(model_id: ModelInPath, service: ServiceDep, project: ProjectDep) -> None:
    """Delete a model. Jobs that have ended are not affected; 409 while an unfinished job uses it. That also ends an
    upload or import in progress."""
    uploading.drop_part(service.engine, service.settings.uploads, Model, project, model_id)
    with service.transaction() as s:
        models.delete(s, project, model_id)
    uploads.drop(service.settings.uploads, model_id)


@router.get("/v1/jobs/{job_id}/checkpoints", responses=documented(404), tags=["jobs"])
def list_checkpoints(job_id: JobInPath, service: ServiceDep, project: ProjectDep) -> Checkpoints:
    """Weights that can be promoted to a model: `last` and `best` of a finished job; the last two checkpoints and the
    best one of an unfinished job; and all pinned ones."""
    with service.reading() as s:
        kept = promotion.promotable(s, service.store, requests.get(s, project, job_id))
    return Checkpoints(items=[CheckpointView.of(each) for each in kept])


@router.post(
    "/v1/jobs/{job_id}/checkpoints/{checkpoint_id}/promote",
    status_code=201,
    response_model=ModelView,
    responses={**_REPLAY, **_VERIFYING, **documented(400, 404, 409, 413, 415, 422, 429, 507)},
    tags=["jobs"],
)
def promote_checkpoint(
    job_id: JobInPath,
    checkpoint_id: WeightsInPath,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    body: Promote | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a model of a job's weights: `last` or `best`, or a checkpoint by its id. For a finished job it is ready
    at once (201). For a job that is still training, a worker first reads the checkpoint (202)."""
    service.expect_room()
    name = body.name if body is not None else None
    model, new = promotion.promote(
        service.engine, service.store, service.settings, project, job_id, checkpoint_id, name, idempotency_key
    )
    verifying = model.state == ModelState.verifying
    if new and verifying:
        after.add_task(service.ring, model.id)
    return made(service, project, MODELS, model.id, 200 if not new else 202 if verifying else 201)


@router.post("/v1/jobs/{job_id}/checkpoints/{checkpoint_id}/pin", responses=documented(404, 409), tags=["jobs"])
def pin_checkpoint(
    job_id: JobInPath, checkpoint_id: CheckpointInPath, service: ServiceDep, project: ProjectDep
) -> CheckpointView:
    """Keep a checkpoint when newer ones come, and after the job's end. Pinning twice is not an error. A job may have
    ten pinned checkpoints; `last` and `best` of a finished job are artifacts, which are kept anyway."""
    with service.transaction() as s:
        return CheckpointView.of(PromotableWeights.of(checkpoints.pin(s, project, job_id, checkpoint_id)))


@router.delete("/v1/jobs/{job_id}/checkpoints/{checkpoint_id}/pin", responses=documented(404), tags=["jobs"])
def unpin_checkpoint(
    job_id: JobInPath, checkpoint_id: CheckpointInPath, service: ServiceDep, project: ProjectDep, after: BackgroundTasks
) -> CheckpointView:
    """Treat it like other checkpoints again: it may be deleted at once. Unpinning twice is not an error."""
    with service.transaction() as s:
        row, dropped = checkpoints.unpin(s, project, job_id, checkpoint_id)
    after.add_task(delete_objects, service.store, dropped)
    return CheckpointView.of(PromotableWeights.of(row))


def _upload(service: Service, project: str, model_id: str) -> Upload[Model]:
    """Its weights, which begin as weights do, and whose frame is sound."""
    settings = service.settings
    return Upload(
        Model,
        project,
        model_id,
        service.engine,
        service.store,
        settings.uploads,
        service.room,
        max_bytes=settings.max_model_bytes,
        setting="FGD_MAX_MODEL_BYTES",
        head_bytes=weights_file.HEAD_BYTES,
        sniff=_sniff,
        check=_check,
    )


def _sniff(head: bytes) -> None:
    with _refusing():
        weights_file.kind_of(head)


def _check(path: Path) -> None:
    with _refusing():
        weights_file.check(path)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except weights_file.NotWeights as error:
        raise Refused("not_weights", str(error), 415, {"Connection": "close"}) from error
    except WeightsError as error:
        raise Invalid(Fault("", "weights_damaged", str(error))) from error
