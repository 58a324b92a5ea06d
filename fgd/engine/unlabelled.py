"""Images without labels: the boxes that the teacher is sure of stand for them. Knows no steps and no files."""

# K boxes of an image

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fgd.class_names import shared_labels
from fgd.engine.distill import Teacher
from fgd.events import Note
from fgd.types import Batch, Detections, Target, View


@dataclass(frozen=True)
class Looked:
    """A batch whose targets are what the teachers found, and what the methods see of each, by name."""

    batch: Batch
    views: Mapping[str, View] | None = None
    """None: to be asked for."""


@torch.no_grad()
def look(teachers: Mapping[str, Teacher], batch: Batch, score: float) -> Looked:
    """Run each teacher to its detections, once for boxes and methods. Of several that know a class the first finds its
    objects."""
    views: dict[str, View] = {}
    of_teachers: list[tuple[Target, ...]] = []
    taken = set[int]()
    for name, teacher in teachers.items():
        maps = teacher.features(batch)
        made = teacher.detector.predict(maps, batch, hold="towers" in teacher.needs)
        # In pixels of the padded input, as targets are.
        found = teacher.detector.detect(made, replace(batch, original_sizes=batch.image_sizes))
        labels = {theirs: ours for ours, theirs in teacher_labels(teacher).items() if ours not in taken}
        taken |= set(labels.values())
        of_teachers.append(tuple(confident(each, labels, score) for each in found))
        views[name] = teacher.view_of(maps, batch, made)
    targets = tuple(together(each) for each in zip(*of_teachers, strict=True))
    return Looked(replace(batch, targets=targets), views)


def together(found: Sequence[Target]) -> Target:
    """What several teachers found in an image."""
    if len(found) == 1:
        return found[0]
    return Target(torch.cat([each.boxes_K4 for each in found]), torch.cat([each.labels_K for each in found]))


def teacher_labels(teacher: Teacher) -> dict[int, int]:
    """The student's label -> the teacher's, of each class that both know by name."""
    return shared_labels(teacher.student_classes, teacher.detector.recipe.classes)


def confident(found: Detections, labels: Mapping[int, int], score: float) -> Target:
    """labels: the teacher's -> the student's; boxes of other classes are left out."""
    ours_K = torch.tensor([labels.get(label, 0) for label in found.labels_K.tolist()], dtype=torch.int64)
    ours_K = ours_K.to(found.labels_K.device)
    sides_K2 = found.boxes_K4[:, 2:] - found.boxes_K4[:, :2]
    kept_K = (found.scores_K >= score) & (ours_K > 0) & (sides_K2 > 0).all(dim=1)
    return Target(found.boxes_K4[kept_K], ours_K[kept_K])


class FoundBoxes:
    """How many boxes stand for labels in the images of this process, since the last report and in all."""

    def __init__(self, score: float) -> None:
        self.score = score
        self.images = self.boxes = 0
        self.images_before = self.boxes_before = 0

    def add(self, batch: Batch) -> None:
        self.images += len(batch.targets)
        self.boxes += sum(len(target.boxes_K4) for target in batch.targets)

    def figures(self) -> dict[str, float]:
        """Of the images since this was asked last; none if there were none."""
        images, boxes = self.images - self.images_before, self.boxes - self.boxes_before
        self.images_before, self.boxes_before = self.images, self.boxes
        return {"unlabelled/boxes_per_image": boxes / images} if images else {}

    def warning(self) -> Note | None:
        """Where the teacher is sure of nothing."""
        if self.boxes or not self.images:
            return None
        message = (
            f"the teacher found no box with a score of {self.score:g} or more in {self.images} unlabelled images: they "
            "all count as background; give `unlabelled` a lower score, or take another teacher"
        )
        return Note(code="unlabelled_without_boxes", message=message, data={"images": self.images}, level="warning")
