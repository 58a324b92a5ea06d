"""A page of a list: the cursor that the last one gave out, the rows behind it, the cursor and the link of the next."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from api.core.rows import cursor
from api.core.rows.cursor import Only, everything
from api.core.rows.db import Reader
from api.core.rows.tables import Project
from api.deps import Service, project_of, service_of
from api.errors import Responses, documented
from api.schemas import PageQuery
from api.views import Resource, dumps

PAGE: Responses = {
    200: {
        "description": "One page.",
        "headers": {
            "Link": {"description": 'The next page, rel="next", filters included.', "schema": {"type": "string"}}
        },
    },
    **documented(400, 422),
}


async def paged(
    request: Request,
    resource: Resource,
    query: PageQuery,
    only: Only = everything,
    filter: str = "",
    bounded: bool = True,
) -> Response:
    """The newest first.

    only: which of them; filter: the same as text, "" for all, for which alone a cursor holds; bounded: an index leads
    to them, so that no more rows are read than are shown. Raises Refused for a cursor of another list.
    """
    service, project = service_of(request), project_of(request)
    listing = resource.path.rpartition("/")[2]

    def read(s: Reader) -> Response:
        key = _key(s, service, project)
        after = cursor.decode(query.cursor, key, listing, filter) if query.cursor else None
        found = cursor.slice_of(s, resource.table, project, only, after, query.limit)
        items = resource.these(s, found.ids, service.settings.lease_s)
        next = cursor.encode(found.next, key, listing, filter) if found.next else None
        headers = _link(request, resource, query, next) if next else {}
        return Response(dumps({"items": items, "next": next}), 200, headers, "application/json")

    return await (service.looks.look(read) if bounded else run_in_threadpool(service.looks.look_here, read))


def _key(s: Reader, service: Service, project: str) -> bytes:
    """It is made with the project and never changes."""
    if project not in service.cursor_keys:
        service.cursor_keys[project] = s.execute(select(Project.cursor_key).where(Project.id == project)).scalar_one()
    return service.cursor_keys[project]


def _link(request: Request, resource: Resource, query: PageQuery, next: str) -> dict[str, str]:
    asked = [pair for pair in request.query_params.multi_items() if pair[0] not in ("limit", "cursor")]
    address = urlencode([("limit", str(query.limit)), *asked, ("cursor", next)])
    return {"Link": f'<{resource.path}?{address}>; rel="next"'}
