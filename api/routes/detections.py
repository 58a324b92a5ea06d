"""/v1/jobs/{id}/detections: what teacher, control and student find on each image, beside the ground truth."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ConfigDict, Field

from api.core import paired_runs, side_by_side
from api.core.compared_detections import ComparedDetections, ImageBoxes
from api.core.side_by_side import LEAST, USUAL, Against, Only, Wanted
from api.deps import JobInPath, ProjectDep, ServiceDep
from api.errors import NOT_MODIFIED, documented
from api.http.compressing import compressed
from api.schemas import Words
from fgd.spec_fields import Spec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class ImageQuery(Spec):
    split: paired_runs.Split = "val"


class DetectionsQuery(ImageQuery):
    model_config = ConfigDict(validate_by_name=False)

    against: Against | None = None
    """What the student is compared with. Default: the control, or the teacher where nothing is known of a control. Of
    several teachers it is the first whose detections are known."""
    class_name: Annotated[Words | None, Field(alias="class")] = None
    """Only boxes and detections of this class, and images that have one."""
    only: Only | None = None
    """Only images on which the student makes more mistakes than the other network ("worse"), or fewer ("better")."""
    score: Annotated[float, Field(ge=LEAST, le=1)] = USUAL
    """Detections with a lower score do not count."""
    offset: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Leave out the first images."""
    limit: Annotated[int, Field(ge=1, le=500)] = 50

    def wanted(self) -> Wanted:
        return Wanted(self.against, self.class_name, self.only, self.score, self.offset, self.limit)


@router.get(
    "/{job_id}/detections", response_model=ComparedDetections, responses={**NOT_MODIFIED, **documented(404, 409, 422)}
)
def compare_detections(
    job_id: JobInPath,
    query: Annotated[DetectionsQuery, Query()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
) -> Response:
    """The images of a split, those first on which the student differs most from its control or its teacher: by the
    boxes that one of the two alone finds, and by how many false detections one has more. A detection finds the box of
    its class that it overlaps most, if the intersection over union reaches 0.5."""
    with service.reading() as s:
        found = side_by_side.rows(s, project, job_id, query.split)
    return compressed(request, side_by_side.table(found, service.store, query.wanted()).model_dump_json().encode())


@router.get(
    "/{job_id}/detections/{image_id}",
    response_model=ImageBoxes,
    responses={**NOT_MODIFIED, **documented(404, 409, 422)},
)
def get_detections_of_image(
    job_id: JobInPath,
    image_id: Annotated[int, Path(ge=0, lt=2**63)],
    query: Annotated[ImageQuery, Query()],
    request: Request,
    service: ServiceDep,
    project: ProjectDep,
) -> Response:
    """One image with its boxes, and all detections from score 0.05 on with whether each finds a box: another score
    needs no other request."""
    with service.reading() as s:
        found = side_by_side.rows(s, project, job_id, query.split)
    return compressed(request, side_by_side.boxes(found, service.store, image_id).model_dump_json().encode())
