"""/v1/catalogue: what a job can be made of."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.catalogue import Catalogue, catalogue
from api.deps import IfNoneMatch
from api.errors import NOT_MODIFIED
from api.http import etag
from api.http.conditional import unchanged

router = APIRouter(prefix="/v1/catalogue", tags=["catalogue"])


@router.get("", response_model=Catalogue, responses=NOT_MODIFIED)
def get_catalogue(response: Response, if_none_match: IfNoneMatch = None) -> Catalogue | Response:
    """Detectors, methods, optimisers and formats: their JSON Schema, what each field does, the presets' numbers."""
    made, digest = catalogue()
    tag = etag.of_digest(digest)
    if (same := unchanged(if_none_match, tag)) is not None:
        return same
    response.headers["ETag"] = tag
    return made
