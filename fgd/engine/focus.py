"""What the methods look at, on a few validation images at an evaluation: written to files as a training goes on.

It takes no part in the training: everything runs in eval mode and without gradients, no random number is drawn, and
each module is put back into the mode it was in. A method that cannot be shown ends the showing, not the training.
"""

# N images, C channels, H x W pixels or cells

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from fgd.data.images import BadImage, decode
from fgd.data.index import Image
from fgd.data.loader import Dataset, eval_batches
from fgd.engine.device import to_device
from fgd.engine.distill import Distill, Teacher
from fgd.engine.prepare import Training
from fgd.engine.teacher import evenly_spaced
from fgd.errors import FGDError
from fgd.events import Emit, Focused, Note
from fgd.focus_files import FOLDER, MAX_BYTES, MAX_PHOTOS_BYTES, name_of, packed
from fgd.methods import Method
from fgd.methods.focus import Focus
from fgd.types import Batch, View

MOST, FEWEST = 60, 8
"""Evaluations of a training that are shown."""
SHARE = 0.01
"""Of the images that are trained on, so many more are looked at; but FEWEST evaluations are shown of any training."""
SIDES = (64, 48, 32, 24, 16, 8)
"""Cells of a map's longer side at most: the first at which a file is small enough."""
MAX_CHANNELS = 512
PHOTO_SIDES = (512, 320, 160)
MAX_BOXES = 200
"""Of a photo."""


@dataclass(frozen=True)
class Shown:
    """An image with what is looked at on it: each value is of this one image."""

    photo: int
    size: tuple[int, int]
    padded: tuple[int, int]
    of_methods: tuple[tuple[str, Focus], ...]


