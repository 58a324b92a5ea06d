"""A step whose losses are not finite changes nothing: no weight, no average, no running statistic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fgd.engine import step
from fgd.errors import Diverged
from fgd.events import Finished, Note, Saved, Stepped, from_line, to_lines
from fgd.spec import JobSpec

pytestmark = pytest.mark.slow
Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """The images of these steps (0, 1, ...) arrive as NaN, and go through the real network."""
    forward = step.forward

    def of(steps: set[int]) -> None:
        number = iter(range(10_000))

        def spoilt(parts: Any, batch: Any) -> Any:
            bad = next(number) in steps
            return forward(parts, replace(batch, images_NCHW=batch.images_NCHW * math.nan) if bad else batch)

        monkeypatch.setattr("fgd.engine.step.forward", spoilt)

    return of


def test_a_skipped_step_is_told_counted_and_harms_nothing(train: Train, make_spec: MakeSpec, spoil: Any) -> None:
    spoil({1, 4})
    run = train(make_spec(schedule={"on_non_finite": "skip", "ema": {"decay": 0.9}}))
    assert run.of(Finished)[0].step == 6
    notes = [note for note in run.of(Note) if note.code == "loss_non_finite"]
    assert [(note.data["step"], note.data["skipped"], note.data["in_a_row"]) for note in notes] == [
        (1, 1, 1),
        (4, 2, 1),
    ]
    assert run.of(Stepped)[-1].values["skipped_steps"] == 2
    assert all(math.isfinite(value) for event in run.of(Stepped) for value in event.values.values())
    for event in run.events:
        assert from_line(to_lines(event)) == event
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(run.result / "student.safetensors").values())
    assert json.loads((run.result / "manifest.json").read_text())["skipped_steps"] == 2


def test_by_default_it_ends_the_training_and_the_weights_before_are_kept(
    train: Train, make_spec: MakeSpec, spoil: Any
) -> None:
    spoil({2})
    runs: list[Any] = []
    with pytest.raises(Diverged, match="step 2"):
        train(make_spec(), stop=lambda run: bool(runs.append(run)))
    saved = runs[0].of(Saved)[-1]
    assert saved.step == 2
    model = torch.load(saved.path, weights_only=True)["model"]
    assert all(bool(tensor.isfinite().all()) for tensor in model.values()), "running statistics too"


def test_ten_in_a_row_end_it_all_the_same(train: Train, make_spec: MakeSpec, spoil: Any) -> None:
    spoil(set(range(2, 100)))
    with pytest.raises(Diverged, match="step 11"):
        train(make_spec(schedule={"on_non_finite": "skip", "epochs": 5, "evaluate_every": 5}))


def test_weights_that_are_spoilt_themselves_are_not_saved_as_finite(train: Train, make_spec: MakeSpec) -> None:
    runs: list[Any] = []
    schedule = {"optimizer": {"kind": "sgd", "lr": 1e38}, "lr_schedule": {"kind": "cosine", "warmup_steps": 0}}
    with pytest.raises(Diverged):
        train(make_spec(schedule=schedule | {"clip_norm": 0}), stop=lambda run: bool(runs.append(run)))
    for saved in runs[0].of(Saved):
        model = torch.load(saved.path, weights_only=True)["model"]
        assert all(bool(tensor.isfinite().all()) for tensor in model.values())
