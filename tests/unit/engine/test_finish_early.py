"""Asked to finish early, a training exports the best that was evaluated; and a lack of memory splits its batches."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fgd.engine.evaluate import Evaluation
from fgd.engine.identity import checkpoint_digest
from fgd.engine.result import score
from fgd.errors import Stopped
from fgd.events import Evaluated, Finished, Note, Saved, Started
from fgd.process.finish_file import FINISH, ask_to_finish
from fgd.result_files import DETECTIONS
from fgd.spec import JobSpec, Schedule
from fgd.statistics import detections
from fgd.statistics.average_precision import average_precision
from fgd.statistics.matching import match

Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
SAVED_OFTEN = {"epochs": 4, "checkpoint_s": 0.001}


def without_ap(found: Evaluation) -> Evaluation:
    return dataclasses.replace(found, scores=found.scores | {"ap": math.nan})


def at_step(step: int) -> Callable[[Any], bool]:
    """Asks for the finish once a checkpoint of `step` was written; never for an end."""

    def ask(run: Any) -> bool:
        if any(saved.step >= step for saved in run.of(Saved)):
            ask_to_finish(run.out)
        return False

    return ask


def manifest(run: Any) -> dict[str, Any]:
    return dict(json.loads((run.result / "manifest.json").read_text()))


@pytest.mark.slow
def test_the_best_evaluated_weights_become_the_result(train: Train, make_spec: MakeSpec) -> None:
    run = train(make_spec(schedule=SAVED_OFTEN), stop=at_step(5))
    (finished,), (note,) = run.of(Finished), [n for n in run.of(Note) if n.code == "finished_early"]
    assert finished.step < 12
    told = manifest(run)
    scored = {event.step: event.values["ap"] for event in run.of(Evaluated) if event.split == "val"}
    best = max(scored, key=lambda step: (scored[step], -step))
    assert note.data == {"step": finished.step, "total_steps": 12, "weights_of_step": best}
    assert (told["best"]["step"], told["metrics"]["val"]["ap"]) == (best, scored[best])
    assert told["stopped_by_request"]
    assert f"step {best}" in told["weights"]
    newest = torch.load(run.of(Saved)[-1].path, weights_only=True)
    result = load_file(run.result / "student.safetensors")
    assert all(torch.equal(newest["best"][f"{name}"], tensor) for name, tensor in result.items())
    assert not (run.result / "best.safetensors").exists()
    found = average_precision(match(detections.read(run.result / DETECTIONS)["val"]))
    assert found == pytest.approx(scored[best], abs=1e-9), "those of the weights that became the result"
    assert not (run.out / FINISH).exists()


@pytest.mark.slow
def test_what_was_never_evaluated_is_evaluated_once(train: Train, make_spec: MakeSpec) -> None:
    def at_once(run: Any) -> bool:
        ask_to_finish(run.out)
        return False

    run = train(make_spec(schedule=SAVED_OFTEN), stop=at_once)
    (finished,) = run.of(Finished)
    assert finished.step == 1, "one step is the least that can be called a training"
    assert [event.split for event in run.of(Evaluated)] == ["val", "test"]
    assert manifest(run)["best"]["step"] == 1


@pytest.mark.slow
def test_no_ap_at_all_leaves_a_manifest_that_is_json(
    train: Train, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no validation image has a box."""
    real = score
    monkeypatch.setattr("fgd.engine.result.score", lambda *told: without_ap(real(*told)))

    def at_once(run: Any) -> bool:
        ask_to_finish(run.out)
        return False

    run = train(make_spec(schedule=SAVED_OFTEN), stop=at_once)
    assert "NaN" not in (run.result / "manifest.json").read_text()
    assert manifest(run)["best"] == {"step": 1, "val_ap": None}


@pytest.mark.slow
def test_a_checkpoint_goes_on_just_to_export_and_in_smaller_batches(train: Train, make_spec: MakeSpec) -> None:
    spec = make_spec(schedule={"epochs": 2, "checkpoint_s": 0.001})
    interrupted: list[Any] = []

    def stop(run: Any) -> bool:
        interrupted[:] = [run]
        return any(saved.step >= 2 for saved in run.of(Saved))

    with pytest.raises(Stopped):
        train(spec, stop=stop)
    saved = interrupted[0].of(Saved)[-1]
    halved = spec.but(schedule=spec.schedule.halved())
    assert (halved.schedule.batch_size, halved.schedule.accumulate) == (2, 2)
    whole = train(halved, resume=Path(saved.path))
    assert whole.of(Started)[0].step == saved.step
    assert whole.of(Finished)[0].step == 6

    def at_once(run: Any) -> bool:
        ask_to_finish(run.out)
        return False

    exported = train(spec, resume=Path(saved.path), stop=at_once)
    assert exported.of(Finished)[0].step == saved.step, "no step was added"
    assert detections.read(exported.result / DETECTIONS).keys() == {"val", "test"}, "val was looked at for it"


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 1), [(4, 2), (2, 4), (1, 8)]), ((6, 2), [(3, 4), (1, 12)]), ((7, 1), [(1, 7)]), ((1, 3), [])],
)
def test_halves_keep_the_images_of_a_step_and_the_checkpoint(
    make_spec: MakeSpec, before: tuple[int, int], after: list[tuple[int, int]]
) -> None:
    schedule: Schedule | None = Schedule(batch_size=before[0], accumulate=before[1])
    assert schedule is not None
    digest = checkpoint_digest(make_spec().but(schedule=schedule), {})
    found = []
    while (schedule := schedule.halved()) is not None:
        found.append((schedule.batch_size, schedule.accumulate))
        assert checkpoint_digest(make_spec().but(schedule=schedule), {}) == digest
    assert found == after


def test_no_half_has_more_batches_to_a_step_than_may_be() -> None:
    assert Schedule(batch_size=2, accumulate=600).halved() is None
