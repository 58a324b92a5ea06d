"""Which classes a student and a teacher both know, and what a teacher of some of them teaches: those.

Methods then see the shared classes alone: as columns of what the heads say, as boxes, and as labels, counted in the
student's order. The student's other objects are kept apart (`Batch.apart`): neither imitated nor taken for background.
"""

# N images, K boxes or places, R regions, C classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fgd.class_names import shared_labels
from fgd.types import Batch, HeadTower, Output, Predictions, Regions, Target, View


@dataclass(frozen=True)
class Columns:
    """Of one network's classes those that both know."""

    labels: tuple[int, ...]
    """In the student's order, counted from 1."""
    classes: int
    """How many the network has."""

    @property
    def all(self) -> bool:
        """Whether nothing is left out, nor moved."""
        return self.labels == tuple(range(1, self.classes + 1))

    def of_logits(self, logits_NKC: Tensor) -> Tensor:
        """A column for each shared class: each is a decision by itself."""
        return logits_NKC if self.all else logits_NKC[..., [label - 1 for label in self.labels]]

    def of_regions(self, regions: Regions) -> Regions:
        """Columns for the background and each shared class. A region of another class is background to a network that
        does not know the class, so the probabilities of these add up in its column."""
        if self.all:
            return regions
        columns = [0, *self.labels]
        logits_RC, boxes_RC4 = regions.logits_RC[:, columns], regions.boxes_RC4[:, columns]
        if others := [label for label in range(1, self.classes + 1) if label not in self.labels]:
            background_R1 = regions.logits_RC[:, [0, *others]].logsumexp(1, keepdim=True)
            logits_RC = torch.cat([background_R1, logits_RC[:, 1:]], 1)
        return replace(regions, logits_RC=logits_RC, boxes_RC4=boxes_RC4)

    def of_predictions(self, predictions: Predictions) -> Predictions:
        """An objectness is of no class."""
        if predictions.objectness:
            return predictions
        return replace(predictions, logits_NKC=self.of_logits(predictions.logits_NKC))


@dataclass(frozen=True)
class SharedClasses:
    """Of a student and one of its teachers."""

    names: tuple[str, ...]
    """As the student has them."""
    ours: Columns
    theirs: Columns

    @classmethod
    def of(cls, student: Sequence[str], teacher: Sequence[str]) -> SharedClasses:
        """By name: see `shared_labels`."""
        labels = shared_labels(student, teacher)
        names = tuple(student[label - 1] for label in labels)
        return cls(names, Columns(tuple(labels), len(student)), Columns(tuple(labels.values()), len(teacher)))

    @property
    def some(self) -> bool:
        """Whether the teacher knows some of the student's classes and not others."""
        return 0 < len(self.names) < self.ours.classes

    def taught(self, student: View, batch: Batch) -> tuple[View, Batch]:
        """What a method sees of the student and the batch: of the shared classes alone, unless these are all, or none
        at all, where maps teach as they are."""
        if not self.some:
            return student, batch
        boxes = KnownBoxes.of(batch, self.ours)
        made, answers = student.predictions, student.regions
        view = replace(
            student,
            predictions=boxes.predictions(self.ours.of_predictions(made), self.ours) if made is not None else None,
            towers={name: SharedTower(tower, self.ours) for name, tower in student.towers.items()},
            regions=(lambda proposals: self.ours.of_regions(answers(proposals))) if answers is not None else None,
        )
        return view, replace(batch, targets=boxes.known, apart=boxes.apart)


@dataclass(frozen=True)
class KnownBoxes:
    """A batch's objects, those of shared classes and the others apart."""

    known: tuple[Target, ...]
    apart: tuple[Tensor, ...]
    places: tuple[Tensor, ...]
    """Of each image: box -> its place among the known ones, -2 if it is none. One more at the end."""
    labels_C: Tensor
    """The student's label, from 0, background -> the shared one; -1 if there is none."""

    @classmethod
    def of(cls, batch: Batch, ours: Columns) -> KnownBoxes:
        labels_C = torch.full((ours.classes + 1,), -1, device=batch.images_NCHW.device)
        labels_C[[0, *ours.labels]] = torch.arange(len(ours.labels) + 1, device=labels_C.device)
        known, apart, places = [], [], []
        for target in batch.targets:
            shared_K = labels_C[target.labels_K]
            is_known_K = shared_K > 0
            known.append(Target(target.boxes_K4[is_known_K], shared_K[is_known_K]))
            apart.append(target.boxes_K4[~is_known_K])
            place_K = torch.where(is_known_K, is_known_K.cumsum(0) - 1, -2)
            places.append(torch.nn.functional.pad(place_K, (0, 1), value=-2))
        return cls(tuple(known), tuple(apart), tuple(places), labels_C)

    def predictions(self, predictions: Predictions, ours: Columns) -> Predictions:
        """Places that shall find an object that is kept apart do not count, and regions drawn for one are left out."""
        matches, regions = predictions.matches, predictions.regions
        if matches is not None:
            matches = tuple(
                torch.where(match_K >= 0, place_K[match_K.clamp(min=0)], match_K)
                for match_K, place_K in zip(matches, self.places, strict=True)
            )
        regions = self.drawn(ours.of_regions(regions)) if regions is not None else None
        return replace(predictions, matches=matches, regions=regions)

    def drawn(self, regions: Regions) -> Regions:
        if regions.labels_R is None:
            return regions
        shared_R = self.labels_C[regions.labels_R]
        kept_R = shared_R >= 0
        of_images = torch.split(kept_R, [len(each) for each in regions.proposals])
        return replace(
            regions,
            proposals=tuple(each[kept] for each, kept in zip(regions.proposals, of_images, strict=True)),
            logits_RC=regions.logits_RC[kept_R],
            boxes_RC4=regions.boxes_RC4[kept_R],
            labels_R=shared_R[kept_R],
            targets_R4=regions.targets_R4[kept_R] if regions.targets_R4 is not None else None,
        )


@dataclass(frozen=True)
class SharedTower:
    """A tower of a head with a column for each shared class alone."""

    tower: HeadTower
    columns: Columns

    @property
    def depth(self) -> int:
        return self.tower.depth

    def channels(self, level: str) -> int:
        return self.tower.channels(level)

    def __call__(self, level: str, map_NCHW: Tensor, first: int = 0) -> dict[Output, Tensor]:
        rows = self.tower(level, map_NCHW, first)
        return {name: self.columns.of_logits(each) if name == "logits" else each for name, each in rows.items()}
