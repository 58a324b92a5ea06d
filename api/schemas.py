"""What leaves the API. What enters is `fgd.spec` itself, and the query parameters below.

States are complete; a client must accept phases, event types and failure codes it does not know.

Over 500 lines: one class for each answer, side by side, so that the same field has the same name in all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from api.core.errors import Fault, Invalid
from api.core.index_pieces import ImagePiece
from api.core.jobs.curves import FEWEST, Window
from api.core.jobs.selection import Selection
from api.core.jobs.summaries import Wanted
from api.core.lifecycle import (
    DatasetState,
    FailureCode,
    ModelState,
    PlanState,
    Requested,
    State,
    TaskState,
    signal_name,
)
from api.core.promotion import PromotableWeights
from api.core.request_bodies import SubmitPrediction
from api.core.rows.columns import Task
from api.core.rows.ids import ID_PATTERN
from api.core.rows.tables import Artifact, Attempt, Job, JobEvent, JobFocus, WorkerRow
from api.core.tasks import Selection as TaskSelection
from fgd.budget import BudgetTable, FindStudent
from fgd.evaluated import EvaluationResult
from fgd.exported import ExportFormat, ExportResult
from fgd.outline import Measurement, Outline
from fgd.predicted import PredictionResult
from fgd.spec import Metadata, Priority
from fgd.spec_fields import Name, Spec
from fgd.stored import without_retired


class View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


# --- jobs -----------------------------------------------------------------------------------------------------


class ProgressView(View):
    step: int
    total_steps: int | None
    epoch: int
    epochs: int | None
    values: dict[str, float | None]
    """The latest value of each number: "loss/total", ..., "val/ap" (0-100). With very many classes their AP is left
    out; it is in GET .../metrics/latest."""


class FailureView(View):
    code: FailureCode
    """The kind of failure; docs/jobs.md lists them all."""
    message: str
    """What happened."""
    advice: str
    """What to change."""
    data: dict[str, Any]
    """The figures in the message."""
    retryable: bool
    """Another attempt may succeed without any change; `limits.max_retries` of them have been made."""


class JobView(View):
    id: str
    name: str
    state: State
    phase: str | None
    """What the running attempt is doing: staging, loading, training, evaluating, exporting, ..."""
    requested: Requested | None
    """What was requested and has not happened yet. A queued job may have "stop": its next attempt only exports."""
    spec: dict[str, Any]
    """The JobSpec as it runs, with every number filled in."""
    metadata: dict[str, str]
    priority: int
    limits: dict[str, Any]
    attempt: int
    """How many times a worker has taken the job."""
    progress: ProgressView | None
    waiting_reason: str | None
    """Why a queued or paused job is not running. Computed for each answer; it may change while the ETag does not."""
    queue_position: int | None
    """1: the next to be taken, among the queued jobs that need the same kind of slots. Computed for each answer, like
    the reason. null unless queued."""
    failure: FailureView | None
    weights_digest: str | None
    """SHA-256 of the student's tensors: equal students have equal digests."""
    inputs: dict[str, dict[str, str]] | None
    """SHA-256 of every file that it reads, by what the file is of: the data set, the teacher, ... Always null in a
    list: GET the job."""
    study: str | None
    """The study that it is one of the jobs of."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int
    """Increases with every change; the ETag is "v<version>"."""


class JobPage(View):
    items: list[JobView]
    next: str | None
    """Cursor of the next page; null on the last."""


class SummaryView(View):
    """A line of a table of jobs."""

    id: str
    name: str
    state: State
    phase: str | None
    requested: Requested | None
    metadata: dict[str, str]
    priority: int
    attempt: int
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    step: int
    total_steps: int | None
    epoch: int
    epochs: int | None
    left_s: float | None
    """Seconds until the last step at the present speed; null if that is unknown."""
    ap: float | None
    """Of the last evaluation on the validation images, 0-100."""
    ap_step: int | None
    """When that was."""
    control: str | None
    """The job that trains the same student on the same data, with the same schedule and seed, without a teacher; null
    for a job without a teacher, and where no such job has been evaluated."""
    control_ap: float | None
    """Of its last evaluation."""
    gain: float | None
    """AP minus that of the control after the same step. While one of the two is behind, both are compared where that
    one was last evaluated."""
    student: str
    """Family and trunk."""
    methods: list[str]
    teachers: list[str]
    """The jobs and models that teach; weights in a folder have no id."""
    dataset: str
    dataset_name: str
    why: str | None
    """Why it waits, or why it failed."""


class SummaryTable(View):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "id": "job_0192f0c1a7b87cc2a3d4e5f60718293a", "name": "cells r18 fgd", "state": "running",
                            "phase": "training", "requested": None, "metadata": {"owner": "ada"}, "priority": 0,
                            "attempt": 1, "version": 214, "created_at": "2026-11-02T09:00:00Z",
                            "started_at": "2026-11-02T09:00:04Z", "finished_at": None, "step": 4200,
                            "total_steps": 12000, "epoch": 8, "epochs": 24, "left_s": 2650.0, "ap": 31.4,
                            "ap_step": 4000, "control": "job_0192f0c1a7b87cc2a3d4e5f60718293b", "control_ap": 33.0,
                            "gain": 1.7, "student": "fcos resnet18", "methods": ["fgd"],
                            "teachers": ["mdl_0192f0c1a7b87cc2a3d4e5f60718293a"],
                            "dataset": "ds_0192f0c1a7b87cc2a3d4e5f60718293a", "dataset_name": "cells", "why": None,
                        }
                    ],
                    "total": 1,
                    "states": {"running": 1, "succeeded": 7},
                }
            ]
        }
    )  # fmt: skip

    items: list[SummaryView]
    total: int
    """How many jobs match all filters."""
    states: dict[str, int]
    """How many jobs of each state match the other filters."""


class Cancel(Spec):
    mode: Literal["graceful", "now"] = "graceful"
    """"graceful": the trainer writes a checkpoint first. "now": it is killed."""


class Rename(Spec):
    """What stays the same is left out, or null."""

    name: Name | None = None


class ChangeJob(Rename):
    metadata: Metadata | None = None
    """All labels, in place of those before."""
    priority: Priority | None = None
    """Of a job that has not ended: the queue is sorted by it from now on."""


class AttemptView(View):
    attempt: int
    worker: str
    host: str
    device: str | None
    """The trainer's name for it; null until the trainer knows it."""
    started_at: datetime
    finished_at: datetime | None
    outcome: Literal["succeeded", "failed", "cancelled", "paused", "lost", "handed_back"] | None
    """null: running. lost: nothing more was heard from its worker. handed_back: its worker was shut down."""
    code: FailureCode | None
    """Why it failed or was lost."""
    reason: str | None
    """Why it ended, in words."""
    exit: int | None
    """The trainer's exit status; 75: it saved a checkpoint and ended as requested."""
    signal: str | None
    """The signal that ended the trainer."""
    first_step: int | None
    """The step after which it started; null until training starts."""
    last_step: int | None
    """The last step it reported."""
    steps_done: int
    lost_steps: int
    """How many of them are in no checkpoint, so that another attempt had to repeat them."""
    spec: dict[str, Any]
    """The JobSpec it ran with. After running out of memory its batches may be smaller than the job's."""

    @classmethod
    def of(cls, row: Attempt, job: Job) -> Self:
        runs = row.finished_at is None
        last = int((job.progress or {}).get("step", 0)) if runs and row.first_step is not None else row.last_step
        killed = row.exit is not None and row.exit < 0
        return cls(
            attempt=row.attempt,
            worker=row.worker_id,
            host=row.host,
            device=row.device,
            started_at=row.started_at,
            finished_at=row.finished_at,
            outcome=row.outcome,
            code=FailureCode(row.code) if row.code else None,
            reason=row.reason,
            exit=None if killed else row.exit,
            signal=signal_name(-(row.exit or 0)) if killed else None,
            first_step=row.first_step,
            last_step=last,
            steps_done=max(0, (last or 0) - (row.first_step or 0)),
            lost_steps=row.lost_steps or 0,
            spec=without_retired(row.spec or job.spec),
        )


