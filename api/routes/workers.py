"""/v1/workers: the workers, and what each is doing."""

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
    """All workers, by host, except those that have been silent for a day. Jobs of other projects are counted, but not
    named."""
    with service.reading() as s:
        live = {worker.id for worker in workers.live(s, service.settings.lease_s)}
        running = history.running(s)
        return Workers(items=[WorkerView.of(row, row.id in live, running, project) for row in workers.everyone(s)])
