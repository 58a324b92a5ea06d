"""/v1/tallies: how many boxes of each class a data set has."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from api.core.tallies import SubmitTally
from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from pydantic import BaseModel

from api.core import tallies
from api.core.rows.tables import Tally
from api.deps import IdempotencyKey, ProjectDep, ServiceDep, in_path, named
from api.errors import Responses, documented
from api.http.bodies import StrictRoute
from api.http.conditional import POLL_ANSWERS, POLLED, made, polled
from api.http.pages import PAGE, paged
from api.schemas import PageQuery
from api.views import Resource

router = APIRouter(prefix="/v1/tallies", tags=["tallies"], route_class=StrictRoute)


class TallyView(BaseModel):
    id: str
    name: str
    state: Literal["counting", "counted", "failed"]
    counts: dict[str, int] | None
    error: str | None
    version: int
    created_at: datetime
    finished_at: datetime | None


class TallyPage(BaseModel):
    items: list[TallyView]
    next: str | None
    """Send it as `cursor` for the next page; null: this was the last."""


def _as_it_is(_: dict[str, Any]) -> None:
    """Every field is a column."""


TALLIES = Resource(
    "/v1/tallies",
    Tally,
    [Tally.id, Tally.name, Tally.state, Tally.error, Tally.version, Tally.created_at, Tally.finished_at],
    [Tally.counts],
    _as_it_is,
)
TallyInPath = Annotated[str, named("tally", "tal"), in_path("tal")]
_REPLAY: Responses = {200: {"model": TallyView, "description": "This Idempotency-Key already made it."}}


@router.post(
    "", status_code=202, response_model=TallyView, responses={**_REPLAY, **documented(400, 404, 409, 413, 415, 422)}
)
def submit_tally(
    body: SubmitTally,
    service: ServiceDep,
    project: ProjectDep,
    after: BackgroundTasks,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Have a worker count the boxes of each class in a data set. Poll it as you poll a job."""
    tally, new = tallies.submit(service.engine, project, body, idempotency_key)
    if new:
        after.add_task(service.ring, tally.id)
    return made(service, project, TALLIES, tally.id, 202 if new else 200)


@router.get("", response_model=TallyPage, responses=PAGE)
async def list_tallies(query: Annotated[PageQuery, Query()], request: Request) -> Response:
    """All tallies, newest first."""
    return await paged(request, TALLIES, query)


@router.get("/{tally_id}", response_model=TallyView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_tally(tally_id: TallyInPath, request: Request) -> Response:
    """One tally. Poll as you poll a job."""
    return await polled(request, TALLIES, tally_id)


@router.delete("/{tally_id}", status_code=204, responses=documented(404))
def delete_tally(tally_id: TallyInPath, service: ServiceDep, project: ProjectDep) -> None:
    """Delete a tally; a worker that counts stops."""
    with service.transaction() as s:
        tallies.delete(s, project, tally_id)
