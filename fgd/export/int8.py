"""A float32 ONNX file in INT8: as much of it as keeps the AP, and only if that is worth it.

The file's boxes are those that onnxruntime finds when a picture is prepared as `usage.py` beside it does: AP is of
them, of every validation image. Knows nothing of torch's networks.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from fgd.budget import Latency
from fgd.class_names import match_classes
from fgd.data.formats import open_index
from fgd.data.loader import Dataset, ground_truth_coco
from fgd.data.tree import Split
from fgd.engine.device import processor_name
from fgd.engine.evaluate import Found, average_precision, with_truth
from fgd.engine.teacher import evenly_spaced, relabelled
from fgd.errors import DatasetError, UserError
from fgd.evaluated import ClassFigures
from fgd.export import quantise, usage, verify
from fgd.export.quantise import Part
from fgd.exported import MAX_AP_LOSS, FileFigures, Int8Report, LeftOut, Trial
from fgd.process import stopwatch
from fgd.statistics.detections import found_as_coco
from fgd.student_search import in_turn

CALIBRATION_IMAGES = 64
"""Of the training split, evenly spaced."""
ROUNDS, ROUNDS_S = 60, 20.0
"""The two files run in turn so many times, or as often as they can in so many seconds."""
MOST_TOLD = 4
"""Trials that a refusal tells of."""


@dataclass(frozen=True)
class Int8Request:
    dataset: Path
    """A folder of any format: its training images calibrate, its validation images judge."""
    max_ap_loss: float = MAX_AP_LOSS


@dataclass(frozen=True)
class Images:
    calibrate: Dataset
    judge: Dataset


@dataclass(frozen=True)
class Choice:
    """Which parts stay float32, and what was tried on the way."""

    left_out: tuple[Part, ...]
    trials: tuple[Trial, ...]


class NotWorthIt(UserError):
    """The file in INT8 would be worse than was allowed, or slower and worse than the one in float32."""

    def __init__(self, message: str, pointer: str) -> None:
        super().__init__(message, pointer)
        self.pointer = pointer
        """The option that would have to be another one."""

    def __str__(self) -> str:
        return str(self.args[0])


def into_int8(path: Path, asked: Int8Request) -> Int8Report:
    """Put the file's INT8 version into its place. Raises NotWorthIt, DatasetError, and leaves it as it is."""
    session = verify.open_session(path)
    classes = usage.inputs_of(session).classes
    images = images_of(asked.dataset, classes)
    before, boxes = scores_of(session, images.judge), box_counts(images.judge)
    if not before["ap"] >= 0:
        raise DatasetError(f"{asked.dataset}: its val images have no box of the network's classes, so AP says nothing")
    model = quantise.load(path)
    parts = quantise.parts_of(model)
    seen = quantise.ranges(model, parts, canvases(session, images.calibrate), verify.session_options())
    with TemporaryDirectory(prefix="fgd-int8-") as folder:
        file, found = Path(folder) / "int8.onnx", [before]

        def ap_without(left_out: Collection[Part]) -> float:
            onnx.save(quantise.quantised(model, [part for part in parts if part not in left_out], seen), file)
            found.append(scores_of(verify.open_session(file), images.judge))
            return found[-1]["ap"]

        choice = choose(parts, ap_without, before["ap"], asked.max_ap_loss)
        after = found[-1]  # what was tried last was chosen, and lies there
        calibration_images = len(images.calibrate) - len(images.calibrate.broken)
        say_so(
            file,
            float32_layers=[part.layers for part in choice.left_out],
            calibration_images=calibration_images,
            ap=after["ap"],
            ap_float32=before["ap"],
        )
        after_session = verify.open_session(file)
        latency = race(session, after_session, next(canvases(session, images.judge)))
        report = Int8Report(
            calibration_images=calibration_images,
            images=len(images.judge) - len(images.judge.broken),
            undecodable=len(images.judge.broken),
            max_ap_loss=asked.max_ap_loss,
            ap_loss=before["ap"] - after["ap"],
            float32=figures(before, boxes, path, latency["float32"]),
            int8=figures(after, boxes, file, latency["int8"]),
            int8_weights=sum(part.weights for part in parts if part not in choice.left_out),
            left_out=tuple(why(part, choice) for part in choice.left_out),
            trials=choice.trials,
            device=processor_name(),
            threads=after_session.get_session_options().intra_op_num_threads,
        )
        refuse_if_slower_and_worse(report)
        shutil.copyfile(file, path)
    return report


# --- what stays float32 -----------------------------------------------------------------------------------------


def choose(
    parts: Sequence[Part], ap_without: Callable[[Collection[Part]], float], ap: float, max_ap_loss: float
) -> Choice:
    """The first of these that loses no more than that: nothing in float32; one part, those with the fewest weights
    first; the two, three, ... parts that each won most alone. At least one stays in INT8.

    ap: of the float32 file. Raises NotWorthIt.
    """
    trials: list[Trial] = []

    def good(*left_out: Part) -> bool:
        trials.append(Trial(left_out=tuple(part.layers for part in left_out), ap=ap_without(left_out)))
        return ap - trials[-1].ap <= max_ap_loss

    if not parts:
        raise NotWorthIt("the network has no convolution or linear layer that could be INT8", "--int8")
    if good():
        return Choice((), tuple(trials))
    for part in parts if len(parts) > 1 else ():
        if good(part):
            return Choice((part,), tuple(trials))
    alone = {part.layers: trial.ap for part, trial in zip(parts, trials[1:], strict=False)}
    best_first = sorted(parts, key=lambda part: -alone.get(part.layers, 0.0))
    for count in range(2, len(parts)):
        if good(*best_first[:count]):
            return Choice(tuple(best_first[:count]), tuple(trials))
    closest = sorted(trials, key=lambda trial: -trial.ap)[:MOST_TOLD]
    told = "; ".join(
        f"AP {trial.ap:.1f} with {' + '.join(trial.left_out) or 'nothing'} in float32" for trial in closest
    )
    raise NotWorthIt(
        f"no file in INT8 loses at most {max_ap_loss:g} of the float32 file's AP of {ap:.1f}, so nothing was written; "
        f"tried {len(trials)}, the best of them: {told}. Allow a larger loss, or export without INT8",
        "--max-ap-loss",
    )


