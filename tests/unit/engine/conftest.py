"""A data set and a teacher small enough to train in a test, and a spec to train them with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgd.data.digits import compose
from fgd.events import Event
from fgd.spec import JobSpec

CLASSES = ("0", "7")
SMALL = {"backbone": "mobilenet_v3_small", "fpn_channels": 64}
"""A training of this student takes half the time of one of resnet18, whose checkpoints are four times as large."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    compose(
        folder, counts={"train": 12, "val": 6, "test": 5}, size=64, classes=CLASSES, box_px=(16, 40), per_image=(1, 2)
    )
    return folder


MakeSpec = Callable[..., JobSpec]


@pytest.fixture(scope="session")
def make_spec(digits: Path) -> MakeSpec:
    def make(**changes: Any) -> JobSpec:
        schedule = {"epochs": 2, "batch_size": 4, "min_size": 64, "max_size": 64, "flip": "both"}
        plain = {
            "name": "tiny",
            "teacher": None,
            "student": SMALL,
            "dataset": {"path": str(digits)},
            "methods": [],
            "schedule": schedule | changes.pop("schedule", {}),
            "resources": {"device": "cpu", "threads": 1, "focus_images": 0},
        }
        return JobSpec.model_validate_json(json.dumps(plain | changes))

    return make


class Run:
    """What one training said and left."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.events: list[Event] = []

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def result(self) -> Path:
        return self.out / "result"


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    from fgd.engine.loop import run

    def train(spec: JobSpec, *, resume: Path | None = None, stop: Callable[[Run], bool] = lambda _: False) -> Run:
        outcome = Run(tmp_path_factory.mktemp("run"))
        run(spec, outcome.out, resume=resume, emit=outcome.events.append, stop=lambda: stop(outcome))
        return outcome

    return train


@pytest.fixture(scope="session")
def easy_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images to learn to find digits in others."""
    folder = tmp_path_factory.mktemp("data") / "easy"
    counts = {"train": 60, "val": 8, "test": 8}
    compose(folder, counts=counts, size=64, classes=CLASSES, box_px=(24, 40), per_image=(1, 2))
    return folder


@pytest.fixture(scope="session")
def fit(train: Callable[..., Run], make_spec: MakeSpec, easy_digits: Path) -> Run:
    """A teacher that has really learned to find the easy digits: AP50 over 50, in half a minute."""
    schedule = {"epochs": 16, "flip": "none", "evaluate_every": 16, "optimizer": {"kind": "adamw", "lr": 6e-4}}
    student = {"backbone": "resnet18", "fpn_channels": 64}
    return train(make_spec(student=student, dataset={"path": str(easy_digits)}, schedule=schedule, seed=7))


@pytest.fixture(scope="session")
def teacher(train: Callable[..., Run], make_spec: MakeSpec) -> Path:
    """A result folder: hardly trained, wider than the student; jobs that use it allow it to be unfit."""
    spec = make_spec(student={"backbone": "resnet18", "fpn_channels": 96}, schedule={"epochs": 1}, seed=7)
    return train(spec).result
