"""Scoring a detector during a training and at its end, and writing the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fgd.data.loader import Dataset
from fgd.data.transforms import Transform
from fgd.detectors import Detector
from fgd.engine import checkpoint, device, weights
from fgd.engine.checkpoint import TrainingState
from fgd.engine.evaluate import Evaluation, evaluate
from fgd.engine.prepare import Training
from fgd.events import Emit, Evaluated, Finished, Note, Phase
from fgd.spec import JobSpec, Schedule
from fgd.statistics.detections import SplitDetections

Measure = Callable[[JobSpec, Detector, Dataset, Transform, int, int, Emit], dict[str, Any] | None]
"""Of (spec, student, images, transform, step, epoch, emit): what the manifest says of the student's latency."""


def not_measured(*_: object) -> None:
    """Where nobody asks for the latency."""


@dataclass(frozen=True)
class Kept:
    """What was found on the validation images after a step."""

    step: int
    detections: SplitDetections


def choose_best(
    parts: Training,
    shown: Detector,
    state: TrainingState,
    best: dict[str, Tensor] | None,
    total: int,
    emit: Emit,
    check_stop: Callable[[], None],
    epoch: int,
    kept: Kept | None,
) -> Kept | None:
    """Asked to finish early: `shown` becomes the best that was evaluated; the last weights are, if nothing was yet.

    kept: of the last evaluation. Returns that of the evaluation that is the last now.
    """
    if best is not None:
        shown.module.load_state_dict(best, strict=True)
    measured = state.best_scores if best is not None else state.scores if state.evaluated_step == state.step else {}
    if not measured:
        emit(Phase(phase="evaluating"))
        evaluation = score(parts, shown, parts.val, check_stop)
        measured, kept = evaluation.scores, Kept(state.step, evaluation.detections)
        tell_undecodable(parts, emit)
        emit(Evaluated(step=state.step, epoch=epoch, split="val", values=dict(measured)))
    state.scores = dict(measured)
    if best is None:
        state.best_ap, state.best_step = measured["ap"], state.step
    message = (
        f"asked to finish early: ended after step {state.step} of {total}; the result has the weights of step "
        f"{state.best_step}, AP {state.best_ap:.1f}"
    )
    data = {"step": state.step, "total_steps": total, "weights_of_step": state.best_step}
    emit(Note(code="finished_early", message=message, data=data))
    return kept


def score(parts: Training, detector: Detector, dataset: Dataset, check_stop: Callable[[], None]) -> Evaluation:
    parts.ranks.share_buffers(detector.module)
    return evaluate(
        detector,
        dataset,
        parts.transform,
        batch_size=parts.spec.schedule.batch_size,
        device=parts.machine.device,
        check_stop=check_stop,
        ranks=parts.ranks,
    )


def tell_undecodable(parts: Training, emit: Emit) -> None:
    """One note an image that was left out since the last look, with how many of its split are by now."""
    for dataset in filter(None, (parts.train, parts.unlabelled, parts.val, parts.test)):
        for image in dataset.undecodable():
            count = len(dataset.broken)
            instead = (
                "another image is used instead" if dataset.split in ("train", "unlabelled") else "it is not scored"
            )
            message = f"{image.file} in {dataset.split}: {image.reason}; {instead}"
            data = {"file": image.file, "split": dataset.split, "count": count}
            emit(Note(code="image_undecodable", message=message, data=data, level="warning"))


def finish(
    parts: Training,
    shown: Detector,
    state: TrainingState,
    best: dict[str, Tensor] | None,
    out: Path,
    emit: Emit,
    check_stop: Callable[[], None],
    measure: Measure,
    epoch: int,
    kept: Kept | None,
    dataset_name: str,
    stopped: bool = False,
) -> None:
    """Score the test images, write the result, say so. The last weights, or their average, are the result; nothing is
    selected. stopped: someone asked for an early finish, and `shown` holds the best. kept: of the last evaluation."""
    metrics, detections = {"val": state.scores}, {"val": on_val(parts, shown, state, emit, check_stop, kept, stopped)}
    if parts.test is not None:
        emit(Phase(phase="testing"))
        tested = score(parts, shown, parts.test, check_stop)
        metrics["test"], detections["test"] = tested.scores, tested.detections
        tell_undecodable(parts, emit)
        emit(Evaluated(step=state.step, epoch=epoch, split="test", values=dict(metrics["test"])))
    if not parts.ranks.first:
        return
    latency = measure(parts.spec, shown, parts.val, parts.transform, state.step, epoch, emit)
    emit(Phase(phase="exporting"))
    tensors = shown.module.state_dict()
    weights_digest = checkpoint.digest_of_tensors(tensors)
    machine = parts.machine
    manifest = {
        "format": "fgd-manifest/1",
        **parts.identity,
        "dataset_name": dataset_name,
        **checkpoint.told_calibrations(parts.calibrations),
        **taught_classes(parts),
        **({"balance": dict(parts.balance)} if parts.balance else {}),
        "metrics": {name: {k: finite(v) for k, v in values.items()} for name, values in metrics.items()},
        "best": {"step": state.best_step, "val_ap": finite(state.best_ap)},
        **({"latency": latency} if latency is not None else {}),
        "steps": state.step,
        "weights": told_weights(parts.spec.schedule, state, stopped),
        "ended_early": epoch < parts.spec.schedule.epochs,
        "stopped_by_request": stopped,
        "skipped_steps": state.skipped,
        "weights_digest": weights_digest,
        "parameters": sum(p.numel() for p in parts.student.module.parameters()),
        "machine": {"device": machine.device_name, "threads": machine.threads, "precision": machine.precision}
        | ({"devices": parts.ranks.size} if parts.ranks.size > 1 else {}),
        "versions": device.versions(),
    }
    best = best if state.best_step != state.step else None
    files = weights.export(out / "result", shown, manifest, best, detections)
    emit(Finished(step=state.step, folder=str(out / "result"), files=files, weights_digest=weights_digest))


def on_val(
    parts: Training,
    shown: Detector,
    state: TrainingState,
    emit: Emit,
    check_stop: Callable[[], None],
    kept: Kept | None,
    stopped: bool,
) -> SplitDetections:
    """What `shown` finds on the validation images. They are looked at again only where the last evaluation was of other
    weights, or before this process resumed the training."""
    if kept is not None and kept.step == (state.best_step if stopped else state.step):
        return kept.detections
    emit(Phase(phase="evaluating"))
    found = score(parts, shown, parts.val, check_stop).detections
    tell_undecodable(parts, emit)
    return found


def taught_classes(parts: Training) -> dict[str, Any]:
    """By which teacher, where one does not teach all, or there are several."""
    teachers = parts.teachers
    if len(teachers) < 2 and not any(each.classes.some for each in teachers.values()):
        return {}
    taught = [{"teacher": name or None, "classes": list(each.classes.names)} for name, each in teachers.items()]
    return {"taught": taught}


def told_weights(schedule: Schedule, state: TrainingState, stopped: bool) -> str:
    what = "average of the steps' weights (ema)" if schedule.ema else "weights"
    if stopped:
        return f"{what} of the best evaluation, step {state.best_step}; the training was asked to finish early"
    return what if schedule.ema else "of the last step"


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
