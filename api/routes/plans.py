"""/v1/plans: what a job would do and cost, and which student fits a latency."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.core.request_bodies import SubmitPlan
from api.deps import PlanInPath, Prefer, ProjectDep, ServiceDep
from api.errors import Responses, documented
from api.http.bodies import StrictRoute
from api.http.conditional import POLL_ANSWERS, POLLED, polled
from api.http.planning import planned
from api.schemas import PlanView
from api.views import PLANS

router = APIRouter(prefix="/v1/plans", tags=["plans"], route_class=StrictRoute)

_MADE: Responses = {
    200: {"model": PlanView, "description": "The plan was measured within Prefer: wait."},
    202: {"model": PlanView, "description": "The plan is being measured; see Location."},
}


@router.post("", status_code=202, responses={**_MADE, **documented(400, 409, 413, 415, 422, 429, 507)})
async def submit_plan(
    body: SubmitPlan, request: Request, service: ServiceDep, project: ProjectDep, prefer: Prefer = None
) -> Response:
    """Store a plan for the job that this body describes, without making the job. `outline` is there at once; `measured`
    comes from a few real steps on a worker. A plan is refused for the same reasons as the job. It is kept for seven
    days.

    A body with `latency_budget_ms` and without `student` asks which student answers within that time. A worker builds,
    exports and times some of them, at most about `seconds` long: `phase` says how far it is, and `students` is the
    table, whose rows have specs that POST /v1/jobs takes. That nothing fits is an answer, not a failure."""
    return await planned(request, service, project, body, prefer)


@router.get("/{plan_id}", response_model=PlanView, responses=POLL_ANSWERS, openapi_extra=POLLED)
async def get_plan(plan_id: PlanInPath, request: Request) -> Response:
    """One plan; `measured` is filled in once a worker has tried a few steps. Poll as you poll a job."""
    return await polled(request, PLANS, plan_id)
