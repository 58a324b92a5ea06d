"""/v1/models: upload weights or promote a job's, see what the check made of them; and the checkpoints to promote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response

from api.core import models, promotion
from api.core.errors import Fault, Invalid, Refused
from api.core.jobs import checkpoints, requests
from api.core.lifecycle import ModelState
from api.core.promotion import Kept
from api.core.request_bodies import SubmitModel
from api.core.rows import cursor
from api.core.rows.tables import Model, Project
from api.core.store import uploads
from api.core.store.names import BlobStore
from api.core.uploading import Upload
from api.deps import IdempotencyKey, IfNoneMatch, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag, receiving
from api.http.bodies import StrictRoute
from api.schemas import Checkpoints, CheckpointView, ModelPage, ModelView, PageQuery, Promote, Removed
from fgd import weights_file
from fgd.errors import WeightsError

router = APIRouter(tags=["models"], route_class=StrictRoute)

_REPLAY: Responses = {200: {"model": ModelView, "description": "This Idempotency-Key made it before."}}
_VERIFYING: Responses = {202: {"model": ModelView, "description": "A worker takes the checkpoint apart."}}
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
    "/v1/models/{model_id}/content", status_code=202, responses=receiving.REFUSALS, openapi_extra=receiving.WHOLE_BODY
)
async def put_content(
    model_id: str,
    headers: Annotated[receiving.WholeHeaders, Header()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    after: BackgroundTasks,
) -> ModelView:
    """All of the file in one stream: safetensors, or a state dict as torch.save writes it (.pth), which a confined
    process reads with weights_only. A worker then checks it against the detector, key by key. One that breaks can be
    gone on with by PATCH; with Content-Digest the same content may be sent twice."""
    model = await receiving.whole(request, headers, _upload(service, project, model_id))
    after.add_task(service.ring, model.id)
    return _made(response, model, 202)


@router.head("/v1/models/{model_id}/content", status_code=204, responses={**receiving.OFFSET, **documented(404)})
def head_content(model_id: str, service: ServiceDep, project: ProjectDep) -> Response:
    """How much of the file is there."""
    return receiving.progress(_upload(service, project, model_id)).answer()


@router.patch(
    "/v1/models/{model_id}/content",
    status_code=204,
    responses={**receiving.OFFSET, **receiving.REFUSALS},
    openapi_extra=receiving.PIECE_BODY,
)
async def patch_content(
    model_id: str,
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


@router.delete("/v1/models/{model_id}", status_code=202, responses=documented(404, 409))
def remove_model(model_id: str, service: ServiceDep, project: ProjectDep) -> Removed:
    """Forget a model. Jobs that have ended keep what they got; jobs that have not, keep it from being removed."""
    with service.transaction() as s:
        models.remove(s, project, model_id)
    uploads.drop(service.settings.uploads, model_id)
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


def _upload(service: Service, project: str, model_id: str) -> Upload[Model]:
    """Its weights, which begin as weights do, and whose frame is sound."""
    return Upload(
        Model,
        project,
        model_id,
        service.engine,
        service.store,
        service.settings.uploads,
        service.settings.max_model_bytes,
        "FGD_MAX_MODEL_BYTES",
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
