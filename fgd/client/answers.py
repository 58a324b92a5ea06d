"""What the service answers. A field that is not known here is ignored, so an older client can talk to a newer service.

Knows the shape of the answers. Knows no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from fgd.budget import BudgetTable
from fgd.evaluated import EvaluationResult
from fgd.exported import ExportResult
from fgd.outline import Measurement, Outline
from fgd.predicted import PredictionResult


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(Answer):
    step: int = 0
    total_steps: int | None = None
    """None until the trainer has reported it, like `epochs`."""
    epoch: int = 0
    epochs: int | None = None
    values: dict[str, float | None] = {}
    """The latest value of each: "loss/total", "lr", "val/ap", ..."""


class Failure(Answer):
    code: str
    message: str
    advice: str = ""
    """What to change."""
    data: dict[str, Any] = {}
    retryable: bool = False


class Job(Answer):
    id: str
    name: str
    state: str
    """queued, running, paused, succeeded, failed, cancelled."""
    phase: str | None = None
    requested: str | None = None
    spec: dict[str, Any]
    """As resolved by the service; a dict, because a newer service may know more than `fgd.spec` here."""
    metadata: dict[str, str] = {}
    priority: int = 0
    attempt: int = 0
    progress: Progress | None = None
    waiting_reason: str | None = None
    failure: Failure | None = None
    weights_digest: str | None = None
    study: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")


class Summary(Answer):
    """A line of a table of jobs."""

    id: str
    name: str
    state: str
    phase: str | None = None
    metadata: dict[str, str] = {}
    created_at: datetime
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    epochs: int | None = None
    left_s: float | None = None
    """Seconds until the last step."""
    ap: float | None = None
    """Of the last evaluation on the validation images."""
    control: str | None = None
    """The job that trains the same student without a teacher."""
    control_ap: float | None = None
    gain: float | None = None
    """AP minus that of the control, after the same step."""
    student: str = ""
    methods: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    dataset: str = ""
    dataset_name: str = ""
    why: str | None = None
    """Why it waits, or why it failed."""


class Attempt(Answer):
    """One time that a worker took a job."""

    attempt: int
    worker: str = ""
    host: str = ""
    device: str | None = None
    started_at: datetime
    finished_at: datetime | None = None
    outcome: str | None = None
    """succeeded, failed, cancelled, paused, lost, handed_back; None: running."""
    code: str | None = None
    reason: str | None = None
    exit: int | None = None
    signal: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    steps_done: int = 0
    lost_steps: int = 0
    spec: dict[str, Any] = {}
    """The JobSpec it ran with; after running out of memory its batches may be smaller than the job's."""


class Running(Answer):
    job: str
    name: str = ""
    attempt: int = 0
    phase: str | None = None
    device: str | None = None
    since: datetime | None = None


class Worker(Answer):
    id: str
    host: str
    pid: int = 0
    live: bool
    complaint: str | None = None
    """Why it takes no jobs at the moment."""
    slots: int
    free_slots: int = 0
    devices: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = {}
    facts: dict[str, Any] = {}
    started_at: datetime
    last_beat: datetime
    running: tuple[Running, ...] = ()


class StoredEvent(Answer):
    """One line of a job's history; `seq` counts from 1 without gaps."""

    seq: int
    type: str
    at: datetime
    attempt: int | None = None
    data: dict[str, Any] = {}


class MetricPoint(Answer):
    """One value of one series. `step` is the trainer's; `value` is null where it was not finite."""

    name: str
    split: str | None = None
    step: int
    value: float | None
    at: datetime | None = None


class FocusStep(Answer):
    """After which step it was noted what the methods look at."""

    step: int
    epoch: int
    size: int
    sha256: str


class File(Answer):
    """What can be downloaded."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    media_type: str = "application/octet-stream"


class Artifact(File):
    """A file of a job's result."""

    id: str


class Split(Answer):
    images: int
    boxes: int


class Dataset(Answer):
    id: str
    name: str
    state: str
    """awaiting_upload, verifying, ready, rejected."""
    classes: tuple[str, ...] | None = None
    splits: dict[str, Split] | None = None
    error: str | None = None
    created_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("ready", "rejected")


class TaskError(Answer):
    """Why what a worker tried came to nothing."""

    code: str
    message: str
    pointer: str = ""


class Plan(Answer):
    """What a job would do, and what it would cost once a worker has tried a few steps; or which students fit."""

    id: str
    state: str
    """measuring, measured, failed."""
    waiting_reason: str | None = None
    phase: str | None = None
    """How far the search for a student is."""
    outline: Outline | None = None
    """None if a student was asked for."""
    measured: Measurement | None = None
    students: BudgetTable | None = None
    """The students that fit a latency, if one was asked for; their `spec` is for `submit`."""
    error: TaskError | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("measured", "failed")


class TaskFile(File):
    role: str
    url: str


class Task(Answer):
    """What a worker works out."""

    id: str
    state: str
    """pending, succeeded, failed."""
    waiting_reason: str | None = None
    files: tuple[TaskFile, ...] = ()
    error: TaskError | None = None
    created_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed")


class Classes(Answer):
    """Of a data set and a network, by name."""

    shared: tuple[str, ...] = ()
    renamed: dict[str, str] = {}
    """The data set's name -> the network's, where they are spelt differently."""
    only_dataset: tuple[str, ...] = ()
    only_network: tuple[str, ...] = ()


