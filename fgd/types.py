"""The values that pass between the parts of the library. Checked where they are made, trusted after."""

# N images, K boxes or places, R regions, C classes, D numbers of a coded box, H x W pixels or cells

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """Ground truth of one image: boxes float32 xyxy in pixels of the padded input, labels int64 1..classes."""

    boxes_K4: Tensor
    labels_K: Tensor


@dataclass(frozen=True)
class Batch:
    """What both networks see: resized, normalised, padded once."""

    images_NCHW: Tensor
    image_sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image after resizing, before padding."""
    original_sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image as stored."""
    targets: tuple[Target, ...]
    image_ids: tuple[int, ...]
    flips: tuple[tuple[bool, bool], ...] = ()
    """(horizontal, vertical) of each image."""
    apart: tuple[Tensor, ...] = ()
    """Of each image the boxes, as in `targets`, of objects that the teacher does not know: methods leave out cells
    where they alone lie. (): it knows all."""

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the padded input."""
        height, width = self.images_NCHW.shape[-2:]
        return int(height), int(width)


@dataclass(frozen=True)
class Detections:
    """Found objects of one image: boxes float32 xyxy in pixels of the image as stored."""

    boxes_K4: Tensor
    scores_K: Tensor
    labels_K: Tensor


@dataclass(frozen=True)
class Calibration:
    """Measured once before step 0 on fixed training images, then frozen; travels with checkpoint and manifest."""

    teacher_rms: dict[str, float]
    """Root mean square of the teacher's map at each level, over valid (not padded) cells."""
    boxes_per_image: float
    """Mean over the training images."""
    temperatures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Of methods with "temperature": "auto": method -> level -> "spatial" or "channel" -> what was found."""
    perplexities: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Of every method that weighs by softmaxes of the teacher's maps, likewise: on what share of the cells, or of the
    channels, they rest; medians over the images."""


# --- what a network says of a batch ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Regions:
    """A second stage's answers to proposals; R of them, of all images in a row. No class is a column of its own: 0."""

    proposals: tuple[Tensor, ...]
    """Of each image, xyxy in pixels of the padded input."""
    logits_RC: Tensor
    """A column for the background, then one for each class of the recipe, in its order."""
    boxes_RC4: Tensor
    """For each column, as deltas against the proposal."""
    labels_R: Tensor | None = None
    """What each was drawn as for the losses, 0 or a label; None where nothing was drawn."""
    targets_R4: Tensor | None = None
    """The deltas to the box that it was drawn for."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a head says of a batch's maps. One row a place: an anchor of a cell of a level, or a cell's point."""

    rows: Mapping[str, int]
    """Level -> how many of the K rows are its own, finest first. In a level cells come line by line, and the anchors of
    a cell one after another."""
    logits_NKC: Tensor
    """A column for each class of the recipe, in its order; each is a decision by itself."""
    objectness: bool = False
    """The one column of the logits says whether there is anything, not what: the first stage of two."""
    boxes_NKD: Tensor
    """As the head codes them."""
    anchors_K4: Tensor
    """What `boxes_NKD` is coded against, the same for each image: xyxy in pixels of the padded input. Of a family of
    points the square of the stride's size around each."""
    decode: Callable[[Tensor, Tensor], Tensor]
    """Coded boxes NKD and their anchors K4 -> xyxy in pixels of the padded input, NK4."""
    quality_NK: Tensor | None = None
    """Logits of how good each box is, or how near to the middle of it the point."""
    matches: tuple[Tensor, ...] | None = None
    """In training, of each image: place -> which of its boxes it shall find; -1: none, -2: it does not count."""
    held: Mapping[str, Mapping[str, tuple[Tensor, ...]]] = field(default_factory=dict)
    """Tower -> level -> what went into each of its convolutions, and what came out of the last; where asked for."""
    regions: Regions | None = None
    """In training those that were drawn for the losses."""

    def span(self, level: str) -> slice:
        """Of the rows of a level."""
        names = list(self.rows)
        first = sum(self.rows[name] for name in names[: names.index(level)])
        return slice(first, first + self.rows[level])


Output = Literal["logits", "boxes", "quality"]


class HeadTower(Protocol):
    """A head's convolutions in a row, and the layers that predict from what comes out of the last."""

    @property
    def depth(self) -> int:
        """How many convolutions."""

    def channels(self, level: str) -> int:
        """Width of what goes into each."""

    def __call__(self, level: str, map_NCHW: Tensor, first: int = 0) -> dict[Output, Tensor]:
        """Rows of a level as in `Predictions`, where `map_NCHW` goes into convolution `first`: the neck's map into 0,
        what comes out of the last into `depth`."""


@dataclass(frozen=True)
class View:
    """What a method sees of a network."""

    features: Mapping[str, Tensor]
    """Level of `Pair.levels` -> N x C x H x W of any precision."""
    predictions: Predictions | None = None
    """The student's, but for unlabelled images that nothing asks its head about; the teacher's if a method of the job
    takes logits, boxes or distributions."""
    towers: Mapping[str, HeadTower] = field(default_factory=dict)
    regions: Callable[[Sequence[Tensor]], Regions] | None = None
    """The second stage's answers to these proposals of each image."""
