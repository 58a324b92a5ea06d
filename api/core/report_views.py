"""The report of a job, as JSON has it and the page shows it. Knows no rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from api.core.lifecycle import State, TaskState
from api.core.paired_runs import Interval, Shown, Split
from fgd.evaluated import SplitFigures
from fgd.inspected import Pictures, Speed


class CurvePoint(Shown):
    step: int
    ap: float | None


class ReportedNetwork(Shown):
    """The student, its control, or a teacher."""

    role: Literal["teacher", "control", "student"]
    job: str | None
    model: str | None
    name: str
    title: str | None
    """The network in a few words; null: its recipe cannot be read."""
    state: State | None
    """Of the job."""
    seed: int | None
    parameters: int | None
    gflops: float | None
    """10^9 floating point operations for one image, a multiplication with its addition as two; null: nobody counted
    them yet."""
    speeds: list[Speed]
    """On a worker, of one batch of 1 and of 8 images; the networks of the report took turns."""
    bytes: int | None
    """Of its file of weights."""
    sha256: str | None
    """Of this file."""
    ap: float | None
    """0-100, of the last evaluation on the split."""
    figures: SplitFigures | None
    figures_of: str | None
    """What they are of: detections.npz of the result, or the id of an evaluation."""
    figures_reason: str | None
    """Why there are none, or not yet."""
    latency: dict[str, Any] | None
    """As its manifest says it, where the job's spec has `latency_budget_ms`; null: it has none."""
    curve: list[CurvePoint]
    """AP on the validation images, as it was trained."""


class Comparison(Shown):
    """Student minus control, AP points, runs paired by seed."""

    study: str | None
    arm: str | None
    against: str | None
    """The study's arm that the control is of."""
    difference: Interval | None
    """Over seeds, with Student's t."""
    difference_over_images: Interval | None
    """Over seeds and images, by bootstrap; with one seed over images alone."""
    images_reason: str | None
    """Why there is none, or not yet."""
    gap_closed: Interval | None
    """Share of the gap between control and teacher: 1 is a student as good as the teacher."""
    gap_closed_over_images: Interval | None


class ControlRequest(Shown):
    """How to have the control trained, where there is none."""

    body: dict[str, Any]
    """For POST /v1/jobs."""
    command: str
    curl: str
    """$API: the service's address with /v1."""


class ReportInspection(Shown):
    """How operations, times and pictures came to be."""

    state: TaskState
    reason: str | None
    """Why there is nothing yet, or why it failed."""
    input: tuple[int, int] | None
    """Height and width of the images that were counted and timed."""
    device: str | None
    threads: int | None
    """Of the processor."""
    not_timed: str | None
    """Why larger batches were not timed."""
    at: datetime | None


class ReportWarning(Shown):
    code: str
    message: str
    at: datetime


class JobReport(Shown):
    format: Literal["fgd-report/1"] = "fgd-report/1"
    job: str
    name: str
    state: State
    created_at: datetime
    finished_at: datetime | None
    split: Split
    dataset: str
    dataset_name: str
    classes: list[str]
    networks: list[ReportedNetwork]
    """Teachers first, then the control, then the student."""
    inspection: ReportInspection | None
    """What a worker counted, timed and drew for this report, after it was asked for; null: the job has no result."""
    pictures: Pictures | None
    """A few images with their boxes and what each network found."""
    pictures_reason: str | None
    """Why there are none, or not yet."""
    comparison: Comparison | None
    """null: there is no control to compare with."""
    control_request: ControlRequest | None
    """Only where there is no control: a job that trains it. null for a job that has no teacher: it is one."""
    spec: dict[str, Any]
    seeds: list[int]
    """Of the runs that are compared, else the job's own."""
    machine: dict[str, Any]
    versions: dict[str, Any]
    manifest: dict[str, Any] | None
    """manifest.json of the result."""
    digests: dict[str, str]
    """SHA-256 of each file of the result; "tensors": of the student's tensors; "dataset/...": of what it began with."""
    warnings: list[ReportWarning]
    pending: int
    """How many things are still being worked out, such as the figures of a file; ask again later."""
