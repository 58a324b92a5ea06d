"""POST of a plan, by its own route and by the alias POST /v1/jobs?dry_run=true."""

from __future__ import annotations

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import submission
from api.deps import Service
from api.http.conditional import ended_or_pending
from api.views import PLANS
from fgd.budget import FindStudent
from fgd.spec import SubmitJob


async def planned(
    request: Request, service: Service, project: str, body: SubmitJob | FindStudent, prefer: str | None
) -> Response:
    """200 if a worker measures it within the time that the caller would like to wait, else 202."""
    await run_in_threadpool(service.expect_room)
    engine, store, settings = service.engine, service.store, service.settings
    if isinstance(body, FindStudent):
        plan = await run_in_threadpool(submission.plan_student, engine, store, settings, project, body)
    else:
        plan = await run_in_threadpool(submission.plan_job, engine, store, settings, project, body)
    await run_in_threadpool(service.ring, plan.id)  # before the answer, which may wait for what the bell brings
    return await ended_or_pending(request, service, project, PLANS, plan.id, prefer)
