"""FGD with one of its choices changed, for comparisons: another statistic, one attention alone, no split, another
global module. Written as the formulas stand; `fgd.methods.fgd` is the same for the paper's choices, and faster.

- `split` false: one mean over all cells of the image instead of a sum over boxes and a mean over the background. Its
  weight is 7.3 alpha + beta, what both weigh in an image of the reference's mean number of boxes.
- `attend` "spatial" or "channel": the other attention is 1 everywhere, and has no part in the attention term.
- `attention`: the attentions are softmaxes of the mean |F|, the largest |F| or the mean F^2, over channels or cells.
- `global_module` "non_local": FKD's block instead of the context block. "relation": the mean difference of the cosines
  between an image's boxes, as `relations` has it; lambda weighs it like the sum of squares 0.3^2 over the reference's
  finest level.
"""

# N images, C channels, H x W cells of a level

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor, nn

from fgd.method_specs import FGD
from fgd.methods.attention import attention_focus, attentions, temperatures
from fgd.methods.base import Method, Pair, SharedLevel, adapters, resolved
from fgd.methods.context import ContextBlock, context_focus, context_shares
from fgd.methods.fgd import BOX_CELLS, FGDLoss, mask_focus, weights
from fgd.methods.fkd import NonLocal
from fgd.methods.focus import Focus
from fgd.methods.geometry import Grid, Layout, scale_masks, valid_cells
from fgd.methods.paired import (
    REFERENCE_BOXES,
    TEACHER_RMS,
    PairedMaps,
    paired,
    per_width,
    scales_of,
)
from fgd.methods.relations import relation_error
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View


def fgd_loss(spec: FGD, pair: Pair, calibration: Calibration, schedule: Schedule) -> Method:
    """The fast way where the paper's choices are asked for."""
    return (VariedFGDLoss if spec.varied() else FGDLoss)(spec, pair, calibration, schedule)


