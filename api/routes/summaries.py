"""/v1/summaries: a table of jobs, which people sort, search and watch."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.core.jobs import summaries
from api.deps import ProjectDep, ServiceDep
from api.errors import NOT_MODIFIED, documented
from api.http.compressing import compressed
from api.schemas import SummaryQuery, SummaryTable
from api.views import dumps

router = APIRouter(prefix="/v1/summaries", tags=["jobs"])


@router.get("", response_model=SummaryTable, responses={**NOT_MODIFIED, **documented(422)})
def list_summaries(
    query: Annotated[SummaryQuery, Query()], request: Request, service: ServiceDep, project: ProjectDep
) -> Response:
    """A line for each job, sorted by a column, with the AP so far and the gain over its control. Poll with
    If-None-Match: 304 means that no line has changed."""
    with service.looking() as s:
        found = summaries.table(s, project, query.wanted(), service.settings.lease_s)
    items = [{"metadata": line.labels, **vars(line)} for line in found.items]
    for item in items:
        del item["labels"]
    return compressed(request, dumps({"items": items, "total": found.total, "states": found.states}))
