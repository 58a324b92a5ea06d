"""Whether a teacher is fit to teach, and the scale of what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fgd.class_names import shared_labels
from fgd.data.index import Image
from fgd.data.loader import Dataset, eval_batches
from fgd.data.transforms import Transform
from fgd.engine.device import to_device
from fgd.engine.distill import Teacher
from fgd.engine.distributed import ALONE, Ranks
from fgd.engine.evaluate import evaluate
from fgd.errors import TeacherUnfit
from fgd.events import Note
from fgd.method_fields import Attention
from fgd.methods.attention import AttentionMeter
from fgd.methods.geometry import Grid, Layout, valid_cells
from fgd.text.cut import some
from fgd.types import Calibration

CHECK_IMAGES = 64
CHECK_AP50 = 5.0
CALIBRATION_IMAGES = 64
PEAKED = 0.1
"""A perplexity under this share is warned of."""


@dataclass(frozen=True)
class Fitness:
    """What a teacher can do on the validation images, at the size at which it is to teach."""

    ap50: float
    images: int
    size: tuple[int, int]
    """schedule.min_size and max_size."""
    own_size: tuple[int, int]
    """Of its recipe: what it was trained at."""
    classes: tuple[str, ...] | None = None
    """The data set's classes that it knows, by which it was measured; None: all of them."""

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Fitness:
        classes = kept.get("classes")
        known = tuple(classes) if classes is not None else None
        return cls(kept["ap50"], kept["images"], tuple(kept["size"]), tuple(kept["own_size"]), known)

    def __str__(self) -> str:
        return self.told("the teacher")

    def told(self, teacher: str) -> str:
        """For people; teacher: what it is called."""
        if self.unknown:
            why = "no validation image has a class that it knows by name"
            return f"how well {teacher} detects on this data set is unknown: {why}; its features teach all the same"
        size = "at min_size {}, max_size {}".format(*self.size)
        on = f" for {some(list(self.classes))}, the classes that it knows," if self.classes is not None else ""
        return f"{teacher}'s AP50 on {self.images} validation images {size}{on} is {self.ap50:.1f}"

    @property
    def unknown(self) -> bool:
        """Nothing could be measured: it was trained for other classes."""
        return self.images == 0

    @property
    def advice(self) -> str:
        """About the size, where it is not the teacher's own; "" otherwise."""
        if self.size == self.own_size:
            return ""
        return (
            "it was trained at min_size {}, max_size {}, so set these in `schedule`, "
            "or use a teacher that was trained at the job's sizes. Other causes: "
        ).format(*self.own_size)

    @property
    def data(self) -> dict[str, Any]:
        sizes = {"min_size": self.size[0], "max_size": self.size[1]}
        own = {"teacher_min_size": self.own_size[0], "teacher_max_size": self.own_size[1]}
        known = {"classes": list(self.classes)} if self.classes is not None else {}
        return {"ap50": self.ap50 if math.isfinite(self.ap50) else None, "images": self.images, **sizes, **own, **known}


def check_teacher(
    teacher: Teacher,
    val: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    device: torch.device,
    check_stop: Callable[[], None],
    ranks: Ranks = ALONE,
) -> Fitness:
    """AP50 on 64 evenly spaced validation images, or all if fewer, and for the classes that the teacher knows."""
    own = teacher.detector.recipe
    size, own_size = (transform.min_size, transform.max_size), (own.min_size, own.max_size)
    labels = shared_labels(val.classes, own.classes)
    known = None if len(labels) == len(val.classes) else tuple(val.classes[label - 1] for label in labels)
    images = checked_images(val, own.classes)
    if not images:
        return Fitness(math.nan, 0, size, own_size, known)
    some = val.with_images(relabelled(images, labels), own.classes)
    scores = evaluate(
        teacher.detector,
        some,
        transform,
        batch_size=batch_size,
        device=device,
        features=teacher.features,
        check_stop=check_stop,
        ranks=ranks,
    ).scores
    return Fitness(scores["ap50"], len(some), size, own_size, known)


def checked_images(val: Dataset, theirs: Sequence[str]) -> tuple[Image, ...]:
    """Those on which a teacher of these classes is checked: any, or those with an object that it may know."""
    labels = shared_labels(val.classes, theirs)
    if len(labels) == len(val.classes):
        return evenly_spaced(val.images, CHECK_IMAGES)
    return evenly_spaced([image for image in val.images if labels.keys() & set(image.labels)], CHECK_IMAGES)


def refuse_unfit(found: Fitness, name: str = "", *, allow_unfit: bool) -> None:
    """name: of the teacher, where it has one."""
    if not found.unknown and not found.ap50 >= CHECK_AP50 and not allow_unfit:  # NaN is unfit too
        told, at = (found.told(f"the teacher {name}"), f"teachers.{name}") if name else (str(found), "teacher")
        raise TeacherUnfit(
            f"{told}, under {CHECK_AP50:.0f}: {found.advice}wrong weights, wrong classes or an untrained network; "
            f'"allow_unfit": true in `{at}` lets it teach anyway',
            ({"teacher": name} if name else {}) | found.data,
        )


