"""The student and what it learns with: one forward pass gives every loss. Knows nothing of steps, files or devices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fgd.detector_specs import OF_THE_HEAD, Need
from fgd.detectors import Detector
from fgd.detectors.folding import fold, to_bf16
from fgd.engine.shared_classes import SharedClasses
from fgd.methods.base import Method
from fgd.recipe import Recipe
from fgd.types import Batch, HeadTower, Output, Predictions, Regions, View


@dataclass(frozen=True)
class Lesson:
    """The methods of one teacher."""

    methods: Mapping[str, Method]
    """By their titles."""
    classes: SharedClasses | None = None
    """What it knows of the student's classes; None: all."""


class Distill(nn.Module):
    """The one module that trains. Teachers stay outside: frozen, in eval mode, run only as far as is needed."""

    def __init__(self, student: Detector, lessons: Mapping[str, Lesson], needs: Collection[Need] = ()) -> None:
        """lessons: by the teachers' names, in the order of the methods. needs: what the methods take of the student
        besides maps."""
        super().__init__()
        self.student = student
        self.methods = nn.ModuleDict(
            {title: method for lesson in lessons.values() for title, method in lesson.methods.items()}
        )
        self.titles = {name: tuple(lesson.methods) for name, lesson in lessons.items()}
        self.classes = {name: lesson.classes for name, lesson in lessons.items()}
        self.needs = frozenset(needs)

    def forward(
        self, batch: Batch, teachers: Mapping[str, View], detection: str | None = "detection"
    ) -> dict[str, Tensor]:
        """Weighted losses by name: detection/<term> of the detector, <title>/<term> of each method.

        teachers: what each shows of the batch, by name. detection: another name of the detector's losses; None: without
        them, for boxes that are none of its labels.
        """
        return self.losses(self.student.features(batch.images_NCHW), batch, teachers, detection)

    def losses(
        self,
        features: Mapping[str, Tensor],
        batch: Batch,
        teachers: Mapping[str, View],
        detection: str | None = "detection",
    ) -> dict[str, Tensor]:
        """The same from the student's maps on."""
        student = self.student
        predictions, losses = None, dict[str, Tensor]()
        if detection is not None or self.needs - {"features"}:
            predictions = student.predict(features, batch, hold="towers" in self.needs)
        if detection is not None:
            assert predictions is not None
            losses = {f"{detection}/{name}": loss for name, loss in student.losses(predictions, batch).items()}
        answers = partial(student.regions, features, batch) if "proposals" in self.needs else None
        whole = View(features, predictions, student.towers(), answers)
        for name, teacher in teachers.items():
            classes = self.classes[name]
            view, of_classes = classes.taught(whole, batch) if classes is not None else (whole, batch)
            for title in self.titles[name]:
                terms = self.methods[title](view, teacher, of_classes)
                losses |= {f"{title}/{term}": loss for term, loss in terms.items()}
        return losses

    @property
    def device(self) -> torch.device:
        """Where the student's weights are."""
        return next(self.student.parameters()).device


