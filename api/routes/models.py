"""/v1/models: upload weights or promote a job's, see what the check made of them; and the checkpoints to promote."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import models, promotion
from api.core.errors import Fault, Invalid, Refused
from api.core.jobs import checkpoints, requests
from api.core.lifecycle import ModelState
from api.core.promotion import Kept
from api.core.request_bodies import SubmitModel
from api.core.rows import cursor
from api.core.rows.tables import Model, Project
from api.core.store.names import BlobStore
from api.deps import IdempotencyKey, IfNoneMatch, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag
from api.http.bodies import StrictRoute
from api.schemas import Checkpoints, CheckpointView, ModelPage, ModelView, PageQuery, Promote, Removed
from api.uploads import Received, content_digest, receiving
from fgd import weights_file
from fgd.errors import WeightsError

router = APIRouter(tags=["models"], route_class=StrictRoute)

_REPLAY: Responses = {200: {"model": ModelView, "description": "This Idempotency-Key made it before."}}
_VERIFYING: Responses = {202: {"model": ModelView, "description": "A worker takes the checkpoint apart."}}
_BYTES = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
_LISTING = "models"


@router.post("/v1/models", status_code=201, responses={**_REPLAY, **documented(400, 409, 413, 415, 422)})
def submit_model(
    body: SubmitModel,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ModelView:
    """Begin an upload: name the detector and its classes, then PUT the file to `content_url`. Or make a model of a
    finished job, {"name", "job", "which"}: that is ready at once. A model may teach, and be begun or inherited from."""
    model, new = promotion.submit_model(service.engine, service.store, project, body, idempotency_key)
    return _made(response, model, 201 if new else 200)


@router.get("/v1/models", responses=documented(400, 422))
def list_models(
    query: Annotated[PageQuery, Query()], service: ServiceDep, project: ProjectDep, response: Response
) -> ModelPage:
    """All models, newest first."""
    with service.reading() as s:
        key = s.get_one(Project, project).cursor_key
        after = cursor.decode(query.cursor, key, _LISTING) if query.cursor else None
        found = models.page(s, project, after, query.limit)
    next = cursor.encode(found.next, key, _LISTING) if found.next else None
    if next:
        response.headers["Link"] = f'</v1/models?limit={query.limit}&cursor={next}>; rel="next"'
    return ModelPage(items=[ModelView.of(model) for model in found.items], next=next)


@router.get("/v1/models/{model_id}", responses={**NOT_MODIFIED, **documented(404)})
def get_model(
    model_id: str, service: ServiceDep, project: ProjectDep, response: Response, if_none_match: IfNoneMatch = None
) -> ModelView:
    """One model."""
    with service.reading() as s:
        model = models.get(s, project, model_id)
    tag = etag.of_version(model.version)
    if etag.matches(if_none_match, tag):
        return Response(status_code=304, headers={"ETag": tag})  # type: ignore[return-value]
    response.headers["ETag"] = tag
    return ModelView.of(model)


@router.put(
    "/v1/models/{model_id}/content",
    status_code=202,
    responses=documented(400, 404, 409, 411, 413, 415, 422, 507),
    openapi_extra=_BYTES,
)
async def upload_content(
    model_id: str,
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    after: BackgroundTasks,
) -> ModelView:
    """The file itself, as the body: safetensors, or a state dict as torch.save writes it (.pth), which a confined
    process reads with weights_only. A worker then checks it against the detector, key by key. Content-Digest
    (sha-256) is verified; with it, the same upload may be sent twice."""
    promised = content_digest(request)
    model = await run_in_threadpool(_awaiting, service, project, model_id, promised)
    if model is not None:
        return _made(response, model, 202)
    async with receiving(
        request, service.settings.home / "uploads", service.settings.max_model_bytes, _sniff, weights_file.HEAD_BYTES
    ) as received:
        model = await run_in_threadpool(_keep, service, project, model_id, received)
    after.add_task(service.ring, model.id)
    return _made(response, model, 202)


@router.delete("/v1/models/{model_id}", status_code=202, responses=documented(404, 409))
def remove_model(model_id: str, service: ServiceDep, project: ProjectDep) -> Removed:
    """Forget a model. Jobs that have ended keep what they got; jobs that have not, keep it from being removed."""
    with service.transaction() as s:
        models.remove(s, project, model_id)
    return Removed(id=model_id)


@router.get("/v1/jobs/{job_id}/checkpoints", responses=documented(404), tags=["jobs"])
def list_checkpoints(job_id: str, service: ServiceDep, project: ProjectDep) -> Checkpoints:
    """Weights that can be promoted to a model: `last` and `best` of a finished job; of one that has not ended the last
    two checkpoints and the best one; and the pinned ones of any."""
    with service.reading() as s:
        kept = promotion.promotable(s, requests.get(s, project, job_id))
    return Checkpoints(items=[CheckpointView.of(each) for each in kept])


@router.post(
    "/v1/jobs/{job_id}/checkpoints/{checkpoint_id}/promote",
    status_code=201,
    responses={**_REPLAY, **_VERIFYING, **documented(400, 404, 409, 413, 415, 422)},
    tags=["jobs"],
)
def promote_checkpoint(
    job_id: str,
    checkpoint_id: str,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    after: BackgroundTasks,
    body: Promote | None = None,
    idempotency_key: IdempotencyKey = None,
) -> ModelView:
    """Make a model of a job's weights: `last` or `best`, or a checkpoint by its id. Of a finished job it is ready at
    once (201); of one that still trains, a worker takes the checkpoint apart (202)."""
    name = body.name if body is not None else None
    model, new = promotion.promote(service.engine, service.store, project, job_id, checkpoint_id, name, idempotency_key)
    verifying = model.state == ModelState.verifying
    if new and verifying:
        after.add_task(service.ring, model.id)
    return _made(response, model, 200 if not new else 202 if verifying else 201)


@router.post("/v1/jobs/{job_id}/checkpoints/{checkpoint_id}/pin", responses=documented(404, 409), tags=["jobs"])
def pin_checkpoint(job_id: str, checkpoint_id: str, service: ServiceDep, project: ProjectDep) -> CheckpointView:
    """Keep a checkpoint, also when newer ones come and after the job's end. Pinning twice is no error. A job may have
    ten pinned ones; `last` and `best` of a finished job are artifacts, which are kept anyway."""
    with service.transaction() as s:
        return CheckpointView.of(Kept.of(checkpoints.pin(s, project, job_id, checkpoint_id)))


@router.delete("/v1/jobs/{job_id}/checkpoints/{checkpoint_id}/pin", responses=documented(404), tags=["jobs"])
def unpin_checkpoint(
    job_id: str, checkpoint_id: str, service: ServiceDep, project: ProjectDep, after: BackgroundTasks
) -> CheckpointView:
    """Keep it no longer than others are: it may be gone at once. Unpinning what is not pinned is no error."""
    with service.transaction() as s:
        row, dropped = checkpoints.unpin(s, project, job_id, checkpoint_id)
    after.add_task(_delete_objects, service.store, dropped)
    return CheckpointView.of(Kept.of(row))


def _delete_objects(store: BlobStore, keys: Sequence[str]) -> None:
    for key in keys:
        with suppress(OSError):  # the collector tries again
            store.delete_object(key)


def _made(response: Response, model: Model, status: int) -> ModelView:
    response.status_code = status
    response.headers["Location"] = f"/v1/models/{model.id}"
    response.headers["ETag"] = etag.of_version(model.version)
    return ModelView.of(model)


def _awaiting(service: Service, project: str, model_id: str, promised: bytes | None) -> Model | None:
    """Before the body is read: None if the model waits for it, the model itself if this very content has come."""
    with service.reading() as s:
        model = models.get(s, project, model_id)
    if promised is not None and model.upload_sha256 == promised.hex():
        return model
    models.refuse_content(model)
    return None


def _sniff(head: bytes) -> None:
    try:
        weights_file.kind_of(head)
    except WeightsError as error:
        raise _wrong_kind(error) from error


def _keep(service: Service, project: str, model_id: str, received: Received) -> Model:
    """The received file in the store, and its model waiting for a worker. Raises Invalid, Refused, Conflict."""
    try:
        weights_file.check(received.path)
    except weights_file.NotWeights as error:
        raise _wrong_kind(error) from error
    except WeightsError as error:
        raise Invalid(Fault("", "weights_damaged", str(error))) from error
    upload = service.store.put_file(received.path, expected=received.sha256)
    with service.transaction() as s:
        return models.arrived(s, project, model_id, upload)


def _wrong_kind(error: WeightsError) -> Refused:
    return Refused("not_weights", str(error), 415, {"Connection": "close"})