@torch.no_grad()
def calibrate(
    teacher: Teacher,
    train: Dataset,
    transform: Transform,
    attentions: Mapping[str, Attention],
    *,
    batch_size: int,
    device: torch.device,
    check_stop: Callable[[], None],
) -> Calibration:
    """RMS of the teacher's maps at each shared level over 64 evenly spaced, unaugmented images, valid cells only; and
    of the methods with an attention what temperature it has, where that is found out, and how spread out it is."""
    squares: dict[str, float] = {}
    counts: dict[str, int] = {}
    meter = AttentionMeter(attentions)
    some = train.with_images(evenly_spaced(train.images, CALIBRATION_IMAGES), train.classes)
    for batch in eval_batches(some, transform, batch_size):
        check_stop()
        batch = to_device(batch, device)
        layout = Layout.of(batch, device)
        for level, map_NCHW in teacher.shared_features(batch).items():
            images, _, height, width = map_NCHW.shape
            valid_NP, _ = valid_cells(layout, Grid.of(((height, width),), device))
            valid_NHW = valid_NP.view(images, height, width)
            energy = (map_NCHW.double().square().sum(dim=1) * valid_NHW).sum()
            squares[level] = squares.get(level, 0.0) + float(energy)
            counts[level] = counts.get(level, 0) + int(valid_NHW.sum()) * map_NCHW.shape[1]
            meter.add(level, map_NCHW, valid_NHW[:, None].to(map_NCHW))
    rms = {level: (squares[level] / counts[level]) ** 0.5 for level in squares}
    measured = meter.measured(rms)
    return Calibration(
        rms, box_count(train.images, teacher.known_labels) / len(train), measured.temperatures, measured.perplexities
    )


def in_words(calibration: Calibration, teacher: str = "the teacher") -> str:
    """What a calibration found; teacher: what it is called."""
    scales = ", ".join(f"{level} {rms:.2f}" for level, rms in calibration.teacher_rms.items())
    told = f"RMS of {teacher}'s maps: {scales}; {calibration.boxes_per_image:.1f} boxes per image"
    for kind, of_levels in calibration.temperatures.items():
        each = (f"{level} {' and '.join(f'{t:.3g}' for t in found.values())}" for level, found in of_levels.items())
        told += f"; temperature of {kind}'s {' and '.join(_softmaxes(of_levels))} attention: {', '.join(each)}"
    return told


def _softmaxes(of_levels: Mapping[str, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(softmax for found in of_levels.values() for softmax in found))


def peaked(calibration: Calibration, teacher: str = "") -> Iterator[Note]:
    """A warning for each method whose attention leaves out nearly everything; teacher: its name, where it has one."""
    for kind, of_levels in calibration.perplexities.items():
        title = f"{kind}@{teacher}" if teacher else kind
        found = [
            (level, softmax, share)
            for level, shares in of_levels.items()
            for softmax, share in shares.items()
            if share < PEAKED
        ]
        if found:
            what = {"spatial": "cells", "channel": "channels"}
            told = ", ".join(
                f"{100 * share:.1f} % of the {what[softmax]} at {level}" for level, softmax, share in found
            )
            auto = kind in calibration.temperatures
            advice = "A higher perplexity" if auto else 'A higher temperature, or "temperature": "auto",'
            data = [{"level": level, "softmax": softmax, "perplexity": share} for level, softmax, share in found]
            yield Note(
                code="attention_peaked",
                message=f"{title}'s attention rests on {told}; the rest of the teacher's maps hardly counts. {advice} "
                "spreads it",
                data={"method": title, "perplexities": data},
                level="warning",
            )


def box_count(images: Sequence[Image], labels: Collection[int] | None = None) -> int:
    """Boxes that are trained on: crowd regions are not. labels: of these alone."""
    if labels is None:
        return sum(len(image.crowd) - sum(image.crowd) for image in images)
    return sum(
        label in labels and not crowd
        for image in images
        for label, crowd in zip(image.labels, image.crowd, strict=True)
    )


def evenly_spaced(images: Sequence[Image], count: int) -> tuple[Image, ...]:
    count = min(count, len(images))
    return tuple(images[i * len(images) // count] for i in range(count))


def relabelled(images: Sequence[Image], labels: Mapping[int, int]) -> tuple[Image, ...]:
    """The images with other labels; boxes whose label has none are left out."""
    return tuple(image if not image.labels else _relabelled(image, labels) for image in images)


def _relabelled(image: Image, labels: Mapping[int, int]) -> Image:
    kept = [n for n, label in enumerate(image.labels) if label in labels]
    return image.model_copy(
        update={
            "boxes": tuple(image.boxes[n] for n in kept),
            "labels": tuple(labels[image.labels[n]] for n in kept),
            "crowd": tuple(image.crowd[n] for n in kept),
        }
    )