class Attempts(View):
    items: list[AttemptView]


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


class ProgressUpdate(View):
    """What a stream sends whenever the job shows something else."""

    version: int
    state: State
    phase: str | None
    requested: Requested | None
    progress: ProgressView | None


class EventPage(View):
    items: list[EventView]
    next_after: int
    """Send it as `after` to continue from here."""


class PointView(View):
    name: str
    split: str
    step: int
    value: float | None
    """null: not finite, or not defined."""
    at: datetime


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


class AskTicket(Spec):
    model_config = ConfigDict(json_schema_extra={"examples": [{"path": f"/v1/artifacts/art_{'0' * 32}/content"}]})

    path: Annotated[str, Field(max_length=1000)]
    """What will be downloaded: /v1/artifacts/ID/content, a job's logs or metrics, or a sample's image."""


class TicketView(View):
    url: str
    """`path` with the ticket in its query. It works for one GET."""
    expires_at: datetime


class FocusStepView(View):
    step: int
    epoch: int
    size: int
    """Bytes of what GET .../focus/{step} answers, as gzip."""
    sha256: str

    @classmethod
    def of(cls, row: JobFocus) -> Self:
        assert row.step is not None
        assert row.epoch is not None
        return cls(step=row.step, epoch=row.epoch, size=row.size, sha256=row.digest)


