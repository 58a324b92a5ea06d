"""PATCH of whatever has a version: of the one that If-Match names, or of any (RFC 9110, 13.1.1). Knows no table."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Response
from sqlalchemy.orm import Session

from api.core.rows import changing
from api.core.rows.changing import IsMeant
from api.deps import Service
from api.errors import documented
from api.http import etag
from api.http.conditional import answered
from api.schemas import Rename
from api.views import Resource

RENAMED = documented(400, 404, 412, 413, 415, 422)
"""For `responses=` of a route that answers by `renamed`."""


def changed(
    service: Service,
    project: str,
    resource: Resource,
    id: str,
    if_match: str | None,
    change: Callable[[Session, IsMeant], object],
) -> Response:
    """The thing after `change`, with the ETag of that version."""

    def is_meant(version: int) -> bool:
        return etag.is_meant(if_match, etag.of_version(version))

    with service.transaction() as s:
        change(s, is_meant)
        return answered(resource.one(s, project, id, service.settings.lease_s))


def renamed(
    service: Service, project: str, resource: Resource, id: str, if_match: str | None, body: Rename
) -> Response:
    """The thing with its new name."""

    def rename(s: Session, is_meant: IsMeant) -> None:
        changing.rename(s, resource.table, project, id, name=body.name, is_meant=is_meant)

    return changed(service, project, resource, id, if_match, rename)
