"""/v1/artifacts: the bytes of a result, resumable and verifiable."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.core.jobs import history
from api.deps import ArtifactInPath, IfNoneMatch, ProjectDep, ServiceDep
from api.http.files import FILE, FILE_OR_RANGE, IfRange, RangeHeader, described, sent

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])


@router.get("/{artifact_id}/content", response_class=Response, responses=FILE_OR_RANGE)
def download(
    artifact_id: ArtifactInPath,
    service: ServiceDep,
    project: ProjectDep,
    range: RangeHeader = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The file's bytes. Resume an interrupted download with Range and If-Range."""
    with service.reading() as s:
        row = history.artifact(s, project, artifact_id)
    return sent(service, row, range, if_range, if_none_match)


@router.head("/{artifact_id}/content", response_class=Response, responses=FILE)
def describe(
    artifact_id: ArtifactInPath, service: ServiceDep, project: ProjectDep, if_none_match: IfNoneMatch = None
) -> Response:
    """Size and digest, without the bytes."""
    with service.reading() as s:
        row = history.artifact(s, project, artifact_id)
    return described(row, if_none_match)