class FocusList(View):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"step": 0, "epoch": 0, "size": 181204, "sha256": "5f" * 32},
                        {"step": 500, "epoch": 1, "size": 183377, "sha256": "a0" * 32},
                    ]
                }
            ]
        }
    )

    items: list[FocusStepView]
    """By step. At most sixty evaluations of a training are shown, evenly spaced; step 0 is before the first."""


class FocusPhoto(View):
    position: int
    """Its place in the split, from 0: `n` of GET /v1/datasets/{id}/samples/{n}."""
    name: str
    width: int
    height: int
    boxes: list[tuple[float, float, float, float]]
    """Left, top, right, bottom in pixels of the image as stored; the first 200."""
    labels: list[str]
    jpeg: str | None
    """At most 512 pixels wide and high, in base64; null for an image that does not decode."""


class FocusPhotos(View):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "format": "fgd-photos/1",
                    "split": "val",
                    "photos": [
                        {
                            "position": 16, "name": "000000000139.jpg", "width": 640, "height": 426,
                            "boxes": [[12.0, 30.5, 200.0, 310.0]], "labels": ["cat"], "jpeg": "/9j/4AAQSkZJRg==",
                        }
                    ],
                }
            ]
        }
    )  # fmt: skip

    format: Literal["fgd-photos/1"]
    split: str
    photos: list[FocusPhoto]


class FocusMap(View):
    """A mask or an attention of one level."""

    method: str
    name: str
    """What it is: foreground, scale mask, spatial attention, channel attention, ..."""
    network: Literal["teacher", "student"] | None
    """Whose it is; null: both networks are compared under it."""
    level: str
    shape: list[int]
    """[height, width] of a map, which covers the whole padded input; [channels] of one number a channel."""
    of: list[int]
    """The shape before it was made smaller, for large maps and many methods."""
    low: float
    high: float
    by_magnitude: bool
    """0 is nothing, and 1 to 255 are the logarithms from `low` to `high`."""
    values: str
    """Line by line, a byte each, 0 for `low` and 255 for `high`, in base64."""


class FocusImage(View):
    photo: int
    """Its place in `photos`."""
    size: tuple[int, int]
    """Height and width of the networks' input without its padding."""
    padded: tuple[int, int]
    """With it."""
    shown: list[FocusMap]


