"""POST of a plan, by its own route and by the alias POST /v1/jobs?dry_run=true."""

from __future__ import annotations

from contextlib import suppress

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from api.core import submission
from api.core.errors import Busy
from api.core.rows.tables import Plan
from api.deps import Service, client_of
from api.http import negotiate
from api.http.conditional import answered, until
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
    headers = {"Location": f"{PLANS.path}/{plan.id}"}
    if wait_s := negotiate.wait_s(prefer):
        headers["Preference-Applied"] = f"wait={wait_s}"
        with suppress(Busy):  # too many wait: this one is answered at once, for its plan is made
            await _until_measured(request, service, plan.id, wait_s)
    shown = await service.looks.look(lambda s: PLANS.one(s, project, plan.id, service.settings.lease_s))
    return answered(shown, 200 if shown.ended else 202, headers)


async def _until_measured(request: Request, service: Service, id: str, wait_s: float) -> None:
    give_back = service.waiters.take(client_of(request))
    try:
        await until(request, service, Plan, id, lambda seen: seen is None or seen.ended, wait_s)
    finally:
        give_back()
