"""/healthz: the process answers. /readyz: it can do its work. /version: which code this is."""

from __future__ import annotations

import platform

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from api.core import queue
from api.core.errors import SchemaOutOfDate, SchemaTooNew
from api.core.rows import db
from api.deps import Service, ServiceDep
from api.schemas import View
from fgd import version

router = APIRouter(tags=["health"])


class Health(View):
    status: str


class Check(View):
    ok: bool
    detail: str


class Readiness(View):
    ready: bool
    """Database and store are available, and the disk has room. Without the broker jobs only start later: workers look
    for jobs by themselves."""
    database: Check
    store: Check
    disk: Check
    """Of what the service writes on its own host. Below FGD_MIN_FREE_BYTES nothing new begins."""
    broker: Check
    sweeper: Check
    """Degraded: this server does not notice jobs whose worker was killed; a worker that still sweeps may do so."""


class Version(View):
    version: str
    api: str
    python: str


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers. Needs no key."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready"}})
def readyz(service: ServiceDep, response: Response) -> Readiness:
    database, store, disk, broker = _database(service), _store(service), _disk(service), _broker(service)
    ready = database.ok and store.ok and disk.ok
    response.status_code = 200 if ready else 503
    response.headers["Cache-Control"] = "no-store"
    return Readiness(ready=ready, database=database, store=store, disk=disk, broker=broker, sweeper=_sweeper(service))


@router.get("/version")
def get_version() -> Version:
    return Version(version=version.ours(), api="v1", python=platform.python_version())


def _database(service: Service) -> Check:
    try:
        db.check_schema(service.engine)
    except (SchemaOutOfDate, SchemaTooNew) as error:
        return Check(ok=False, detail=str(error))
    except SQLAlchemyError as error:
        return Check(ok=False, detail=f"cannot be read: {type(error).__name__}")  # its text may hold the URL
    return Check(ok=True, detail=f"{service.engine.dialect.name}, at this version's schema")


def _store(service: Service) -> Check:
    ok = service.store.writable()
    return Check(ok=ok, detail="writable" if ok else "cannot be written to")


def _disk(service: Service) -> Check:
    complaint = service.room.complaint()
    return Check(ok=complaint is None, detail=complaint or f"{service.room.free() / 2**30:.1f} GiB free")


def _broker(service: Service) -> Check:
    if service.bell is None:
        return Check(ok=True, detail="not set; workers look for jobs by themselves")
    if queue.reachable(service.bell):
        return Check(ok=True, detail="reachable")
    return Check(ok=False, detail="degraded: not reachable; jobs start up to one poll later")


def _sweeper(service: Service) -> Check:
    complaint = service.sweeps.complaint
    return Check(ok=complaint is None, detail=f"degraded: the last sweep {complaint}" if complaint else "working")
