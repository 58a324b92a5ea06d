"""Batches of an imported data set, the same bytes for the same (seed, epoch, step). Knows nothing of networks.

An image that does not decode, for all that its header said at import, is reported once and left out: in training the
next image of the index that does stands in for it, so that batches keep their size and depend on the files only; in
evaluation neither it nor its boxes count.

No random generator is used or touched: order and flips are hashes of (seed, epoch, image id), so that a control run
and a distilled run see the same batches whatever else they draw, and a resumed run sees those it would have seen.
"""

# K boxes, C channels, H x W pixels

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fgd.data.augment import augmented
from fgd.data.images import UNREADABLE, BadImage, decode
from fgd.data.index import Image, Index
from fgd.data.transforms import Sample, Transform, draw, drawn_flips, drawn_scale, flip
from fgd.data.tree import Split
from fgd.errors import DatasetError
from fgd.outline import whole_steps
from fgd.spec import Schedule
from fgd.types import Batch

CACHE_BYTES = 2**30
"""Of decoded pixels kept in memory by default."""
_AHEAD = 2
"""Batches made before they are asked for."""


@dataclass(frozen=True)
class UndecodableImage:
    """An image that was left out."""

    file: str
    """As the user called it."""
    reason: str


class Dataset:
    """One split of an index: its images decoded on demand, kept in memory up to a budget. Safe for threads."""

    def __init__(self, index: Index, split: Split, root: Path, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises DatasetError if the index has no such split."""
        images = index.splits.get(split)
        if not images:
            raise DatasetError(f"the data set has no {split} images, only {', '.join(sorted(index.splits)) or 'none'}")
        self.split: Final = split
        self.classes: Final = index.classes
        self.images: Final = images
        self.root: Final = root
        self._cache: dict[int, Tensor] = {}
        self._room = cache_bytes
        self._broken: dict[int, str] = {}
        """Image id -> why it does not decode."""
        self._untold: queue.SimpleQueue[UndecodableImage] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def with_images(self, images: Sequence[Image], classes: Sequence[str]) -> Dataset:
        """Another set over the same folder: some of the images, or the images labelled otherwise."""
        index = Index(classes=tuple(classes), splits={self.split: tuple(images)})
        other = Dataset(index, self.split, self.root)
        other._broken, other._untold = self._broken, self._untold
        return other

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, position: int) -> Sample:
        """The image at that place in the index, with its boxes, or the next that decodes; crowd regions are left out.

        Raises DatasetError if none does.
        """
        for place in range(position, position + len(self)):
            sample = self.sample_if_decodable(place % len(self))
            if sample is not None:
                return sample
        raise DatasetError(f"none of the {len(self)} {self.split} images can be decoded; import the data set again")

    def sample_if_decodable(self, position: int) -> Sample | None:
        """The image at that place and no other; None if it is broken, which `undecodable` tells once."""
        image = self.images[position]
        if image.id in self._broken:
            return None
        try:
            pixels_CHW = self._pixels(position)
        except BadImage as error:
            with self._lock:
                if image.id not in self._broken:
                    self._broken[image.id] = str(error)
                    self._untold.put(UndecodableImage(image.name, str(error)))
            return None
        kept = [i for i, crowd in enumerate(image.crowd) if not crowd]
        return Sample(
            image_id=image.id,
            pixels_CHW=pixels_CHW,
            boxes_K4=torch.tensor([image.boxes[i] for i in kept], dtype=torch.float32).reshape(-1, 4),
            labels_K=torch.tensor([image.labels[i] for i in kept], dtype=torch.int64),
        )

    def undecodable(self) -> list[UndecodableImage]:
        """Images that were left out since this was asked last."""
        found: list[UndecodableImage] = []
        while not self._untold.empty():
            found.append(self._untold.get())
        return found

    @property
    def broken(self) -> frozenset[int]:
        """Ids of the images that do not decode, as far as they have been met."""
        return frozenset(self._broken)

    def broken_reasons(self) -> dict[int, str]:
        """Image id -> why it does not decode."""
        return dict(self._broken)

    def mark_broken(self, reasons: Mapping[int, str]) -> None:
        """What another process, which reads other images of this set, found and told."""
        with self._lock:
            self._broken.update(reasons)

    def _pixels(self, position: int) -> Tensor:
        cached = self._cache.get(position)
        if cached is not None:
            return cached
        pixels_CHW = _decoded(self.images[position], self.root)
        with self._lock:
            if position not in self._cache and pixels_CHW.nbytes <= self._room:
                self._room -= pixels_CHW.nbytes
                self._cache[position] = pixels_CHW
        return pixels_CHW


def _decoded(image: Image, root: Path) -> Tensor:
    """uint8 CHW. Raises BadImage; DatasetError where the file itself is gone or another one."""
    try:
        rgb = decode(root / image.file)
    except BadImage as error:
        if error.code != UNREADABLE:
            raise
        raise DatasetError(f"{image.name}: {error}; import the data set again") from error
    if rgb.size != (image.width, image.height):
        raise DatasetError(
            f"{image.name} is {rgb.width}x{rgb.height}, but was {image.width}x{image.height} when it was imported; "
            "import the data set again"
        )
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def epoch_order(dataset: Dataset, seed: int, epoch: int) -> list[int]:
    """Positions of all images in the order of that epoch."""
    return _order(dataset, "order", seed, epoch)


def _order(dataset: Dataset, what: str, seed: int, epoch: int) -> list[int]:
    return sorted(range(len(dataset)), key=lambda position: draw(what, seed, epoch, dataset.images[position].id))


def train_batches(
    dataset: Dataset,
    transform: Transform,
    schedule: Schedule,
    seed: int,
    epoch: int,
    first_step: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The epoch's batches from `first_step` on, `accumulate` of them a step; what is left over is left out.

    shard: (k, n) gives the k-th of n equal parts of each batch, padded by itself.

    They are made in a background thread that ends when the iterator is exhausted, closed or collected. Raises
    SpecError at once if the batch is larger than the set, DatasetError for an image that cannot be used.
    """
    steps = whole_steps(len(dataset), schedule.batch_size, schedule.accumulate)
    scaled = {side: transform.at(side) for side in schedule.scales or (transform.min_size,)}
    smallest = scaled[min(scaled)]
    _refuse_slivers(dataset, smallest)
    order = epoch_order(dataset, seed, epoch)
    rank, share = shard[0], schedule.batch_size // shard[1]

    def fits(height: int, width: int) -> bool:
        return min(smallest.size_of(height, width)) >= 1

    def make(number: int) -> Batch:
        first = number * schedule.batch_size + rank * share
        chosen = order[first : first + share]
        samples = []
        for position in chosen:
            sample = augmented(dataset.sample(position), schedule.augment, seed, epoch, fits)
            horizontal, vertical = drawn_flips(schedule.flip, seed, epoch, sample.image_id)
            samples.append(flip(sample, horizontal=horizontal, vertical=vertical))
        # One size for all batches of a step, so that several of them equal one large batch.
        return scaled[drawn_scale(tuple(scaled), seed, epoch, number // schedule.accumulate)](samples)

    return _ahead(make, range(first_step * schedule.accumulate, steps * schedule.accumulate))


def unlabelled_batches(
    dataset: Dataset,
    transform: Transform,
    schedule: Schedule,
    seed: int,
    per_step: int,
    *,
    steps: range,
    per_epoch: int,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Images without labels for these steps of the training, `per_step` of them each, in up to `accumulate` batches:
    see `unlabelled_parts`. One pass over the images follows another, each in an order of its own.

    They are changed as the labelled images are, at the size of their step. shard, failures: as in `train_batches`.
    """
    scaled = {side: transform.at(side) for side in schedule.scales or (transform.min_size,)}
    smallest = scaled[min(scaled)]
    _refuse_slivers(dataset, smallest)
    own = per_step // shard[1]
    parts = unlabelled_parts(own, schedule.accumulate)
    orders: dict[int, list[int]] = {}

    def fits(height: int, width: int) -> bool:
        return min(smallest.size_of(height, width)) >= 1

    def make(number: int) -> Batch:
        step, part = divmod(number, len(parts))
        first = step * per_step + shard[0] * own
        samples = []
        for place in range(first + parts[part].start, first + parts[part].stop):
            round_, position = divmod(place, len(dataset))
            if round_ not in orders:
                orders.clear()
                orders[round_] = _order(dataset, "unlabelled order", seed, round_)
            sample = augmented(dataset.sample(orders[round_][position]), schedule.augment, seed, round_, fits)
            horizontal, vertical = drawn_flips(schedule.flip, seed, round_, sample.image_id)
            samples.append(flip(sample, horizontal=horizontal, vertical=vertical))
        return scaled[drawn_scale(tuple(scaled), seed, *divmod(step, per_epoch))](samples)

    return _ahead(make, range(steps.start * len(parts), steps.stop * len(parts)))


def unlabelled_parts(images: int, accumulate: int) -> list[range]:
    """Which of a step's images each batch has, as evenly as can be; batches without any are left out."""
    parts = (range(n * images // accumulate, (n + 1) * images // accumulate) for n in range(accumulate))
    return [part for part in parts if part]


def eval_batches(
    dataset: Dataset, transform: Transform, batch_size: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every image once, unflipped, each with the padding it would have alone, so that batching changes no result.

    shard: (k, n) gives each n-th batch from the k-th on.

    Targets lack crowd regions, as in training; score against `ground_truth_coco`, which has them.
    """
    _refuse_slivers(dataset, transform)
    groups: dict[tuple[int, int], list[int]] = {}
    for position, image in enumerate(dataset.images):
        groups.setdefault(transform.padded_size_of(image.height, image.width), []).append(position)
    chunks = [
        members[start : start + batch_size]
        for members in groups.values()
        for start in range(0, len(members), batch_size)
    ][shard[0] :: shard[1]]

    def make(step: int) -> Batch | None:
        samples = [dataset.sample_if_decodable(position) for position in chunks[step]]
        usable = [sample for sample in samples if sample is not None]
        return transform(usable) if usable else None

    return _ahead(make, range(len(chunks)))


def _refuse_slivers(dataset: Dataset, transform: Transform) -> None:
    for image in dataset.images:
        if min(transform.size_of(image.height, image.width)) < 1:
            raise DatasetError(
                f"{image.name}: {image.width}x{image.height} is too elongated: nothing is left of it at min_size "
                f"{transform.min_size}, max_size {transform.max_size}; remove it, or raise schedule.max_size"
            )


def ground_truth_coco(dataset: Dataset) -> dict[str, Any]:
    """The split as COCO JSON for evaluators: xywh in stored pixels, category ids are labels, crowd regions included."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        if image.id in dataset.broken:
            continue
        images.append({"id": image.id, "file_name": image.name, "width": image.width, "height": image.height})
        for (x1, y1, x2, y2), label, crowd in zip(image.boxes, image.labels, image.crowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes id 0 for "unmatched"
                    "image_id": image.id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(dataset.classes, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


# --- one thread ahead -----------------------------------------------------------------------------------------


class _Failure:
    """An exception on its way from the thread to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _ahead(make: Callable[[int], Batch | None], steps: Sequence[int]) -> Iterator[Batch]:
    """make(step) for each step in order, up to `_AHEAD` of them ahead of the consumer, in one thread; None is left out.

    Decoding and resizing release the interpreter's lock, so they run beside the training step. A failure is raised
    when its turn comes, after the batches before it.
    """
    made: queue.Queue[Batch | _Failure | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def produce() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                made.put(make(step))
        except BaseException as error:  # answered by the consumer, who raises it
            made.put(_Failure(error))

    thread = threading.Thread(target=produce, name="fgd-batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = made.get()
            if isinstance(item, _Failure):
                raise item.error
            if item is not None:
                yield item
    finally:
        stop.set()
        while thread.is_alive():  # it may wait for room to put its last batch
            _drain(made)
            thread.join(0.01)


def _drain(made: queue.Queue[Batch | _Failure | None]) -> None:
    try:
        while True:
            made.get_nowait()
    except queue.Empty:
        pass