class FocusStep(View):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "format": "fgd-focus/1",
                    "step": 500,
                    "epoch": 1,
                    "strides": {"p3": 8},
                    "images": [
                        {
                            "photo": 0,
                            "size": [426, 640],
                            "padded": [448, 640],
                            "shown": [
                                {
                                    "method": "fgd", "name": "spatial attention", "network": "teacher", "level": "p3",
                                    "shape": [2, 3], "of": [56, 80], "low": 0.0, "high": 4.2, "by_magnitude": False,
                                    "values": "AP8AgAB/",
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    )  # fmt: skip

    format: Literal["fgd-focus/1"]
    step: int
    epoch: int
    strides: dict[str, int]
    """Pixels of the input to a cell of each level."""
    images: list[FocusImage]


# --- workers --------------------------------------------------------------------------------------------------


class RunningView(View):
    job: str
    name: str
    attempt: int
    phase: str | None
    device: str | None
    """The trainer's name for it; null until the trainer knows it."""
    since: datetime


class WorkerView(View):
    id: str
    host: str
    pid: int
    live: bool
    """Its last heartbeat is not older than FGD_LEASE_S."""
    complaint: str | None
    """Why it takes no jobs at the moment: its disk is full, it is shutting down, ..."""
    slots: int
    """How many trainings it runs at once."""
    free_slots: int
    devices: list[dict[str, Any]]
    """Its GPUs; empty if it only has a processor."""
    versions: dict[str, str]
    """Versions of this software, Python and torch."""
    facts: dict[str, Any]
    """Processor, memory, disk, system."""
    started_at: datetime
    last_beat: datetime
    running: list[RunningView]

    @classmethod
    def of(cls, row: WorkerRow, live: bool, running: Sequence[tuple[Job, Attempt]], project: str) -> Self:
        theirs = [(job, attempt) for job, attempt in running if job.lease_owner == row.id]
        facts = {name: value for name, value in row.facts.items() if name not in ("versions", "found")}
        return cls(
            id=row.id,
            host=row.host,
            pid=row.pid,
            live=live,
            complaint=row.complaint,
            slots=row.slots,
            free_slots=max(0, row.slots - len(theirs)) if live and row.complaint is None else 0,
            devices=row.devices,
            versions=row.facts.get("versions", {}),
            facts=facts,
            started_at=row.started_at,
            last_beat=row.last_beat,
            running=[
                RunningView(
                    job=job.id,
                    name=job.name,
                    attempt=job.attempt,
                    phase=job.phase,
                    device=attempt.device,
                    since=attempt.started_at,
                )
                for job, attempt in theirs
                if job.project_id == project
            ],
        )


class Workers(View):
    items: list[WorkerView]


# --- data sets ------------------------------------------------------------------------------------------------


class SplitView(View):
    images: int
    boxes: int


class DatasetView(View):
    id: str
    name: str
    state: DatasetState
    format: str
    """As requested; the report says what was found."""
    path: str | None
    """The path it was read from; null for an upload."""
    val_fraction: float | None
    group_by: str
    classes: list[str] | None
    splits: dict[str, SplitView] | None
    error: str | None
    """Why it was rejected."""
    upload_url: str | None
    """Where to upload its zip, while it is waiting for one."""
    report_url: str | None
    created_at: datetime
    finished_at: datetime | None
    version: int


class DatasetPage(View):
    items: list[DatasetView]
    next: str | None


# --- models ---------------------------------------------------------------------------------------------------


class ModelView(View):
    id: str
    name: str
    state: ModelState
    source: dict[str, Any]
    """{"kind": "upload"}, with "take": "raw" if that was asked for; {"kind": "job", "job", "which", "step"}; or
    {"kind": "checkpoint", "job", "which", "checkpoint", "step"}. `step`: the training had these weights after this many
    steps; null if unknown, as for the best weights in a checkpoint until a worker has read it."""
    recipe: dict[str, Any]
    """recipe.json: the detector, its classes, sizes, mean and standard deviation."""
    classes: list[str]
    weights_digest: str | None
    """SHA-256 of the tensors, as in jobs: equal networks have equal digests."""
    sha256: str | None
    """SHA-256 of the file student.safetensors that jobs read."""
    size: int | None
    """Size of that file in bytes."""
    upload_sha256: str | None
    """SHA-256 of the uploaded file."""
    report: dict[str, Any] | None
    """What was found in the upload: format, tensors, what was unwrapped or left out. For a rejected one, every key that
    is missing, unexpected, or of the wrong shape; long names are cut. Always null in a list: GET the model."""
    error: str | None
    """Why it was rejected."""
    content_url: str | None
    """Where to PUT the file, while the model is waiting for it."""
    created_at: datetime
    finished_at: datetime | None
    version: int


class ModelPage(View):
    items: list[ModelView]
    next: str | None


class Promote(Spec):
    name: Name | None = None
    """What to call the model; the job's name by default."""


class CheckpointView(View):
    id: str
    """For POST .../checkpoints/{id}/promote and /pin; "last" and "best" are the weights of a finished job's result."""
    step: int | None
    """Steps done; null if the result does not say."""
    attempt: int
    """The attempt of the job that wrote it."""
    size: int
    """Bytes."""
    sha256: str
    created_at: datetime
    best: bool
    """It has the job's best validation AP so far; kept while the job runs."""
    pinned: bool
    """Kept until you unpin it or delete the job. Others are deleted when there are two newer ones, or the job has
    ended."""

    @classmethod
    def of(cls, kept: PromotableWeights) -> Self:
        return cls(**vars(kept))


class Checkpoints(View):
    items: list[CheckpointView]


class BoxView(View):
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels of the image."""
    name: str
    """The class's name."""
    label: int
    """The class's number, counted from 1."""
    crowd: bool
    """A crowd box is neither trained on nor scored."""


class SampleView(View):
    n: int
    split: str
    name: str
    """The file's name in the data set."""
    width: int
    height: int
    box_count: int
    """All boxes of the image."""
    boxes: list[BoxView]
    """At most `limit` of them."""
    next_after: int | None
    """Send it as `after` to get the boxes that follow; null: there are none."""
    image_url: str

    @classmethod
    def of(cls, dataset_id: str, split: str, n: int, image: ImagePiece, classes: tuple[str, ...], after: int) -> Self:
        boxes = [
            BoxView(box=box, name=classes[label - 1], label=label, crowd=crowd) for box, label, crowd in image.boxes
        ]
        end = after + len(boxes)
        return cls(
            n=n,
            split=split,
            name=image.name,
            width=image.width,
            height=image.height,
            box_count=image.box_count,
            boxes=boxes,
            next_after=end if end < image.box_count else None,
            image_url=f"/v1/datasets/{dataset_id}/samples/{n}/image?split={split}",
        )


class NamedSample(View):
    split: str
    n: int
    """Its place in the split: GET /v1/datasets/{id}/samples/{n}?split=..."""
    name: str


class NamedSamples(View):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"split": "val", "n": 16, "name": "000000000139.jpg"}]}]}
    )

    items: list[NamedSample]
    """First those that are called so, without or with a folder before it."""


