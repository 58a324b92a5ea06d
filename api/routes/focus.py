"""/v1/jobs/{id}/focus: what a job's methods look at on a few validation images, evaluation by evaluation."""

from __future__ import annotations

import zlib
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from api.core.errors import ServiceError
from api.core.jobs import focus, requests
from api.core.lifecycle import State
from api.core.rows.tables import JobFocus
from api.deps import JobInPath, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, documented
from api.http import etag
from api.http.compressing import JSON_TYPE, compressed
from api.http.conditional import unchanged
from api.http.negotiate import takes_gzip
from api.schemas import FocusList, FocusPhotos, FocusStep, FocusStepView
from api.views import dumps

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_JSON_BYTES = 16 * 2**20
"""Of a file that is unpacked for a client that takes no gzip."""
FOR_EVER = "private, max-age=31536000, immutable"

StepInPath = Annotated[int, Path(ge=0, lt=2**63)]


@router.get("/{job_id}/focus", response_model=FocusList, responses={**NOT_MODIFIED, **documented(404)})
def list_focus(job_id: JobInPath, request: Request, service: ServiceDep, project: ProjectDep) -> Response:
    """The steps after which it was noted what the methods look at; empty for a job without a teacher. Poll with
    If-None-Match while the job runs."""
    with service.reading() as s:
        rows = focus.steps(s, requests.get(s, project, job_id))
    items = [FocusStepView.of(row).model_dump(mode="json") for row in rows]
    return compressed(request, dumps({"items": items}))


@router.get("/{job_id}/focus/photos", response_model=FocusPhotos, responses={**NOT_MODIFIED, **documented(404)})
def get_focus_photos(job_id: JobInPath, request: Request, service: ServiceDep, project: ProjectDep) -> Response:
    """The validation images on which it is shown, small, with their boxes: evenly spaced over the split, those with
    boxes first."""
    return _file(request, service, project, job_id, None)


@router.get("/{job_id}/focus/{step}", response_model=FocusStep, responses={**NOT_MODIFIED, **documented(404, 422)})
def get_focus(
    job_id: JobInPath, step: StepInPath, request: Request, service: ServiceDep, project: ProjectDep
) -> Response:
    """What the methods looked at after a step: masks and attentions by method, network and level of each image."""
    return _file(request, service, project, job_id, step)


def _file(request: Request, service: Service, project: str, job_id: str, step: int | None) -> Response:
    with service.reading() as s:
        job = requests.get(s, project, job_id)
        row, ended = focus.file(s, job, step), State(job.state).terminal
    headers = {"ETag": etag.of_digest(row.digest), "Vary": "Accept-Encoding"}
    headers["Cache-Control"] = FOR_EVER if ended else "private, no-cache"  # a retry may go through the step again
    if (same := unchanged(request.headers.get("if-none-match"), headers["ETag"], headers)) is not None:
        return same
    content = _content(service, row)
    if takes_gzip(request.headers.get("accept-encoding")):
        headers["Content-Encoding"] = "gzip"
    else:
        content = zlib.decompressobj(wbits=31).decompress(content, MAX_JSON_BYTES)
    return Response(content, 200, headers, JSON_TYPE)


def _content(service: Service, row: JobFocus) -> bytes:
    try:
        return b"".join(service.store.read(row.digest))
    except KeyError:
        raise ServiceError("blob_missing", f"the bytes of {row.name} are no longer in the store") from None
