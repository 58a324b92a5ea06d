"""/v1/predictions: what networks find in one picture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import predictions, tasks
from api.core.request_bodies import SubmitPrediction
from api.core.rows.tables import Prediction
from api.deps import IdempotencyKey, PredictionInPath, Prefer, ProjectDep, ServiceDep
from api.errors import Responses, documented
from api.http.conditional import POLL_ANSWERS, POLLED, ended_or_pending, polled
from api.http.pages import PAGE, paged
from api.http.pictures import PICTURE_BODY, picture
from api.schemas import PredictionPage, PredictionView, PredictQuery, TasksQuery
from api.views import PREDICTIONS

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])

_MADE: Responses = {
    200: {"model": PredictionView, "description": "It ended within Prefer: wait, or this key made it before."},
    202: {"model": PredictionView, "description": "A worker will do it; see Location."},
}


@router.post(
    "",
    status_code=202,
    responses={**_MADE, **documented(400, 409, 413, 415, 422, 429, 507)},
    openapi_extra=PICTURE_BODY,
)
async def submit_prediction(
    query: Annotated[PredictQuery, Query()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Find objects in the picture that is the body: JPEG, PNG, WebP, BMP, TIFF or GIF. Of a job its student looks at
    it, its teacher, and its control (the same student without a teacher), where there are any. With `Prefer: wait=30`
    the answer has the boxes. They are in pixels of the picture as it is shown: turned upright, as its EXIF says. The
    picture is deleted soon after it was looked at, the answer after a day."""
    settings = service.settings
    await run_in_threadpool(service.expect_room)
    content = await picture(request, settings.max_picture_bytes, "FGD_MAX_PICTURE_BYTES")
    body = SubmitPrediction(**dict(query))
    prediction, new = await run_in_threadpool(
        predictions.submit, service.engine, service.store, settings, project, body, content, idempotency_key
    )
    if new:
        await run_in_threadpool(service.ring, prediction.id)
    return await ended_or_pending(request, service, project, PREDICTIONS, prediction.id, prefer)


@router.get("", response_model=PredictionPage, responses=PAGE)
async def list_predictions(query: Annotated[TasksQuery, Query()], request: Request) -> Response:
    """All predictions, newest first, or those that match all filters. The cursor of a page holds for the filters it
    was given out with."""
    selection = query.selection(Prediction)
    return await paged(request, PREDICTIONS, query, selection.of, selection.digest(), selection.bounded)


@router.get("/{prediction_id}", response_model=PredictionView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_prediction(prediction_id: PredictionInPath, request: Request) -> Response:
    """One prediction. Poll as you poll a job."""
    return await polled(request, PREDICTIONS, prediction_id)


@router.delete("/{prediction_id}", status_code=204, responses=documented(404))
def delete_prediction(prediction_id: PredictionInPath, service: ServiceDep, project: ProjectDep) -> None:
    """Delete a prediction; a worker that is at it stops."""
    with service.transaction() as s:
        tasks.delete(s, Prediction, project, prediction_id)