class VariedFGDLoss(Method):
    """Terms as `FGDLoss`, "unsplit" instead of "fg" and "bg" where they are not apart."""

    def __init__(self, spec: FGD, pair: Pair, calibration: Calibration, schedule: Schedule) -> None:
        super().__init__()
        self.spec = spec
        self.on = weights(spec, pair, calibration, schedule)
        self.shares = spec.shares.by_term() if spec.shares is not None else None
        first = next(iter(pair.levels.values()))
        self.unsplit = per_width(first.teacher_channels) * (
            REFERENCE_BOXES * resolved(spec.alpha) + resolved(spec.beta)
        )
        self.box_cells = BOX_CELLS[spec.box_cells or "tight"]
        self.scales = scales_of(pair, calibration, official=False)
        self.temperatures = temperatures(spec, pair.levels, calibration)
        self.strides = [level.stride for level in pair.levels.values()]
        self.narrower = {name: first.teacher_channels / level.teacher_channels for name, level in pair.levels.items()}
        self.align = adapters(pair)
        related = pair.levels if self.on.global_ and spec.global_module != "relation" else {}
        make = GLOBAL_MODULES.get(spec.global_module, GLOBAL_MODULES["gc"])
        self.student_related = nn.ModuleDict({name: make(level) for name, level in related.items()})
        self.teacher_related = nn.ModuleDict({name: make(level) for name, level in related.items()})
        self.teacher_related.requires_grad_(not spec.freeze_teacher_gc)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, list[Tensor]] = {}
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            levels = list(paired(student, teacher, batch, align=self.align, scales=self.scales, official=False))
            for maps in levels:
                for name, value in self._of_level(maps, batch).items():
                    terms.setdefault(name, []).append(self.narrower[maps.level] * value / len(batch.targets))
            if self.on.global_ and self.spec.global_module == "relation":
                of_finest = self.on.global_ * per_cells(levels[0]) * TEACHER_RMS**2
                terms["global"] = [of_finest * relation_error(levels, self.strides, batch)]
        return {name: torch.stack(values).sum() for name, values in terms.items()}

    def focus(self, student: View, teacher: View, batch: Batch) -> Iterator[Focus]:
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for maps in paired(student, teacher, batch, align=self.align, scales=self.scales, official=False):
                if self.spec.split and self.on.feature:
                    yield from mask_focus(maps.level, *(mask_N1HW[:, 0] for mask_N1HW in self._masks(maps, batch)))
                for each in attention_focus(maps, self.temperatures[maps.level], self.spec.attention):
                    if self.spec.attend == "both" or each.name == f"{self.spec.attend} attention":
                        yield each
                if self.student_related and self.spec.global_module == "gc":
                    ours, theirs = self.student_related[maps.level], self.teacher_related[maps.level]
                    assert isinstance(ours, ContextBlock)
                    assert isinstance(theirs, ContextBlock)
                    yield from context_focus(ours, theirs, maps)

    def _of_level(self, maps: PairedMaps, batch: Batch) -> dict[str, Tensor]:
        ours_NCHW, theirs_NCHW, valid_N1HW = maps.maps
        on, attend, narrower = self.on, self.spec.attend, self.narrower[maps.level]
        spatial_N1HW, channel_NC11 = self._attentions(maps.level, theirs_NCHW, valid_N1HW)
        weight_NCHW = (spatial_N1HW if attend in ("both", "spatial") else valid_N1HW) * (
            channel_NC11 if attend in ("both", "channel") else 1.0
        )
        error_N1HW = (weight_NCHW * (ours_NCHW - theirs_NCHW).square()).sum(1, keepdim=True)
        terms = {}
        if not self.spec.split:
            if self.unsplit:
                cells_N111 = valid_N1HW.sum((1, 2, 3), keepdim=True).clamp(min=1)
                terms["unsplit"] = self.unsplit * (error_N1HW / cells_N111).sum()
        elif on.feature:
            foreground_N1HW, background_N1HW = self._masks(maps, batch)
            if on.foreground:
                terms["fg"] = on.foreground * (foreground_N1HW * error_N1HW).sum()
            if on.background:
                terms["bg"] = on.background * (background_N1HW * error_N1HW).sum()
        if on.spatial and attend != "none":
            our_spatial_N1HW, our_channel_NC11 = self._attentions(maps.level, ours_NCHW, valid_N1HW)
            of_cells = on.spatial / narrower * (spatial_N1HW - our_spatial_N1HW).abs().sum()
            of_channels = on.channel * (channel_NC11 - our_channel_NC11).abs().sum()
            chosen = {"both": [of_cells, of_channels], "spatial": [of_cells], "channel": [of_channels]}[attend]
            terms["attention"] = reduce(torch.add, chosen)
        if on.global_ and self.student_related:
            ours, theirs = self.student_related[maps.level], self.teacher_related[maps.level]
            difference_NCHW = related(ours, ours_NCHW, valid_N1HW) - related(theirs, theirs_NCHW, valid_N1HW)
            terms["global"] = on.global_ * (valid_N1HW * difference_NCHW.square()).sum()
        return terms

    def _attentions(self, level: str, map_NCHW: Tensor, valid_N1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Spatial, N1HW, and channel, NC11, each of mean 1 over the cells that count."""
        spatial_N1HW, channel_NC = attentions(map_NCHW, valid_N1HW, self.temperatures[level], self.spec.attention)
        return spatial_N1HW, channel_NC[..., None, None]

    def _masks(self, maps: PairedMaps, batch: Batch) -> tuple[Tensor, Tensor]:
        """Equations 2 and 3, N1HW each."""
        height, width = maps.teacher_NCHW.shape[2:]
        device = maps.teacher_NCHW.device
        layout, grid = Layout.of(batch, device), Grid.of(((height, width),), device)
        valid_NP, _ = valid_cells(layout, grid)
        foreground_NP, background_NP = scale_masks(self.box_cells(layout, grid), valid_NP, grid)
        return foreground_NP.view(-1, 1, height, width), background_NP.view(-1, 1, height, width)


def context_block(level: SharedLevel) -> nn.Module:
    return ContextBlock(level.teacher_channels)


def non_local_block(level: SharedLevel) -> nn.Module:
    return NonLocal.at(level.teacher_channels, level.stride)


GLOBAL_MODULES: dict[str, Callable[[SharedLevel], nn.Module]] = {"gc": context_block, "non_local": non_local_block}


def related(block: nn.Module, map_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
    """R(F)."""
    made: Tensor
    if not isinstance(block, ContextBlock):
        made = block(map_NCHW, valid_N1HW)
        return made
    share_N1HW = context_shares(block.attend, map_NCHW, valid_N1HW)
    made = map_NCHW + block((share_N1HW * map_NCHW).sum((2, 3)))[..., None, None]
    return made


def per_cells(maps: PairedMaps) -> float:
    """Channels and cells of the level: what a sum over it has more than a mean."""
    return float(maps.teacher_NCHW[0].numel())
