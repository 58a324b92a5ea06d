"""Whether a teacher is fit to teach, and the scale of what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fgd.data.index import Image
from fgd.data.loader import Dataset, eval_batches
from fgd.data.transforms import Transform
from fgd.engine.device import to_device
from fgd.engine.distill import Teacher
from fgd.engine.distributed import ALONE, Ranks
from fgd.engine.evaluate import evaluate
from fgd.errors import TeacherUnfit, UserError
from fgd.methods.geometry import Grid, Layout, valid_cells
from fgd.types import Calibration

CHECK_IMAGES = 64
CHECK_AP50 = 5.0
CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Fitness:
    """What a teacher can do on the validation images, at the size at which it is to teach."""

    ap50: float
    images: int
    size: tuple[int, int]
    """schedule.min_size and max_size."""
    own_size: tuple[int, int]
    """Of its recipe: what it was trained at."""

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Fitness:
        return cls(kept["ap50"], kept["images"], tuple(kept["size"]), tuple(kept["own_size"]))

    def __str__(self) -> str:
        size = "at min_size {}, max_size {}".format(*self.size)
        return f"the teacher's AP50 on {self.images} validation images {size} is {self.ap50:.1f}"

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
        return {"ap50": self.ap50 if math.isfinite(self.ap50) else None, "images": self.images, **sizes, **own}


def check_classes(teacher_classes: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """The order may differ, features have no labels; the names may not."""
    lacking = sorted(set(classes) - set(teacher_classes))
    foreign = sorted(set(teacher_classes) - set(classes))
    if lacking or foreign:
        raise UserError(
            "the teacher was trained for other classes than those of the data set: "
            + "; ".join(f"{what} {names}" for what, names in (("it lacks", lacking), ("it adds", foreign)) if names)
        )


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
    """AP50 on 64 evenly spaced validation images, or all if fewer."""
    images = relabelled(evenly_spaced(val.images, CHECK_IMAGES), val.classes, teacher.detector.recipe.classes)
    some = val.with_images(images, teacher.detector.recipe.classes)
    scores = evaluate(
        teacher.detector,
        some,
        transform,
        batch_size=batch_size,
        device=device,
        features=teacher.features,
        check_stop=check_stop,
        ranks=ranks,
    )
    own = teacher.detector.recipe
    return Fitness(scores["ap50"], len(some), (transform.min_size, transform.max_size), (own.min_size, own.max_size))


def refuse_unfit(found: Fitness, *, allow_unfit: bool) -> None:
    if not found.ap50 >= CHECK_AP50 and not allow_unfit:  # NaN is unfit too
        raise TeacherUnfit(
            f"{found}, under {CHECK_AP50:.0f}: {found.advice}wrong weights, wrong classes or an untrained network; "
            '"allow_unfit": true in `teacher` lets it teach anyway',
            found.data,
        )


@torch.no_grad()
def calibrate(
    teacher: Teacher,
    train: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    device: torch.device,
    check_stop: Callable[[], None],
) -> Calibration:
    """RMS of the teacher's maps at each shared level over 64 evenly spaced, unaugmented images, valid cells only."""
    squares: dict[str, float] = {}
    counts: dict[str, int] = {}
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
    rms = {level: (squares[level] / counts[level]) ** 0.5 for level in squares}
    return Calibration(rms, box_count(train.images) / len(train))


def box_count(images: Sequence[Image]) -> int:
    """Boxes that are trained on: crowd regions are not."""
    return sum(len(image.crowd) - sum(image.crowd) for image in images)


def evenly_spaced(images: Sequence[Image], count: int) -> tuple[Image, ...]:
    count = min(count, len(images))
    return tuple(images[i * len(images) // count] for i in range(count))


def relabelled(images: Sequence[Image], classes: Sequence[str], wanted: Sequence[str]) -> tuple[Image, ...]:
    """The images with labels counted in `wanted` instead of `classes`; the names are the same, the order may differ."""
    label = {old: wanted.index(name) + 1 for old, name in enumerate(classes, start=1)}
    return tuple(image.model_copy(update={"labels": tuple(label[old] for old in image.labels)}) for image in images)
