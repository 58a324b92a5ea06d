"""What leaves the API. What enters is `fgd.spec` itself, and the query parameters below.

States are complete; a client must accept phases, event types and failure codes it does not know.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.core.history import Point
from api.core.lifecycle import DatasetState, Requested, State
from api.core.tables import Artifact, Dataset, Job, JobEvent
from fgd.data.index import Image
from fgd.spec import Spec


class View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


# --- jobs -----------------------------------------------------------------------------------------------------


class ProgressView(View):
    step: int
    total_steps: int | None
    epoch: int
    epochs: int | None
    values: dict[str, float | None]
    """The latest of each number: "loss/total", ..., "val/ap" (0-100)."""


class FailureView(View):
    code: str
    message: str
    data: dict[str, Any]


class JobView(View):
    id: str
    name: str
    state: State
    phase: str | None
    """What the running attempt does just now: staging, loading, training, evaluating, exporting, ..."""
    requested: Requested | None
    """What was asked of the running job and is not done yet."""
    spec: dict[str, Any]
    """The JobSpec as it runs: every number filled in."""
    metadata: dict[str, str]
    priority: int
    limits: dict[str, Any]
    attempt: int
    """Times a worker took the job."""
    progress: ProgressView | None
    waiting_reason: str | None
    """Why a queued job does not run yet. Computed for each answer; it may change while the ETag does not."""
    failure: FailureView | None
    weights_digest: str | None
    """sha256 over the student's tensors: equal for equal students."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int
    """Rises with every change; the ETag is "v<version>"."""

    @classmethod
    def of(cls, job: Job, waiting_reason: str | None) -> Self:
        failure = None
        if job.failure_code is not None:
            failure = FailureView(code=job.failure_code, message=job.failure_message or "", data=job.failure_data or {})
        return cls(
            id=job.id,
            name=job.name,
            state=State(job.state),
            phase=job.phase,
            requested=Requested(job.requested) if job.requested else None,
            spec=job.spec,
            metadata=job.labels,
            priority=job.priority,
            limits=job.limits,
            attempt=job.attempt,
            progress=ProgressView(**job.progress) if job.progress else None,
            waiting_reason=waiting_reason,
            failure=failure,
            weights_digest=job.weights_digest,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            version=job.version,
        )


class JobPage(View):
    items: list[JobView]
    next: str | None
    """Cursor of the next page; null on the last."""


class Cancel(Spec):
    mode: Literal["graceful", "now"] = "graceful"
    """"graceful": the trainer writes a checkpoint first. "now": it is killed."""


class EventView(View):
    seq: int
    """1, 2, 3, ... without gaps."""
    type: str
    at: datetime
    attempt: int
    data: dict[str, Any]

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        return cls(seq=event.seq, type=event.type, at=event.at, attempt=event.attempt, data=event.data)


class EventPage(View):
    items: list[EventView]
    next_after: int
    """Give it as `after` to go on from here."""


class PointView(View):
    name: str
    split: str
    step: int
    value: float | None
    """null: not finite, or does not exist."""
    at: datetime

    @classmethod
    def of(cls, point: Point) -> Self:
        return cls(**vars(point))


class Points(View):
    items: list[PointView]


class ArtifactView(View):
    id: str
    name: str
    size: int
    """Bytes."""
    sha256: str
    media_type: str

    @classmethod
    def of(cls, row: Artifact) -> Self:
        return cls(id=row.id, name=row.name, size=row.size, sha256=row.digest, media_type=row.media_type)


class Artifacts(View):
    items: list[ArtifactView]


# --- data sets ------------------------------------------------------------------------------------------------


class SplitView(View):
    images: int
    boxes: int


class DatasetView(View):
    id: str
    name: str
    state: DatasetState
    format: str
    """As asked; the report tells what was found."""
    path: str | None
    """Where it was read from; null for an upload."""
    val_fraction: float | None
    group_by: str
    classes: list[str] | None
    splits: dict[str, SplitView] | None
    error: str | None
    """Why it was rejected."""
    upload_url: str | None
    """Where its zip goes, as long as it waits for one."""
    report_url: str | None
    created_at: datetime
    finished_at: datetime | None
    version: int

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        ended = dataset.state in (DatasetState.ready, DatasetState.rejected)
        waits = dataset.state == DatasetState.awaiting_upload
        return cls(
            id=dataset.id,
            name=dataset.name,
            state=DatasetState(dataset.state),
            format=dataset.format,
            path=dataset.path,
            val_fraction=dataset.val_fraction,
            group_by=dataset.group_by,
            classes=dataset.classes,
            splits={name: SplitView(**split) for name, split in dataset.splits.items()} if dataset.splits else None,
            error=dataset.error,
            upload_url=f"/v1/datasets/{dataset.id}/content" if waits else None,
            report_url=f"/v1/datasets/{dataset.id}/report" if ended else None,
            created_at=dataset.created_at,
            finished_at=dataset.finished_at,
            version=dataset.version,
        )


class DatasetPage(View):
    items: list[DatasetView]
    next: str | None


class BoxView(View):
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels of the image."""
    name: str
    """Of the class."""
    label: int
    """Of the class, counted from 1."""
    crowd: bool
    """Neither trained on nor scored."""


class SampleView(View):
    n: int
    split: str
    name: str
    """As the user called the file."""
    width: int
    height: int
    boxes: list[BoxView]
    image_url: str

    @classmethod
    def of(cls, dataset_id: str, split: str, n: int, image: Image, classes: tuple[str, ...]) -> Self:
        boxes = [
            BoxView(box=box, name=classes[label - 1], label=label, crowd=crowd)
            for box, label, crowd in zip(image.boxes, image.labels, image.crowd, strict=True)
        ]
        url = f"/v1/datasets/{dataset_id}/samples/{n}/image?split={split}"
        return cls(
            n=n, split=split, name=image.name, width=image.width, height=image.height, boxes=boxes, image_url=url
        )


# --- query parameters: closed like every spec, a misspelled filter would silently filter nothing ------------------


class PageQuery(Spec):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(max_length=512)] | None = None
    """`next` of the page before."""


class EventQuery(Spec):
    after: Annotated[int, Field(ge=0, lt=2**31)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 200


class MetricQuery(Spec):
    name: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] | None = None
    split: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] | None = None


class LogQuery(Spec):
    attempt: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """The last one by default."""
    after_offset: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Bytes to leave out: X-Next-Offset of the answer before."""


class SampleQuery(Spec):
    split: Literal["train", "val", "test"] = "train"
