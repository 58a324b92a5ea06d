"""/v1/jobs/{id}/report: all that is to be said of a job, to read offline or as JSON."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.core import inspections, paired_runs, report, report_rows
from api.core.report_rows import Found
from api.core.report_views import JobReport
from api.deps import Accept, IfNoneMatch, JobInPath, ProjectDep, ServiceDep
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag, negotiate, report_page
from api.http.bodies import StrictRoute
from api.http.conditional import unchanged
from fgd.spec_fields import Spec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

ASK_AGAIN_S = 3


class ReportQuery(Spec):
    split: paired_runs.Split = "val"
    """Whose images the figures are of."""


_REPORT: Responses = {
    200: {
        "model": JobReport,
        "description": "The report; with Accept: text/html one page that needs nothing else, with all its charts.",
        "content": {"text/html": {"schema": {"type": "string"}}},
        "headers": {
            "ETag": {"description": "Of this content.", "schema": {"type": "string"}},
            "Refresh": {
                "description": "On a page with figures to come: a browser asks again after so many seconds.",
                "schema": {"type": "integer"},
            },
        },
    },
    **NOT_MODIFIED,
}


@router.get("/{job_id}/report", response_model=JobReport, responses={**_REPORT, **documented(404, 422)})
def get_job_report(
    job_id: JobInPath,
    query: Annotated[ReportQuery, Query()],
    service: ServiceDep,
    project: ProjectDep,
    accept: Accept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Teacher, control and student side by side: AP with the interval of the paired difference, each class, sizes,
    precision-recall, gap closed, operations and latency, pictures of what each finds; spec, seeds, versions, digests,
    warnings. Without a control it has the request that trains one.

    It can be asked for at any time. What takes longer is worked out once, after the first request: figures beside the
    server; operations, latency and pictures by a worker. `pending` says how much of it is still to come."""

    def read() -> Found:
        with service.reading() as s:
            return report_rows.read(s, project, job_id, query.split, service.settings.lease_s)

    found = read()
    if found.wanted and found.subject is not None:
        if (asked := inspections.ask(service.engine, service.settings, project, found.subject)) is not None:
            service.ring(asked)
        found = read()
    resampled = service.resampler.ask(found.compared(), query.split)
    figures = service.resampler.figures(found.shown(), query.split)
    made = report.report(found, service.store, resampled, figures)
    as_page = negotiate.prefers(accept, "text/html", "application/json")
    body = report_page.page(made).encode() if as_page else made.model_dump_json().encode()
    headers = {"ETag": etag.of_digest(hashlib.sha256(body).hexdigest()), "Vary": "Accept", "Cache-Control": "no-cache"}
    if (same := unchanged(if_none_match, headers["ETag"], {"Vary": "Accept"})) is not None:
        return same
    if not as_page:
        return Response(body, headers=headers, media_type="application/json")
    headers |= {
        "Content-Disposition": f'inline; filename="{job_id}-report.html"',
        "Content-Security-Policy": report_page.POLICY + "; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
    }
    headers |= {"Refresh": str(ASK_AGAIN_S)} if made.pending else {}
    return Response(body, headers=headers, media_type="text/html; charset=utf-8")