# --- query parameters: closed like every spec, a misspelled filter would silently filter nothing ------------------

Words = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Step = Annotated[int, Field(ge=0, lt=2**53)]


class PageQuery(Spec):
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, Field(max_length=512)] | None = None
    """`next` from the previous page."""


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("it is outside the years 1 to 9999 (UTC)") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class DatasetsQuery(PageQuery):
    name: Words | None = None
    """The whole name; with * at the end how it begins, at the beginning how it ends, at both what is in it. Letter case
    counts."""
    state: Annotated[tuple[DatasetState, ...], Field(max_length=32)] = ()
    """One of these; may be given several times."""


class ModelsQuery(PageQuery):
    name: Words | None = None
    """The whole name; with * at the end how it begins, at the beginning how it ends, at both what is in it. Letter case
    counts."""
    state: Annotated[tuple[ModelState, ...], Field(max_length=32)] = ()
    """One of these; may be given several times."""


class JobsQuery(PageQuery):
    """And metadata.<key>=<value>, any number of them: see `labels`."""

    model_config = ConfigDict(extra="allow")

    state: Annotated[tuple[State, ...], Field(max_length=32)] = ()
    """One of these; may be given several times."""
    name: Words | None = None
    """The whole name; with * at the end how it begins, at the beginning how it ends, at both what is in it. Letter case
    counts."""
    study: Annotated[str, Field(pattern=r"^std_[0-9a-f]{32}$")] | None = None
    """Jobs of this study, those included that another took the place of."""
    created_after: Moment | None = None
    """At this moment or later: an ISO 8601 time with its zone."""
    created_before: Moment | None = None
    """Earlier than this."""

    def selection(self) -> Selection:
        """Raises Invalid for a parameter that does not exist."""
        return Selection(
            frozenset(self.state), self.name, self._labels(), self.created_after, self.created_before, self.study
        )

    def _labels(self) -> dict[str, str]:
        found = {}
        for parameter, value in (self.model_extra or {}).items():
            prefix, _, key = parameter.partition(".")
            if prefix != "metadata" or not key:
                detail = (
                    f"there is no query parameter {parameter[:80]!r}; to filter by a label use metadata.<key>=<value>"
                )
                raise Invalid(Fault("", "extra_forbidden", detail, parameter[:200]))
            if not isinstance(value, str):
                detail = f"{parameter[:80]} is given more than once; a job has one value per key"
                raise Invalid(Fault("", "given_twice", detail, parameter[:200]))
            if _LABEL.fullmatch(key) is None or "\0" in value:
                detail = f"{parameter[:80]!r}: a metadata key is 1 to 64 letters, digits, '_', '-' or '.'"
                raise Invalid(Fault("", "bad_label", detail, parameter[:200]))
            found[key] = value
        return found


