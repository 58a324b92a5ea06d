"""Averaged weights are what is evaluated and exported; an early end keeps the last weights. Both resume to the byte:
the steps after a resume are the same calls on the same values, on any processor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine import checkpoint, loop, weights
from fgd.engine.average import Average
from fgd.engine.checkpoint import TrainingState
from fgd.engine.evaluate import Evaluation, evaluate
from fgd.errors import Stopped
from fgd.events import Evaluated, Finished, Note, Saved
from fgd.recipe import Recipe
from fgd.spec import EMA, EarlyStop, JobSpec
from tests.rounding import FLOAT32

pytestmark = pytest.mark.slow
Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
AVERAGED = {"ema": {"decay": 0.9, "warmup": 2}, "checkpoint_s": 0.001}


def student() -> Any:
    torch.manual_seed(0)
    detector = FCOS(backbone="resnet18", fpn_channels=64)
    return build(Recipe(detector=detector, classes=("a",), min_size=64, max_size=64))


@pytest.mark.numeric
def test_the_average_is_the_written_sum_and_counters_are_copied() -> None:
    network = student()
    average = Average(network, EMA(decay=0.6, warmup=1))
    names = ("module.head.classification_head.cls_logits.weight", "module.backbone.body.bn1.running_mean")
    expected = {name: network.state_dict()[name].double().clone() for name in names}
    for step in range(1, 6):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(step)
        average.update(network, step)
        kept = min(0.6, step / (step + 1))
        for name in names:
            expected[name] = kept * expected[name] + (1 - kept) * network.state_dict()[name].double()
    found = average.state_dict()
    for name in names:
        # Each of 5 updates rounds three times, on any processor; nothing cancels, for all that is added is positive.
        assert torch.allclose(found[name].double(), expected[name], rtol=15 * FLOAT32), name
        assert found[name].dtype == torch.float32
    assert int(found["module.backbone.body.bn1.num_batches_tracked"]) == 15
    assert not average.detector.training
    assert network.training


@pytest.mark.parametrize(("warmup", "shares"), [(0, [0.9, 0.9, 0.9]), (1, [1 / 2, 2 / 3, 3 / 4]), (8, [1 / 9, 0.2])])
def test_the_average_grows_in(warmup: int, shares: list[float]) -> None:
    average = Average(student(), EMA(decay=0.9, warmup=warmup))
    assert [average.keeps(step) for step in range(1, len(shares) + 1)] == pytest.approx(shares)
    assert average.keeps(10_000) == 0.9


@pytest.fixture(scope="module")
def averaged(train: Train, make_spec: MakeSpec) -> Any:
    return train(make_spec(schedule=AVERAGED))


@pytest.mark.numeric
def test_the_result_is_the_average_and_has_the_reported_scores(
    averaged: Any, train: Train, make_spec: MakeSpec
) -> None:
    saved = averaged.of(Saved)[-1]
    contents = torch.load(saved.path, weights_only=True)
    result = weights.read_tensors(averaged.result / "student.safetensors")
    (finished,) = averaged.of(Finished)
    assert checkpoint.digest_of_tensors(result) == finished.weights_digest
    prefix = "module."
    average = {k.removeprefix(prefix): v for k, v in contents["average"].items()}
    assert checkpoint.digest_of_tensors(average) == finished.weights_digest
    last = {k.removeprefix("student." + prefix): v for k, v in contents["model"].items() if k.startswith("student.")}
    plain = train(make_spec())
    assert checkpoint.digest_of_tensors(last) == plain.of(Finished)[0].weights_digest, "training itself is unchanged"
    assert plain.of(Finished)[0].weights_digest != finished.weights_digest
    manifest = json.loads((averaged.result / "manifest.json").read_text())
    assert "average" in manifest["weights"]
    assert manifest["spec"]["schedule"]["ema"] == {"decay": 0.9, "warmup": 2}


@pytest.mark.numeric
def test_an_averaged_training_resumes_to_the_byte(averaged: Any, train: Train, make_spec: MakeSpec) -> None:
    first: list[Any] = []

    def stop(run: Any) -> bool:
        first[:] = [run]
        return len(run.of(Saved)) >= 2 and run.of(Saved)[-1].step >= 4

    with pytest.raises(Stopped):
        train(make_spec(schedule=AVERAGED), stop=stop)
    saved = first[0].of(Saved)[-1]
    rest = train(make_spec(schedule=AVERAGED), resume=Path(saved.path))
    assert rest.of(Finished)[0].weights_digest == averaged.of(Finished)[0].weights_digest
    assert rest.of(Evaluated)[-1].values == averaged.of(Evaluated)[-1].values


def test_what_counts_as_an_improvement() -> None:
    state, rule = TrainingState(), EarlyStop(patience=2, min_delta=1.0)
    told = []
    for ap in (5.0, 5.9, 6.5, 6.4, 7.5, float("nan")):
        state.scores = {"ap": ap}
        loop.count(state, rule)
        told.append((state.counted_ap, state.stale, loop.stale(state, rule)))
    assert told == [
        (5.0, 0, False), (5.0, 1, False), (6.5, 0, False), (6.5, 1, False), (6.5, 2, True), (6.5, 3, True)
    ]  # fmt: skip


EARLY = {"epochs": 6, "early_stop": {"patience": 2, "min_delta": 50.0}}


@pytest.fixture(scope="module")
def early(train: Train, make_spec: MakeSpec) -> Any:
    """No evaluation gains 50 AP, so the training ends after the third."""
    return train(make_spec(schedule=EARLY))


def test_a_training_without_gain_ends_early_with_its_last_weights(early: Any) -> None:
    (finished,) = early.of(Finished)
    assert finished.step == 9, "three epochs of three steps"
    assert [event.epoch for event in early.of(Evaluated)] == [1, 2, 3, 3], "the last scores the test images"
    (note,) = [note for note in early.of(Note) if note.code == "early_stopped"]
    assert note.data == {"step": 9, "total_steps": 18}
    contents = torch.load(early.of(Saved)[-1].path, weights_only=True)
    last = {k.removeprefix("student.module."): v for k, v in contents["model"].items() if k.startswith("student.")}
    assert checkpoint.digest_of_tensors(last) == finished.weights_digest
    manifest = json.loads((early.result / "manifest.json").read_text())
    assert (manifest["steps"], manifest["ended_early"]) == (9, True)


def test_an_early_end_survives_a_resume(early: Any, train: Train, make_spec: MakeSpec) -> None:
    """From the checkpoint before the last evaluation that counted, and from the one after it."""
    for saved in early.of(Saved)[-2:]:
        rest = train(make_spec(schedule=EARLY), resume=Path(saved.path))
        assert rest.of(Finished)[0].step == 9
        assert rest.of(Finished)[0].weights_digest == early.of(Finished)[0].weights_digest


def test_a_training_that_gains_goes_on(train: Train, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = iter(range(1, 10))

    def better(*told: Any, **named: Any) -> Evaluation:
        return dataclasses.replace(evaluate(*told, **named), scores={"ap": float(next(rising))})

    monkeypatch.setattr("fgd.engine.result.evaluate", better)
    run = train(make_spec(schedule={"epochs": 3, "early_stop": {"patience": 1}}))
    assert run.of(Finished)[0].step == 9
    assert not [note for note in run.of(Note) if note.code == "early_stopped"]