def why(part: Part, choice: Choice) -> LeftOut:
    alone = next(trial.ap for trial in choice.trials if trial.left_out == (part.layers,))
    return LeftOut(layers=part.layers, weights=part.weights, ap_gain=alone - choice.trials[0].ap)


def refuse_if_slower_and_worse(report: Int8Report) -> None:
    before, after = report.float32, report.int8
    if after.latency.median_ms <= before.latency.median_ms or after.ap >= before.ap:
        return
    stays = f" with {', '.join(each.layers for each in report.left_out)} in float32" * bool(report.left_out)
    raise NotWorthIt(
        f"in INT8{stays} the file would be slower and worse, so nothing was written: {after.latency.said()} instead of "
        f"{before.latency.said()} on {report.threads} thread{'s' * (report.threads != 1)} of {report.device}, AP "
        f"{after.ap:.2f} instead of {before.ap:.2f}. Export without INT8, or on the processor that will run it",
        "--int8",
    )


# --- what a file finds, and how fast ----------------------------------------------------------------------------


def images_of(folder: Path, classes: Sequence[str]) -> Images:
    """Labelled as the network calls the classes. Raises DatasetError where a split is missing, or no class is known."""
    index, root = open_index(folder)
    match = match_classes(index.classes, classes)
    if not match.shared:
        raise DatasetError(f"{folder}: the network knows none of its classes by name")

    def split(name: Split) -> Dataset:
        whole = Dataset(index, name, root)
        return whole.with_images(relabelled(whole.images, match.labels), classes)

    train = split("train")
    return Images(train.with_images(evenly_spaced(train.images, CALIBRATION_IMAGES), classes), split("val"))


def pixels_of(images: Dataset) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Id and RGB of every image that decodes."""
    for place in range(len(images)):
        if (sample := images.sample_if_decodable(place)) is not None:
            yield sample.image_id, sample.pixels_CHW.permute(1, 2, 0).numpy()


def canvases(session: onnxruntime.InferenceSession, images: Dataset) -> Iterator[NDArray[np.float32]]:
    """Every image as the file takes it; of a file for several at once, one image many times."""
    inputs, batch = usage.inputs_of(session), session.get_inputs()[0].shape[0]
    for _, pixels_HWC in pixels_of(images):
        canvas_1CHW, _, _ = usage.canvas_of(inputs, pixels_HWC)
        yield np.repeat(canvas_1CHW, batch, axis=0) if isinstance(batch, int) else canvas_1CHW


def scores_of(session: onnxruntime.InferenceSession, images: Dataset) -> dict[str, float]:
    """AP as `evaluate` has it, of what the file finds."""
    found: dict[int, Found] = {}
    for image_id, pixels_HWC in pixels_of(images):
        boxes_D4, scores_D, labels_D = usage.detect(session, pixels_HWC)
        of_a_class = labels_D > 0
        found[image_id] = boxes_D4[of_a_class], scores_D[of_a_class], labels_D[of_a_class]
    return average_precision(ground_truth_coco(images), found_as_coco(with_truth(images, found)))


def box_counts(images: Dataset) -> Mapping[str, int]:
    """Of each class."""
    labels = [label for image in images.images if image.id not in images.broken for label in image.labels]
    return {name: labels.count(label) for label, name in enumerate(images.classes, start=1)}


def figures(scores: Mapping[str, float], boxes: Mapping[str, int], file: Path, latency: Latency) -> FileFigures:
    return FileFigures(
        ap=scores["ap"],
        ap50=scores["ap50"],
        ap75=scores["ap75"],
        per_class=tuple(
            ClassFigures(name=name, boxes=count, ap=None if math.isnan(ap := scores[f"ap/{name}"]) else ap)
            for name, count in boxes.items()
            if count
        ),
        bytes=file.stat().st_size,
        latency=latency,
    )


def race(
    before: onnxruntime.InferenceSession, after: onnxruntime.InferenceSession, batch_NCHW: NDArray[np.float32]
) -> dict[str, Latency]:
    """Of one batch in each file, in turn, so that whatever else the machine does meets both alike."""
    inputs = {"images": batch_NCHW}
    times = in_turn(
        {"float32": lambda: before.run(None, inputs), "int8": lambda: after.run(None, inputs)},
        most=ROUNDS,
        until=perf_counter() + ROUNDS_S,
        clock=perf_counter,
        stopwatch=stopwatch.timed,
        tell=lambda _: None,
    )
    return {name: Latency.of(each) for name, each in times.items()}


def say_so(file: Path, **told: Any) -> None:
    """In the file's metadata, which it has from the one in float32, class names and all."""
    model: Any = onnx.load(file)
    about = {each.key: each.value for each in model.metadata_props}
    onnx.helper.set_model_props(model, about | {"int8": json.dumps(told)})
    onnx.checker.check_model(model)
    onnx.save(model, file)