class SummaryQuery(Spec):
    state: Annotated[tuple[State, ...], Field(max_length=32)] = ()
    """One of these; may be given several times."""
    search: Words = ""
    """Text in the name or in a label, or a whole id. Letter case does not count."""
    id: Annotated[tuple[Words, ...], Field(max_length=200)] = ()
    """One of these; may be given several times."""
    worse: bool = False
    """Only jobs with a teacher that are worse than their control."""
    sort: Literal["created", "name", "state", "ap", "gain", "-created", "-name", "-state", "-ap", "-gain"] = "-created"
    """With "-" the greatest first. Jobs without a value come last."""
    offset: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Leave out the first jobs."""
    limit: Annotated[int, Field(ge=1, le=200)] = 100

    def wanted(self) -> Wanted:
        order = self.sort.removeprefix("-")
        return Wanted(
            frozenset(self.state), self.search, self.id, self.worse, order,  # type: ignore[arg-type]
            self.sort.startswith("-"), self.offset, self.limit,
        )  # fmt: skip


_LABEL = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class EventQuery(Spec):
    after: Annotated[int, Field(ge=0, lt=2**31)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    progress: bool = False
    """Stream only: send the job's progress as well, as `event: progress` with a ProgressUpdate as data. It has no id:
    it is what the job shows now, not a part of its story."""


class MetricQuery(Spec):
    model_config = ConfigDict(validate_by_name=False)

    name: Words | None = None
    split: Words | None = None
    first: Annotated[Step | None, Field(alias="from")] = None
    """First step, inclusive."""
    last: Annotated[Step | None, Field(alias="to")] = None
    """Last step, inclusive."""
    max_points: Annotated[int, Field(ge=FEWEST, le=10_000)] | None = None
    """At most this many points per series. Default: all."""

    def window(self) -> Window:
        return Window(self.name, self.split, self.first, self.last, self.max_points)


class LogOfQuery(Spec):
    attempt: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Default: the last one."""


class LogQuery(LogOfQuery):
    after_offset: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Bytes to skip: X-Next-Offset from the previous answer."""


# --- plans ----------------------------------------------------------------------------------------------------


class MeasuredView(Measurement):
    trainings_beside: int
    """Trainings that ran on the worker's host at the same time. The job alone may be faster than measured here."""


class StudentsView(BudgetTable):
    trainings_beside: int
    """Trainings that ran on the worker's host at the same time."""


class ErrorView(View):
    """Why what a worker tried came to nothing."""

    code: str
    message: str
    pointer: str
    """JSON pointer into the body that was sent; "" if no single field is at fault."""


class PlanView(View):
    id: str
    name: str
    state: PlanState
    waiting_reason: str | None
    """Why it is not being measured yet."""
    phase: str | None
    """How far the search for a student is; null before and after it."""
    spec: dict[str, Any] | None
    """The JobSpec as it would run, with every number filled in; null if a student was asked for."""
    outline: Outline | None
    """Known at once, without measuring; null if a student was asked for."""
    measured: MeasuredView | None
    """Results of a few real steps on the job's data; null until they are there."""
    question: FindStudent | None
    """What was asked, if a student was asked for."""
    students: StudentsView | None
    """The students that were found; null until they are."""
    error: ErrorView | None
    """Why it could not be measured. The job would probably fail in the same way."""
    created_at: datetime
    finished_at: datetime | None
    version: int


# --- what a worker works out ----------------------------------------------------------------------------------


class FileView(View):
    role: str
    """What it is; the end of its URL."""
    name: str
    size: int
    """Bytes."""
    sha256: str
    media_type: str
    url: str