class Export(Task):
    """A file that runs without torch."""

    model: str | None = None
    job: str | None = None
    network: str = "student"
    which: str = "last"
    format: str
    result: ExportResult | None = None


class Looker(Answer):
    """A network that looks at a picture."""

    role: str
    """student, teacher, "teacher NAME" where a job has several, control; model."""
    job: str | None = None
    model: str | None = None


class Prediction(Task):
    """What networks find in one picture."""

    model: str | None = None
    job: str | None = None
    networks: tuple[Looker, ...] = ()
    result: PredictionResult | None = None


class Evaluation(Task):
    """How well a network finds the objects of a split."""

    model: str | None = None
    job: str | None = None
    network: str = "student"
    which: str = "last"
    dataset: str
    split: str
    min_size: int
    max_size: int
    classes: Classes
    result: EvaluationResult | None = None


class Model(Answer):
    id: str
    name: str
    state: str
    """awaiting_upload, verifying, ready, rejected."""
    source: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    weights_digest: str | None = None
    sha256: str | None = None
    size: int | None = None
    report: dict[str, Any] | None = None
    error: str | None = None
    content_url: str | None = None
    created_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("ready", "rejected")


class Study(Answer):
    """A grid of jobs: arms x students x seeds."""

    id: str
    name: str
    state: str
    """queued, running, paused, succeeded, failed, cancelled: follows from its jobs."""
    jobs: dict[str, int] = {}
    """{"total": ..., "queued": ..., "running": ..., ...}"""
    arms: tuple[dict[str, Any], ...] = ()
    """Each with `name`, `methods` and `against`, the arm that it is compared with."""
    students: tuple[dict[str, Any], ...] = ()
    seeds: tuple[int, ...] = ()
    spec: dict[str, Any] = {}
    created_at: datetime
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")


class OutlinedRun(Answer):
    """An arm and a student of a study that is not made yet."""

    arm: str
    student: str
    against: str | None = None
    jobs: int
    """One for each seed."""
    spec: dict[str, Any] = {}
    """Of its first job: for `plan`."""


class StudyOutline(Answer):
    """What a study would be."""

    jobs: int
    runs: tuple[OutlinedRun, ...] = ()


class Interval(Answer):
    """A figure with its 95 % interval; no ends where there is one pair of runs, and the interval is over seeds."""

    value: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()


class Quality(Answer):
    """When runs first had the control's final AP: medians over the `reached` of `runs` that did."""

    ap: float
    reached: int = 0
    runs: int = 0
    step: float | None = None
    seconds: float | None = None
    steps_ratio: float | None = None


class StudyRun(Answer):
    seed: int
    job: str | None = None
    state: str | None = None
    failure: str | None = None
    step: int | None = None
    total_steps: int | None = None
    ap: float | None = None
    device_seconds: float = 0.0
    quality_step: int | None = None
    quality_seconds: float | None = None


class BoardRow(Answer):
    """One arm and one student of a study."""

    arm: str
    student: str
    against: str | None = None
    succeeded: int = 0
    ap: float | None = None
    difference: Interval | None = None
    """Over seeds."""
    difference_over_images: Interval | None = None
    """Over seeds and images."""
    images_reason: str | None = None
    gap_closed: Interval | None = None
    gap_closed_over_images: Interval | None = None
    device_seconds: float | None = None
    device_seconds_total: float = 0.0
    quality: Quality | None = None
    runs: tuple[StudyRun, ...] = ()


class Leaderboard(Answer):
    study: str
    state: str
    split: str = "val"
    teachers: tuple[dict[str, Any], ...] = ()
    rows: tuple[BoardRow, ...] = ()
    pending: int = 0
    """Runs whose part of the intervals over images is still being worked out."""


class JobReport(Answer):
    """All that is to be said of a job, beside its control and its teacher."""

    job: str
    name: str
    state: str
    split: str = "val"
    dataset: str | None = None
    dataset_name: str | None = None
    classes: tuple[str, ...] = ()
    networks: tuple[dict[str, Any], ...] = ()
    """Teachers first, then the control, then the student: "role", "ap", "figures", "parameters", "bytes", "gflops",
    "speeds", ..."""
    inspection: dict[str, Any] | None = None
    """How operations, times and pictures came to be; "reason": why there are none, or not yet."""
    pictures: dict[str, Any] | None = None
    """A few images with their boxes and what each network found."""
    pictures_reason: str | None = None
    comparison: dict[str, Any] | None = None
    """"difference" and "gap_closed" with their intervals; None: there is no control."""
    control_request: dict[str, Any] | None = None
    """Where there is no control, a "body" for `submit` that trains it."""
    spec: dict[str, Any] = {}
    seeds: tuple[int, ...] = ()
    machine: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    manifest: dict[str, Any] | None = None
    digests: dict[str, str] = {}
    warnings: tuple[dict[str, Any], ...] = ()
    pending: int = 0
    """How much is still being worked out: ask again."""


class Checkpoint(Answer):
    """Weights of a job that can be promoted to a model."""

    id: str
    step: int | None = None
    size: int
    created_at: datetime
    best: bool = False
    pinned: bool = False


@dataclass(frozen=True)
class LogChunk:
    content: bytes
    attempt: int | None
    next_offset: int
    """Where to continue reading."""
