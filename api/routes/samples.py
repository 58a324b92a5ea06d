"""/v1/datasets/{id}/samples: images of a ready data set, and their boxes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.core import datasets, samples
from api.core.errors import Conflict, NotFound
from api.core.lifecycle import DatasetState
from api.core.rows.tables import Dataset
from api.deps import DatasetInPath, IfNoneMatch, ProjectDep, Service, ServiceDep
from api.errors import NOT_MODIFIED, Responses, documented
from api.http import etag
from api.http.conditional import unchanged
from api.schemas import BoxesQuery, NamedSample, NamedSamples, NameQuery, SampleQuery, SampleView

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_BYTES: Responses = {
    200: {
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        "description": "The imported file without its EXIF orientation, so that its pixels match the boxes.",
    }
}


@router.get("/{dataset_id}/samples", responses=documented(404, 409, 422))
def find_samples(
    dataset_id: DatasetInPath, query: Annotated[NameQuery, Query()], service: ServiceDep, project: ProjectDep
) -> NamedSamples:
    """Images by the name of their file, and where each of them stands."""
    dataset = _ready(service, project, dataset_id)
    found = samples.named(service.store, dataset, query.name, query.split, query.limit)
    return NamedSamples(items=[NamedSample(split=split, n=n, name=name) for split, n, name in found])


@router.get("/{dataset_id}/samples/{n}", responses=documented(404, 409, 422))
def get_sample(
    dataset_id: DatasetInPath, n: int, query: Annotated[BoxesQuery, Query()], service: ServiceDep, project: ProjectDep
) -> SampleView:
    """Image n of a split, counted from 0, with its boxes: the first thousand, or those after `after`."""
    dataset = _ready(service, project, dataset_id)
    image, classes = samples.image(service.store, dataset, query.split, n, query.after, query.limit)
    return SampleView.of(dataset.id, query.split, n, image, classes, query.after)


@router.get(
    "/{dataset_id}/samples/{n}/image",
    response_class=Response,
    responses=_BYTES | NOT_MODIFIED | documented(404, 409, 422),
)
def get_sample_image(
    dataset_id: DatasetInPath,
    n: int,
    query: Annotated[SampleQuery, Query()],
    service: ServiceDep,
    project: ProjectDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The image file. The boxes refer to its pixels as stored, without EXIF rotation."""
    dataset = _ready(service, project, dataset_id)
    image, _ = samples.image(service.store, dataset, query.split, n)
    tag = etag.of_digest(f"{samples.digest(image)}-stored")
    headers = {"ETag": tag, "Cache-Control": "private"}
    if (same := unchanged(if_none_match, tag, headers)) is not None:
        return same
    content, media_type = samples.content(service.store, dataset, image)
    # What a stranger's file holds is an image for the browser, and nothing else.
    headers |= {"Content-Disposition": "inline", "Content-Security-Policy": "default-src 'none'; sandbox"}
    return Response(content, headers=headers, media_type=media_type)


def _ready(service: Service, project: str, dataset_id: str) -> Dataset:
    with service.reading() as s:
        dataset = datasets.get(s, project, dataset_id)
    if dataset.state == DatasetState.rejected:
        raise NotFound("sample", dataset_id)
    if dataset.state != DatasetState.ready:
        raise Conflict("dataset_not_ready", f"{dataset_id} is {dataset.state}; it has samples once it is ready", True)
    return dataset
