"""/v1/plans: what a job would do and cost. A plan is made by POST /v1/jobs?dry_run=true."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api import prefer
from api.core import plans
from api.core.rows.tables import Plan
from api.deps import IfNoneMatch, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, documented
from api.http import etag
from api.prefer import Prefer
from api.schemas import PlanView

router = APIRouter(prefix="/v1/plans", tags=["plans"])


@router.get("/{plan_id}", responses={**NOT_MODIFIED, **documented(404)})
def get_plan(
    plan_id: str,
    service: ServiceDep,
    project: ProjectDep,
    response: Response,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,
) -> PlanView:
    """One plan; `measured` is filled in once a worker has tried a few steps."""
    plan = look(service, project, plan_id, prefer)
    if etag.matches(if_none_match, etag.of_version(plan.version)):
        return Response(status_code=304, headers={"ETag": etag.of_version(plan.version)})  # type: ignore[return-value]
    return shown(service, response, plan, prefer)


def look(service: Service, project: str, plan_id: str, preferred: str | None) -> Plan:
    """The plan once it has ended, or as it is after the time that the caller wants to wait."""

    def read() -> Plan:
        with service.reading() as s:
            return plans.get(s, project, plan_id)

    return prefer.until_done(read, plans.ended, prefer.wait_s(preferred), service.closing)


def shown(service: Service, response: Response, plan: Plan, preferred: str | None) -> PlanView:
    response.headers["ETag"] = etag.of_version(plan.version)
    if seconds := prefer.wait_s(preferred):
        response.headers["Preference-Applied"] = f"wait={seconds}"
    with service.reading() as s:
        return PlanView.of(plan, plans.waiting_reason(s, plan, service.settings.lease_s))