class Teacher:
    """A frozen detector, run on the student's own input, normalised as the teacher knows it: to its neck, and through
    its head if a method takes something of that.

    It takes the detector over: batch norms of trunk and neck are folded into the convolutions, and these are laid out
    channels last. Levels have the student's names in all that it shows, and classes are those that the student has too,
    in the student's order.
    """

    def __init__(self, detector: Detector, student: Recipe, needs: Collection[Need] = ()) -> None:
        """needs: what the methods take of both networks besides maps."""
        self.parameters = sum(parameter.numel() for parameter in detector.parameters())
        """As the detector came; folding changes their number."""
        self.detector = detector.eval().requires_grad_(False)
        self.dtype = torch.float32
        """Of trunk and neck."""
        for part in detector.trunk_and_neck:
            fold(part)
            part.to(memory_format=torch.channels_last)
        self.needs = frozenset(needs)
        recipe = detector.recipe
        self.student_classes = student.classes
        self.classes = SharedClasses.of(student.classes, recipe.classes)
        self.same_pixels = (recipe.image_mean, recipe.image_std) == (student.image_mean, student.image_std)
        mean, std = torch.tensor(recipe.image_mean), torch.tensor(recipe.image_std)
        theirs = {level.stride: level.name for level in recipe.detector.levels()}
        ours = student.detector.levels()
        self.shared = {level.name: theirs[level.stride] for level in ours if level.stride in theirs}
        """The student's name of each level that both have -> the teacher's."""
        self.scale_C = torch.tensor(student.image_std) / std
        self.shift_C = (torch.tensor(student.image_mean) - mean) / std

    @property
    def known_labels(self) -> Collection[int] | None:
        """Of the student's classes those whose objects it teaches; None: all."""
        return self.classes.ours.labels if self.classes.some else None

    def quicken(self) -> None:
        """Trunk and neck compute in bf16 from now on; the maps come out float32 all the same."""
        for part in self.detector.trunk_and_neck:
            to_bf16(part)
        self.dtype = torch.bfloat16

    def view(self, batch: Batch) -> View:
        """What the methods see of it."""
        return self.view_of(self.features(batch), batch)

    def view_of(self, maps: Mapping[str, Tensor], batch: Batch, made: Predictions | None = None) -> View:
        """made: what the head says of the maps, if it has been run."""
        return View(
            features=self.of_shared(maps),
            predictions=self.predictions(maps, batch, made) if self.needs & OF_THE_HEAD else None,
            towers=self.towers(),
            regions=partial(self.regions, maps, batch) if "proposals" in self.needs else None,
        )

    def shared_features(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's maps of the levels that the student has too, by the student's names."""
        return self.of_shared(self.features(batch))

    def of_shared(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {ours: maps[theirs] for ours, theirs in self.shared.items()}

    @torch.no_grad()
    def features(self, batch: Batch) -> dict[str, Tensor]:
        """All of its maps, by its own names; contiguous, as the student's are that they are compared with."""
        # no_grad and not inference_mode: the losses save these maps for their backward pass
        images_NCHW = batch.images_NCHW if self.same_pixels else self.renormalised(batch)
        maps = self.detector.features(images_NCHW.to(self.dtype))
        return {level: map_NCHW.contiguous() for level, map_NCHW in maps.items()}

    @torch.no_grad()
    def predictions(self, maps: Mapping[str, Tensor], batch: Batch, made: Predictions | None = None) -> Predictions:
        hold, regions = "towers" in self.needs, "proposals" in self.needs
        made = made or self.detector.predict(maps, batch, hold=hold, regions=regions)
        names = {theirs: ours for ours, theirs in self.shared.items()}
        return replace(
            made,
            rows={names.get(level, f"the teacher's {level}"): count for level, count in made.rows.items()},
            logits_NKC=made.logits_NKC if made.objectness else self.classes.theirs.of_logits(made.logits_NKC),
            held={
                tower: {names[level]: maps for level, maps in of_levels.items() if level in names}
                for tower, of_levels in made.held.items()
            },
            regions=self.classes.theirs.of_regions(made.regions) if made.regions is not None else None,
        )

    def towers(self) -> dict[str, HeadTower]:
        return {name: TeacherTower(self, tower) for name, tower in self.detector.towers().items()}

    @torch.no_grad()
    def regions(self, maps: Mapping[str, Tensor], batch: Batch, proposals: Sequence[Tensor]) -> Regions:
        return self.classes.theirs.of_regions(self.detector.regions(maps, batch, proposals))

    def renormalised(self, batch: Batch) -> Tensor:
        """The same pixels with the teacher's mean and std; padding stays zero, as the teacher was trained."""
        images_NCHW = torch.zeros_like(batch.images_NCHW)
        scale_C11, shift_C11 = (each.to(images_NCHW.device)[:, None, None] for each in (self.scale_C, self.shift_C))
        for n, (height, width) in enumerate(batch.image_sizes):
            inside = (n, slice(None), slice(height), slice(width))
            images_NCHW[inside] = batch.images_NCHW[inside] * scale_C11 + shift_C11
        return images_NCHW


@dataclass(frozen=True)
class TeacherTower:
    """A tower of the teacher's head by the student's names of levels, with a column for each shared class."""

    teacher: Teacher
    tower: HeadTower

    @property
    def depth(self) -> int:
        return self.tower.depth

    def channels(self, level: str) -> int:
        return self.tower.channels(self.teacher.shared[level])

    def __call__(self, level: str, map_NCHW: Tensor, first: int = 0) -> dict[Output, Tensor]:
        rows, columns = self.tower(self.teacher.shared[level], map_NCHW, first), self.teacher.classes.theirs
        return {name: columns.of_logits(each) if name == "logits" else each for name, each in rows.items()}
