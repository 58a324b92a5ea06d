"""/v1/workers: who is there to do the work, and what each does."""

from __future__ import annotations

from fastapi import APIRouter

from api.core import workers
from api.core.jobs import history
from api.deps import ProjectDep, ServiceDep
from api.http.bodies import StrictRoute
from api.schemas import Workers, WorkerView

router = APIRouter(prefix="/v1/workers", tags=["workers"], route_class=StrictRoute)


@router.get("")
def list_workers(service: ServiceDep, project: ProjectDep) -> Workers:
    """All workers, by host; one that was not heard of for a day is left out. Jobs of other projects are counted,
    not named."""
    with service.reading() as s:
        live = {worker.id for worker in workers.live(s, service.settings.lease_s)}
        running = history.running(s)
        return Workers(items=[WorkerView.of(row, row.id in live, running, project) for row in workers.everyone(s)])