class TaskView(View):
    """What all of them have."""

    id: str
    state: TaskState
    waiting_reason: str | None
    """Why no worker is at it yet; null: one is, or it has ended."""
    files: list[FileView]
    """To download, once it has succeeded."""
    error: ErrorView | None
    """Why it failed."""
    created_at: datetime
    finished_at: datetime | None
    version: int


class TasksQuery(PageQuery):
    state: Annotated[tuple[TaskState, ...], Field(max_length=32)] = ()
    """One of these; may be given several times."""
    job: Annotated[str, Field(pattern=f"^job{ID_PATTERN}$")] | None = None
    """Those that were asked for a network of this job."""
    model: Annotated[str, Field(pattern=f"^mdl{ID_PATTERN}$")] | None = None
    """Those that were asked for this model."""

    def selection(self, table: type[Task]) -> TaskSelection:
        asked = dict(self)
        fields: dict[str, str | None] = {name: asked[name] for name in ("job", "model", "dataset") if name in asked}
        return TaskSelection(table, frozenset(self.state), fields)


class TasksOnDataQuery(TasksQuery):
    dataset: Annotated[str, Field(pattern=f"^ds{ID_PATTERN}$")] | None = None
    """Those on images of this data set."""


class NetworkView(TaskView):
    """And the network that it is about."""

    model: str | None
    job: str | None
    network: Literal["student", "teacher"]
    which: Literal["last", "best"]


class ClassesView(View):
    """Classes are matched by name; letter case, blanks, "_" and "-" do not matter."""

    shared: list[str]
    """Those that data set and network have: the figures are of these."""
    renamed: dict[str, str]
    """Of these the ones that the network spells in another way: the data set's name, and the network's."""
    only_dataset: list[str]
    """The network does not know them; their boxes are left out."""
    only_network: list[str]
    """The data set does not have them; detections of these are left out."""


class EvaluationView(NetworkView):
    dataset: str
    split: Literal["train", "val", "test"]
    min_size: int
    max_size: int
    """Sides after resizing."""
    batch_size: int
    device: Literal["auto", "cpu", "cuda"]
    confusion_score: float
    classes: ClassesView
    result: EvaluationResult | None
    """Null until it has succeeded."""


class EvaluationPage(View):
    items: list[EvaluationView]
    next: str | None
    """Send it as `cursor` for the next page; null: this was the last."""


class ExportView(NetworkView):
    format: ExportFormat
    size: tuple[int, int] | None
    """Height and width, as asked for; `result` has what it became."""
    batch: int | Literal["dynamic"]
    opset: int
    dataset: str | None
    """On whose pictures the file is compared with torch; null: on a synthetic one."""
    max_ap_loss: float | None = None
    """AP that a file in INT8 may lose; null: it is none."""
    result: ExportResult | None
    """Null until it has succeeded."""


class ExportPage(View):
    items: list[ExportView]
    next: str | None
    """Send it as `cursor` for the next page; null: this was the last."""


class PredictQuery(SubmitPrediction):
    score: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Detections with a lower score are left out."""


class PictureView(View):
    sha256: str
    size: int
    """Bytes."""


class LookerView(View):
    role: str
    """student, teacher, "teacher NAME" where a job has several, control; model."""
    job: str | None
    model: str | None
    """Where the network comes from."""


class PredictionView(TaskView):
    """It is forgotten after a day, and the picture soon after it was looked at."""

    model: str | None
    job: str | None
    which: Literal["last", "best"]
    score: float
    picture: PictureView
    networks: list[LookerView]
    """That look at the picture: of a job its student, its teachers and its control, as far as there are any."""
    result: PredictionResult | None
    """Null until it has succeeded."""


class PredictionPage(View):
    items: list[PredictionView]
    next: str | None
    """Send it as `cursor` for the next page; null: this was the last."""


class SampleQuery(Spec):
    split: Literal["train", "val", "test", "unlabelled"] = "train"


class NameQuery(Spec):
    name: Words = ""
    """Text in the name of the image's file. Letter case does not count. Default: any."""
    split: Literal["train", "val", "test", "unlabelled"] | None = None
    """Default: all of them."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class BoxesQuery(SampleQuery):
    after: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Leave out the first boxes."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Boxes at most."""