class FocusWriter:
    """Writes into `out`/focus, and says so. Only the first of several processes does."""

    def __init__(self, parts: Training, out: Path, emit: Emit, per_epoch: int, check_stop: Callable[[], None]) -> None:
        self.parts, self.folder, self.emit, self.check_stop = parts, out / FOLDER, emit, check_stop
        schedule = parts.spec.schedule
        self.every, self.epochs = schedule.evaluate_every, schedule.epochs
        count = parts.spec.resources.focus_images if parts.teachers and parts.ranks.first else 0
        self.images = chosen_images(parts.val.images, count)
        images_trained_on = per_epoch * schedule.batch_size * schedule.accumulate * schedule.epochs
        self.most = how_many(images_trained_on, max(1, len(self.images)))
        self.some: Dataset | None = None

    def due(self, epoch: int) -> bool:
        """Before the first step, and evenly spaced over the evaluations, the last one among them."""
        if not self.images:
            return False
        return epoch == 0 or is_shown(math.ceil(epoch / self.every), math.ceil(self.epochs / self.every), self.most)

    def show(self, step: int, epoch: int) -> None:
        if not self.due(epoch):
            return
        try:
            if self.some is None:
                self._show_photos()
            shown = list(self._looked_at())
            if not any(each.of_methods for each in shown):  # no method has anything to show
                self.images = ()
                return
            strides = {level.name: level.stride for level in self.parts.student.recipe.detector.levels()}
            self._write(step, epoch, file_of(step, epoch, strides, shown))
        except FGDError:  # asked to stop, or the images are gone: as everywhere
            raise
        except Exception as error:
            self.images = ()
            message = f"what the methods look at cannot be shown: {type(error).__name__}: {error}"
            self.emit(Note(code="focus_failed", message=message, level="warning"))

    def _looked_at(self) -> Iterator[Shown]:
        parts = self.parts
        assert self.some is not None
        places = {image.id: n for n, image in enumerate(self.images)}
        for batch in eval_batches(self.some, parts.transform, 1):
            self.check_stop()
            found = looked_at(parts.distill, parts.teachers, to_device(batch, parts.machine.device))
            (image_id,), (size,) = batch.image_ids, batch.image_sizes
            yield Shown(places[image_id], size, batch.padded_size, found)

    def _show_photos(self) -> None:
        val = self.parts.val
        self.some = val.with_images(self.images, val.classes)
        positions = {image.id: n for n, image in enumerate(val.images)}
        for side in PHOTO_SIDES:
            photos = [photo_of(image, positions[image.id], val, side) for image in self.images]
            file = packed({"format": "fgd-photos/1", "split": val.split, "photos": photos})
            if len(file) <= MAX_PHOTOS_BYTES:
                self._write(None, None, file)
                return

    def _write(self, step: int | None, epoch: int | None, file: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name_of(step)
        part = path.with_suffix(".part")
        part.write_bytes(file)
        os.replace(part, path)
        digest = hashlib.sha256(file).hexdigest()
        self.emit(Focused(step=step, epoch=epoch, path=str(path), sha256=digest, size=len(file)))


def chosen_images(images: Sequence[Image], count: int) -> tuple[Image, ...]:
    """Evenly spaced over those with boxes; where they are too few all of them, and others evenly spaced."""
    boxed = [image for image in images if image.labels]
    bare = [image for image in images if not image.labels]
    first = evenly_spaced(boxed, count)
    return (*first, *evenly_spaced(bare, count - len(first)))


def how_many(images_trained_on: int, images: int) -> int:
    """Evaluations that are shown of a training, with so many images each."""
    return min(MOST, max(FEWEST, int(SHARE * images_trained_on / images)))


def is_shown(number: int, total: int, most: int) -> bool:
    """Whether the evaluation of that number, from 1 to `total`, is one of at most `most` that are evenly spaced."""
    wanted = min(most, total)
    return number * wanted // total > (number - 1) * wanted // total


@torch.no_grad()
def looked_at(distill: Distill, teachers: Mapping[str, Teacher], batch: Batch) -> tuple[tuple[str, Focus], ...]:
    """A method's title and what it looks at in a batch of one image, in the order in which the methods tell it."""
    found: list[tuple[str, Focus]] = []
    student = distill.student
    with in_eval_mode(distill):
        maps = student.features(batch.images_NCHW)
        predictions = answers = None
        if distill.needs:
            regions = "proposals" in distill.needs
            predictions = student.predict(maps, batch, hold="towers" in distill.needs, regions=regions)
            answers = partial(student.regions, maps, batch) if regions else None
        whole = View(maps, predictions, student.towers(), answers)
        for name, teacher in teachers.items():
            classes, theirs = distill.classes[name], teacher.view(batch)
            ours, of_classes = classes.taught(whole, batch) if classes is not None else (whole, batch)
            for title in distill.titles[name]:
                method = distill.methods[title]
                assert isinstance(method, Method)
                found += [(title, each) for each in method.focus(ours, theirs, of_classes)]
    return tuple(found)


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Each of its modules gets its own mode back."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


# --- files ----------------------------------------------------------------------------------------------------


def file_of(step: int, epoch: int, strides: dict[str, int], shown: Sequence[Shown]) -> bytes:
    """With maps of as many cells as there is room for."""
    file = b""
    for side in SIDES:
        images = [
            {
                "photo": image.photo,
                "size": image.size,
                "padded": image.padded,
                "shown": [told for each in image.of_methods if (told := told_of(*each, side)) is not None],
            }
            for image in shown
        ]
        content = {"format": "fgd-focus/1", "step": step, "epoch": epoch, "strides": strides, "images": images}
        file = packed(content)
        if len(file) <= MAX_BYTES:
            break
    return file


def told_of(method: str, focus: Focus, side: int) -> dict[str, Any] | None:
    """As the file has it; None where a value is not finite: the student may have diverged."""
    (values,) = focus.values.detach().float().cpu()
    if not values.isfinite().all():
        return None
    of = tuple(values.shape)
    values = values[:MAX_CHANNELS] if values.ndim == 1 else smaller(values, side)
    low, high, coded = quantised(values, by_magnitude=focus.by_magnitude)
    return {
        "method": method,
        "name": focus.name,
        "network": focus.network,
        "level": focus.level,
        "shape": tuple(values.shape),
        "of": of,
        "low": low,
        "high": high,
        "by_magnitude": focus.by_magnitude,
        "values": base64.b64encode(coded).decode(),
    }


def smaller(map_HW: Tensor, side: int) -> Tensor:
    """Means over cells, where the longer side has more than `side`."""
    height, width = map_HW.shape
    scale = side / max(height, width)
    if scale >= 1:
        return map_HW
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return nn.functional.adaptive_avg_pool2d(map_HW[None], size)[0]


def quantised(values: Tensor, *, by_magnitude: bool) -> tuple[float, float, bytes]:
    """Least and greatest value, and each as a byte between them; by magnitude: of the positive ones, by logarithms."""
    counted = values[values > 0] if by_magnitude else values
    if not counted.numel():
        return 0.0, 0.0, bytes(values.numel())
    low, high = float(counted.min()), float(counted.max())
    if high == low:
        return low, high, ((values >= low) * 255).to(torch.uint8).numpy().tobytes()
    if by_magnitude:
        share = (values.clamp(min=low).log() - math.log(low)) / (math.log(high) - math.log(low))
        coded = torch.where(values > 0, 1 + (254 * share).round(), 0.0)
    else:
        coded = (255 * (values - low) / (high - low)).round()
    return low, high, coded.clamp(0, 255).to(torch.uint8).numpy().tobytes()


def photo_of(image: Image, position: int, val: Dataset, side: int) -> dict[str, Any]:
    """A picture that does not decode has no JPEG; nothing is shown on it either."""
    told = {
        "position": position,
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "boxes": [[round(float(edge), 2) for edge in box] for box in image.boxes[:MAX_BOXES]],
        "labels": [val.classes[label - 1] for label in image.labels[:MAX_BOXES]],
    }
    try:
        picture = decode(val.root / image.file)
    except BadImage:
        return told | {"jpeg": None}
    picture.thumbnail((side, side), Pillow.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return told | {"jpeg": base64.b64encode(file.getvalue()).decode()}
