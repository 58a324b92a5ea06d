"""FGD as its formulas stand (METHODS.md 1.1, equations 4-12): dozens of passes over the maps, and no doubt.

The oracle of `fgd.methods.maps`: autograd finds the gradients here. The masks are `fgd.methods.geometry`'s, which has
an oracle of its own.
"""

# N images, C channels of the teacher, H x W cells of one level

from __future__ import annotations

import torch
from torch import Tensor

from fgd.methods.context import ContextBlock
from fgd.methods.fgd import FGDLoss
from fgd.methods.geometry import Grid, Layout, scale_masks, valid_cells
from fgd.types import Batch, View


def plain_fgd(method: FGDLoss, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
    """The terms of `method` without its way of computing them."""
    totals: dict[str, Tensor] = {}
    for level in method.scales:
        terms = plain_level(method, level, student.features[level], teacher.features[level].detach(), batch)
        totals = {name: totals.get(name, 0) + term for name, term in terms.items()}  # type: ignore[misc]
    return totals


def plain_level(
    method: FGDLoss, level: str, student_NCHW: Tensor, teacher_NCHW: Tensor, batch: Batch
) -> dict[str, Tensor]:
    images, _, *size = teacher_NCHW.shape
    student_NCHW = method.align[level](student_NCHW) * method.scales[level]
    teacher_NCHW = teacher_NCHW * method.scales[level]
    valid_NHW, foreground_NHW, background_NHW = plain_masks(method, batch, (size[0], size[1]), teacher_NCHW.device)

    on = method.weights
    spatial_NHW, channel_NC = plain_attentions(teacher_NCHW, method.temperature, valid_NHW)
    student_spatial_NHW, student_channel_NC = plain_attentions(student_NCHW, method.temperature, valid_NHW)
    weight_NCHW = spatial_NHW[:, None] * channel_NC[:, :, None, None]
    error_NCHW = weight_NCHW * (student_NCHW - teacher_NCHW).square()
    terms = {}
    if on.foreground:
        terms["fg"] = on.foreground * (foreground_NHW[:, None] * error_NCHW).sum()
    if on.background:
        terms["bg"] = on.background * (background_NHW[:, None] * error_NCHW).sum()
    if on.spatial:
        terms["attention"] = (
            on.spatial * (spatial_NHW - student_spatial_NHW).abs().sum()
            + on.channel * (channel_NC - student_channel_NC).abs().sum()
        )
    if on.global_:
        student_related = plain_related(student_NCHW, valid_NHW, method.student_context[level])  # type: ignore[arg-type]
        teacher_related = plain_related(teacher_NCHW, valid_NHW, method.teacher_context[level])  # type: ignore[arg-type]
        terms["global"] = on.global_ * ((student_related - teacher_related).square() * valid_NHW[:, None]).sum()
    return {name: term / images for name, term in terms.items()}


def plain_masks(
    method: FGDLoss, batch: Batch, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    layout, grid = Layout.of(batch, device), Grid.of((size,), device)
    valid_NP, _ = valid_cells(layout, grid)
    if method.official:
        valid_NP = torch.ones_like(valid_NP)
    masks = scale_masks(method.box_cells(layout, grid), valid_NP, grid)
    valid_NHW, foreground_NHW, background_NHW = (each.view(-1, *size) for each in (valid_NP, *masks))
    return valid_NHW, foreground_NHW, background_NHW


def plain_attentions(feature_NCHW: Tensor, temperature: float, valid_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 4-7."""
    cells_N = valid_NHW.sum((1, 2))
    logits_NHW = (feature_NCHW.abs().mean(1) / temperature).masked_fill(~valid_NHW, float("-inf"))
    spatial_NHW = cells_N[:, None, None] * logits_NHW.flatten(1).softmax(1).view_as(logits_NHW)
    mean_NC = (feature_NCHW.abs() * valid_NHW[:, None]).sum((2, 3)) / cells_N[:, None]
    return spatial_NHW, feature_NCHW.shape[1] * (mean_NC / temperature).softmax(1)


def plain_related(feature_NCHW: Tensor, valid_NHW: Tensor, block: ContextBlock) -> Tensor:
    """Equation 11, R(F)."""
    logits_NHW = block.attend(feature_NCHW).squeeze(1).masked_fill(~valid_NHW, float("-inf"))
    share_NHW = logits_NHW.flatten(1).softmax(1).view_as(logits_NHW)
    context_NC11 = (feature_NCHW * share_NHW[:, None]).sum((2, 3), keepdim=True)
    related_NCHW: Tensor = feature_NCHW + block.transform(context_NC11)
    return related_NCHW
