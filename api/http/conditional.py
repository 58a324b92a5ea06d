"""GET of whatever has a version: its ETag, 304 (RFC 9110, 13.1.2) and long polls (RFC 7240, 4.3). Knows no table.

Everybody polls, so a 304 reads one column. Such a route asks FastAPI for an id only: the two headers and the service
would cost more than the read, as parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import Request, Response

from api.core.errors import Busy
from api.core.rows import lookup
from api.core.rows.columns import Noun
from api.core.rows.lookup import Seen
from api.deps import IF_NONE_MATCH, PREFER, Service, client_of, project_of, service_of
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag, negotiate
from api.views import Resource, Shown

_HEARS_S = 2.0
"""Between two looks whether the caller of a long poll is still there."""


def _header(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


POLLED: dict[str, Any] = {"parameters": [_header("If-None-Match", IF_NONE_MATCH), _header("Prefer", PREFER)]}
"""For `openapi_extra=` of a route that answers by `polled`."""
POLL_ANSWERS: Responses = {
    200: {
        "description": "The current state.",
        "headers": {
            "ETag": {"description": "The ETag of this version.", "schema": {"type": "string"}},
            "Preference-Applied": {"description": "wait=<seconds>, if you asked for it.", "schema": {"type": "string"}},
        },
    },
    **NOT_MODIFIED,
    **documented(404, 429),
}


def answered(shown: Shown, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A thing as this version of it is."""
    tag = {"ETag": etag.of_version(shown.version)}
    return Response(shown.body, status, {**tag, **(headers or {})}, "application/json")


def made(service: Service, project: str, resource: Resource, id: str, status: int) -> Response:
    """What a POST made, or would have made again."""
    with service.looking() as s:
        shown = resource.one(s, project, id, service.settings.lease_s)
    return answered(shown, status, {"Location": f"{resource.path}/{id}"})


async def ended_or_pending(
    request: Request, service: Service, project: str, resource: Resource, id: str, prefer: str | None
) -> Response:
    """What a POST asked a worker for: 200 if it ends within the time that the caller would like to wait, else 202."""
    headers = {"Location": f"{resource.path}/{id}"}
    if wait_s := negotiate.wait_s(prefer):
        headers["Preference-Applied"] = f"wait={wait_s}"
        with suppress(Busy):  # too many wait: this one is answered at once, for its row is made
            give_back = service.waiters.take(client_of(request))
            try:
                await until(request, service, resource.table, id, lambda seen: seen is None or seen.ended, wait_s)
            finally:
                give_back()
    shown = await service.looks.look(lambda s: resource.one(s, project, id, service.settings.lease_s))
    return answered(shown, 200 if shown.ended else 202, headers)


def unchanged(if_none_match: str | None, tag: str, headers: dict[str, str] | None = None) -> Response | None:
    """304 for a caller who has what `tag` names."""
    if not etag.matches(if_none_match, tag):
        return None
    return Response(status_code=304, headers={"ETag": tag, **(headers or {})})


async def polled(request: Request, resource: Resource, id: str) -> Response:
    """200 or 304, after as long a wait as the caller would like. Raises NotFound, Busy."""
    service, project = service_of(request), project_of(request)
    known, headers = request.headers.get("if-none-match"), {}
    version = partial(lookup.version, kind=resource.table, project_id=project, id=id)
    if (wait_s := negotiate.wait_s(request.headers.get("prefer"))) is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        before = await service.looks.look(version)
        if wait_s and (known is None or etag.of_version(before) in etag.named(known)):
            await _until_changed(request, service, resource.table, id, before, wait_s)
    if known is not None:
        tag = etag.of_version(await service.looks.look(version))
        if (same := unchanged(known, tag, headers)) is not None:
            return same
    lease_s = service.settings.lease_s
    return answered(await service.looks.look(lambda s: resource.one(s, project, id, lease_s)), headers=headers)


async def _until_changed(
    request: Request, service: Service, kind: type[Noun], id: str, version: int, wait_s: float
) -> None:
    """Until the row has another version, the time is over, or nobody listens any more. What has ended is not waited
    for."""
    seen = (await service.looks.look(partial(lookup.seen, kind=kind, ids=[id]))).get(id)
    if seen is None or seen.ended or seen.version != version:
        return
    give_back = service.waiters.take(client_of(request))
    try:
        await until(request, service, kind, id, lambda seen: seen is None or seen.version != version, wait_s)
    finally:
        give_back()


async def until(
    request: Request, service: Service, kind: type[Noun], id: str, true: Callable[[Seen | None], bool], wait_s: float
) -> None:
    """Wait for a look at the row that satisfies `true`, as long as somebody listens."""
    end = time.monotonic() + wait_s
    while (left_s := end - time.monotonic()) > 0 and not service.changes.ending:
        if await service.changes.wait(kind, id, true, min(left_s, _HEARS_S)) or await request.is_disconnected():
            return
