"""What two networks might say of a batch: maps, predictions, towers and regions of random numbers, without networks."""

# N images, K places, C channels or classes, H x W cells of a level

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fgd.methods.base import Pair
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, HeadTower, Output, Predictions, Regions, Target, View

STRIDES = {"p3": 8, "p4": 16}
PADDED = (64, 96)
SIZES = {"p3": (8, 12), "p4": (4, 6)}
IMAGES = ((64, 96), (64, 96), (48, 64))
BOXES = ([], [[0.0, 0.0, 96.0, 64.0]], [[4.0, 8.0, 30.0, 41.0], [20.0, 20.0, 62.0, 47.0]])
"""Of an image without any, one with a box around all of it, and one that is smaller than the padded input."""
CLASSES = 3
WIDTH = 64
SCHEDULE = Schedule(min_size=64, max_size=96)
CALIBRATION = Calibration(teacher_rms={"p3": 2.0, "p4": 0.5}, boxes_per_image=1.0)
BOX_REACH = 14.0


def batch() -> Batch:
    targets = [Target(torch.tensor(each).reshape(-1, 4), torch.ones(len(each), dtype=torch.int64)) for each in BOXES]
    return Batch(torch.zeros(3, 3, *PADDED), IMAGES, IMAGES, tuple(targets), (0, 1, 2))


def pair(student: int = WIDTH, teacher: int = WIDTH) -> Pair:
    return Pair.alike(STRIDES, student, teacher)


def anchors_K4() -> Tensor:
    """Squares of four strides, one a cell."""
    made = []
    for level, (height, width) in SIZES.items():
        y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre_K2 = (torch.stack([x_HW.flatten(), y_HW.flatten()], 1) + 0.5) * STRIDES[level]
        made.append(torch.cat([centre_K2 - 2 * STRIDES[level], centre_K2 + 2 * STRIDES[level]], 1))
    return torch.cat(made)


def decode(boxes_NKD: Tensor, anchors_K4: Tensor) -> Tensor:
    """Numbers around 0 as distances from the anchor's middle, all positive."""
    centre_K2 = (anchors_K4[:, :2] + anchors_K4[:, 2:]) / 2
    reach_NK4 = BOX_REACH * boxes_NKD.exp()
    return torch.cat([centre_K2 - reach_NK4[..., :2], centre_K2 + reach_NK4[..., 2:]], 2)


@dataclass(frozen=True)
class FlatTower:
    """Predicts from the first channels of its map."""

    output: Output
    columns: int

    @property
    def depth(self) -> int:
        return 2

    def channels(self, level: str) -> int:
        return WIDTH

    def __call__(self, level: str, map_NCHW: Tensor, first: int = 0) -> dict[Output, Tensor]:
        return {self.output: map_NCHW[:, : self.columns].flatten(2).mT}


def view(seed: int, channels: int = WIDTH, *, drawn: bool = False, bins: int = 0) -> View:
    """drawn: with regions that were drawn for the losses. bins: distributions over so many."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    features = {level: normal(3, channels, *size) for level, size in SIZES.items()}
    rows = {level: height * width for level, (height, width) in SIZES.items()}
    places = sum(rows.values())
    held = {name: {level: (normal(3, WIDTH, *size),) * 3 for level, size in SIZES.items()} for name in ("cls", "reg")}
    matches = torch.randint(-2, 1, (3, places), generator=generator)
    matches[0].clamp_(max=-1)  # nothing is there to be found
    predictions = Predictions(
        rows=rows,
        logits_NKC=normal(3, places, CLASSES),
        boxes_NKD=0.3 * normal(3, places, 4 * bins or 4),
        anchors_K4=anchors_K4(),
        decode=decode,
        matches=tuple(matches),
        held=held,
    )
    towers: dict[str, HeadTower] = {"cls": FlatTower("logits", CLASSES), "reg": FlatTower("boxes", 4 * bins or 4)}
    logits_RC, boxes_RC4 = normal(6, CLASSES + 1), normal(6, CLASSES + 1, 4)

    def answers(proposals: Sequence[Tensor]) -> Regions:
        return Regions(proposals=tuple(proposals), logits_RC=logits_RC, boxes_RC4=boxes_RC4)

    if drawn:
        corners = [20 * torch.rand(2, 2, generator=generator) for _ in range(3)]
        proposals = [torch.cat([corner, corner + 30], 1) for corner in corners]
        regions = replace(answers(proposals), labels_R=torch.tensor([3, 1, 1, 0, 3, 2]), targets_R4=2 * normal(6, 4))
        predictions = replace(predictions, regions=regions)
    return View(features, predictions, towers, answers)


def moved(of: View, device: str) -> View:
    """All that it holds, on the device."""
    assert of.predictions is not None
    assert of.regions is not None
    made, drawn, answers = of.predictions, of.predictions.regions, of.regions
    held = {
        name: {level: tuple(each.to(device) for each in maps) for level, maps in levels.items()}
        for name, levels in made.held.items()
    }
    predictions = replace(
        made,
        logits_NKC=made.logits_NKC.to(device),
        boxes_NKD=made.boxes_NKD.to(device),
        anchors_K4=made.anchors_K4.to(device),
        matches=tuple(each.to(device) for each in made.matches or ()),
        held=held,
        regions=regions_on(drawn, device) if drawn is not None else None,
    )
    return replace(
        of,
        features={level: each.to(device) for level, each in of.features.items()},
        predictions=predictions,
        regions=lambda proposals: regions_on(answers(proposals), device),
    )


def regions_on(of: Regions, device: str) -> Regions:
    return replace(
        of,
        proposals=tuple(each.to(device) for each in of.proposals),
        logits_RC=of.logits_RC.to(device),
        boxes_RC4=of.boxes_RC4.to(device),
        labels_R=of.labels_R.to(device) if of.labels_R is not None else None,
        targets_R4=of.targets_R4.to(device) if of.targets_R4 is not None else None,
    )


def batch_on(device: str) -> Batch:
    made = batch()
    targets = [
        replace(each, boxes_K4=each.boxes_K4.to(device), labels_K=each.labels_K.to(device)) for each in made.targets
    ]
    return replace(made, images_NCHW=made.images_NCHW.to(device), targets=tuple(targets))


def learnt(of: View) -> View:
    """Its maps, logits, boxes and regions as leaves that get gradients."""
    assert of.predictions is not None
    made = of.predictions
    regions = made.regions
    if regions is not None:
        regions = replace(
            regions,
            logits_RC=regions.logits_RC.clone().requires_grad_(),
            boxes_RC4=regions.boxes_RC4.clone().requires_grad_(),
        )
    held = {
        name: {level: tuple(each.clone().requires_grad_() for each in maps) for level, maps in levels.items()}
        for name, levels in made.held.items()
    }
    predictions = replace(
        made,
        logits_NKC=made.logits_NKC.clone().requires_grad_(),
        boxes_NKD=made.boxes_NKD.clone().requires_grad_(),
        regions=regions,
        held=held,
    )
    features = {level: each.clone().requires_grad_() for level, each in of.features.items()}
    return replace(of, features=features, predictions=predictions)


def leaves(of: View) -> list[Tensor]:
    """All that `learnt` made."""
    assert of.predictions is not None
    made = of.predictions
    found = [*of.features.values(), made.logits_NKC, made.boxes_NKD]
    found += [each for levels in made.held.values() for maps in levels.values() for each in maps]
    if made.regions is not None:
        found += [made.regions.logits_RC, made.regions.boxes_RC4]
    return found
