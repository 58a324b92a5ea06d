"""A page of a list: the cursor that the last one gave out, the rows behind it, the cursor and the link of the next."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

import orjson
from fastapi import Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from api.core.rows import cursor
from api.core.rows.cursor import Only, Position, everything
from api.core.rows.db import Reader
from api.core.rows.tables import Project
from api.deps import Service, project_of, service_of
from api.errors import Responses, documented
from api.schemas import PageQuery
from api.views import Resource, dumps

MAX_PAGE_BYTES = 4 * 2**20
"""A page that is longer ends before its `limit`; the next one goes on there."""
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
        shown, items = _items(s, resource, found.found, service.settings.lease_s)
        more = found.more or len(shown) < len(found.found)
        next = cursor.encode(shown[-1], key, listing, filter) if more else None
        headers = _link(request, resource, query, next) if next else {}
        return Response(dumps({"items": items, "next": next}), 200, headers, "application/json")

    return await (service.looks.look(read) if bounded else run_in_threadpool(service.looks.look_here, read))


def _items(
    s: Reader, resource: Resource, found: Sequence[Position], lease_s: float
) -> tuple[Sequence[Position], Sequence[orjson.Fragment]]:
    """As many as MAX_PAGE_BYTES hold, but at least the first few; and how far they go."""
    items: list[orjson.Fragment] = []
    size = to = 0
    while to < len(found) and size < MAX_PAGE_BYTES:
        ids = [each.id for each in found[to : to + resource.at_once]]
        to += len(ids)
        texts = [dumps(each) for each in resource.these(s, ids, lease_s)]
        size += sum(map(len, texts))
        items += map(orjson.Fragment, texts)
    return found[:to], items


def _key(s: Reader, service: Service, project: str) -> bytes:
    """It is made with the project and never changes."""
    if project not in service.cursor_keys:
        service.cursor_keys[project] = s.execute(select(Project.cursor_key).where(Project.id == project)).scalar_one()
    return service.cursor_keys[project]


def _link(request: Request, resource: Resource, query: PageQuery, next: str) -> dict[str, str]:
    asked = [pair for pair in request.query_params.multi_items() if pair[0] not in ("limit", "cursor")]
    address = urlencode([("limit", str(query.limit)), *asked, ("cursor", next)])
    return {"Link": f'<{resource.path}?{address}>; rel="next"'}
