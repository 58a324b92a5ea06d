"""The student and what it learns with: one forward pass gives every loss. Knows nothing of steps, files or devices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fgd.detectors import Detector
from fgd.detectors.folding import fold, to_bf16
from fgd.methods.base import Method
from fgd.recipe import Recipe
from fgd.types import Batch


class Distill(nn.Module):
    """The one module that trains. The teacher stays outside: frozen, in eval mode, run only to its neck."""

    def __init__(self, student: Detector, methods: Mapping[str, Method]) -> None:
        super().__init__()
        self.student = student
        self.methods = nn.ModuleDict(dict(methods))

    def forward(self, batch: Batch, teacher_features: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Weighted losses by name: detection/<term> of the detector, <method>/<term> of each method."""
        features = self.student.features(batch.images_NCHW)
        losses = {f"detection/{name}": loss for name, loss in self.student.losses(features, batch).items()}
        if teacher_features is not None:
            for kind, method in self.methods.items():
                terms = method(features, teacher_features, batch)
                losses |= {f"{kind}/{name}": term for name, term in terms.items()}
        return losses


class Teacher:
    """A frozen detector, run to its neck on the student's own input, normalised as the teacher knows it.

    It takes the detector over: batch norms are folded into the convolutions, and these are laid out channels last.
    """

    def __init__(self, detector: Detector, student: Recipe) -> None:
        self.parameters = sum(parameter.numel() for parameter in detector.parameters())
        """As the detector came; folding changes their number."""
        self.detector = detector.eval().requires_grad_(False)
        self.dtype = torch.float32
        """Of trunk and neck."""
        fold(self.trunk)
        self.trunk.to(memory_format=torch.channels_last)
        recipe = detector.recipe
        self.same_pixels = (recipe.image_mean, recipe.image_std) == (student.image_mean, student.image_std)
        mean, std = torch.tensor(recipe.image_mean), torch.tensor(recipe.image_std)
        theirs = {stride: name for name, stride in recipe.detector.levels().items()}
        ours = student.detector.levels()
        self.shared = {name: theirs[stride] for name, stride in ours.items() if stride in theirs}
        """The student's name of each level that both have -> the teacher's."""
        self.scale_C = torch.tensor(student.image_std) / std
        self.shift_C = (torch.tensor(student.image_mean) - mean) / std

    @property
    def trunk(self) -> nn.Module:
        """Trunk and neck: all that teaches."""
        return self.detector.module.get_submodule("backbone")

    def quicken(self) -> None:
        """Trunk and neck compute in bf16 from now on; the maps come out float32 all the same."""
        to_bf16(self.trunk)
        self.dtype = torch.bfloat16

    def shared_features(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's maps of the levels that the student has too, by the student's names."""
        maps = self.features(batch)
        return {ours: maps[theirs] for ours, theirs in self.shared.items()}

    @torch.no_grad()
    def features(self, batch: Batch) -> dict[str, Tensor]:
        """All of its maps, by its own names; contiguous, as the student's are that they are compared with."""
        # no_grad and not inference_mode: the losses save these maps for their backward pass
        images_NCHW = batch.images_NCHW if self.same_pixels else self.renormalised(batch)
        maps = self.detector.features(images_NCHW.to(self.dtype))
        return {level: map_NCHW.contiguous() for level, map_NCHW in maps.items()}

    def renormalised(self, batch: Batch) -> Tensor:
        """The same pixels with the teacher's mean and std; padding stays zero, as the teacher was trained."""
        images_NCHW = torch.zeros_like(batch.images_NCHW)
        scale_C11, shift_C11 = (each.to(images_NCHW.device)[:, None, None] for each in (self.scale_C, self.shift_C))
        for n, (height, width) in enumerate(batch.image_sizes):
            inside = (n, slice(None), slice(height), slice(width))
            images_NCHW[inside] = batch.images_NCHW[inside] * scale_C11 + shift_C11
        return images_NCHW
