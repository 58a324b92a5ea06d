"""Teacher, control and student beside each other: what is answered. Made by side_by_side.py."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from api.core.paired_runs import Shown, Split

_JOB, _DATASET = "job_0192f0c1a7b87cc2a3d4e5f60718293a", "ds_0192f0c1a7b87cc2a3d4e5f60718293a"
_PICTURE = f"/v1/datasets/{_DATASET}/samples/16/image?split=val"
_TABLE: dict[str, Any] = {
    "job": _JOB, "dataset": _DATASET, "split": "val", "splits": ["val", "test"],
    "classes": ["cat", "dog"], "iou": 0.5, "score": 0.3, "against": "control",
    "networks": [
        {
            "role": "teacher", "job": None, "model": "mdl_0192f0c1a7b87cc2a3d4e5f60718293a",
            "evaluation": None, "reason": "it was not evaluated on these images",
            "evaluate": {"job": _JOB, "network": "teacher", "split": "val"}, "unknown": [],
        },
        {
            "role": "control", "job": "job_0192f0c1a7b87cc2a3d4e5f60718293b", "model": None,
            "evaluation": None, "reason": None, "evaluate": None, "unknown": [],
        },
        {
            "role": "student", "job": _JOB, "model": None, "evaluation": None, "reason": None,
            "evaluate": None, "unknown": [],
        },
    ],
    "worse": 41, "better": 87, "total": 500,
    "items": [
        {
            "image_id": 17, "name": "000000000139.jpg", "sample": 16, "image_url": _PICTURE,
            "boxes": 8, "apart": 5, "worse_by": -3,
            "counts": [
                {"role": "control", "found": 3, "missed": 5, "false": 2},
                {"role": "student", "found": 6, "missed": 2, "false": 2},
            ],
        }
    ],
}  # fmt: skip
_IMAGE: dict[str, Any] = {
    "image_id": 17, "name": "000000000139.jpg", "width": 640, "height": 426, "sample": 16,
    "image_url": _PICTURE,
    "boxes": [{"box": [12.0, 30.5, 200.0, 310.0], "name": "cat", "label": 1, "crowd": False}],
    "networks": [
        {
            "role": "student",
            "detections": [
                {
                    "box": [13.1, 29.0, 196.4, 305.2], "name": "cat", "label": 1, "score": 0.91,
                    "hit": True,
                }
            ],
            "found_at": [0.91],
            "counted": [True],
        }
    ],
}  # fmt: skip


class ComparedNetwork(Shown):
    role: str
    """"student", "control", "teacher"; "teacher NAME" where a job has several teachers."""
    job: str | None
    model: str | None
    """Where it comes from, as far as that has an id here."""
    evaluation: str | None
    """The evaluation that its detections are of, or will be of; null: they are of the job's result."""
    reason: str | None
    """Why nothing is known of what it finds on these images; null: it is known."""
    evaluate: dict[str, Any] | None
    """Where an evaluation would tell: a body for POST /v1/evaluations."""
    unknown: list[str]
    """Classes of the data set that it does not know. Its boxes of these are not counted as missed."""


class ImageCounts(Shown):
    """Of one network on one image."""

    role: str
    found: int
    """Boxes that it finds."""
    missed: int
    """Boxes that it does not find."""
    false: int
    """Detections of no box."""


class ComparedImage(Shown):
    image_id: int
    """As in detections.npz."""
    name: str
    """The file's name in the data set."""
    sample: int | None
    """Its place in the split: `n` of GET /v1/datasets/{id}/samples/{n}."""
    image_url: str | None
    boxes: int
    """Of the ground truth, without crowd regions."""
    apart: int | None
    """How much the student differs from the other network here; null: it is compared with none."""
    worse_by: int | None
    """The student's missed boxes and false detections less the other's; below 0 it is better."""
    counts: list[ImageCounts]
    """Of every network whose detections are known, in the order of `networks`."""


class ComparedDetections(Shown):
    model_config = ConfigDict(json_schema_extra={"examples": [_TABLE]})

    job: str
    dataset: str
    split: Split
    splits: list[str]
    """Whose detections the result has."""
    classes: list[str]
    iou: float
    """A detection finds the box that it overlaps so much."""
    score: float
    """Detections with a lower one do not count."""
    against: str | None
    """The network that the student is compared with; null: nothing is known of any other, and images stand by the
    student's own mistakes."""
    networks: list[ComparedNetwork]
    """Teachers first, then the control, then the student."""
    worse: int
    """Images on which the student makes more mistakes than the other network, missed boxes and false detections
    together."""
    better: int
    total: int
    """Images that pass the filters."""
    items: list[ComparedImage]
    """Those that differ most first."""


class TruthBox(Shown):
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the image as stored."""
    name: str
    label: int
    """The class's number, counted from 1."""
    crowd: bool


class FoundBox(Shown):
    box: tuple[float, float, float, float]
    name: str
    label: int
    score: float
    hit: bool | None
    """Whether it takes a box of the ground truth; null: it lies in a crowd region, and does not count."""


class NetworkBoxes(Shown):
    role: str
    detections: list[FoundBox]
    """The highest score first."""
    found_at: list[float | None]
    """Of each box of the ground truth, in their order, the score of the detection that takes it: with a higher limit it
    is missed. null: none does."""
    counted: list[bool]
    """Of each box of the ground truth whether it counts: not crowd regions, nor classes that the network does not
    know."""


class ImageBoxes(Shown):
    model_config = ConfigDict(json_schema_extra={"examples": [_IMAGE]})

    image_id: int
    name: str
    width: int
    height: int
    sample: int | None
    image_url: str | None
    boxes: list[TruthBox]
    networks: list[NetworkBoxes]
    """Those whose detections are known."""
