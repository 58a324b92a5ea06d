"""FGD in the structure of the authors' code, as METHODS.md 1.6 describes it: what `bench_loss.py` compares with.

Our own writing of that structure, for its cost: masks box by box in a Python loop over images and boxes; features
multiplied by the roots of mask and attentions and compared by a summed squared error; the context block's matrix
products on whole maps; level by level. The numbers are those of `compat: "official"`.
"""

# N images, C channels, H x W cells of one level

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fgd.methods.context import ContextBlock
from fgd.methods.fgd import FGDLoss
from fgd.types import Batch


def reference_structure(
    method: FGDLoss, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """The terms of an official `method`, with its parameters."""
    totals: dict[str, Tensor] = {}
    for level in method.scales:
        adapted_NCHW = method.align[level](student[level])
        terms = level_terms(method, level, adapted_NCHW, teacher[level].detach(), batch)
        totals = {name: totals.get(name, 0) + term for name, term in terms.items()}
    return totals


def level_terms(
    method: FGDLoss, level: str, student_NCHW: Tensor, teacher_NCHW: Tensor, batch: Batch
) -> dict[str, Tensor]:
    on, images = method.weights, len(batch.targets)
    spatial_NHW, channel_NC = attentions(teacher_NCHW, method.temperature)
    student_spatial_NHW, student_channel_NC = attentions(student_NCHW, method.temperature)
    foreground_NHW, background_NHW = masks(batch, *teacher_NCHW.shape[-2:], device=teacher_NCHW.device)

    spatial_N1HW, channel_NC11 = spatial_NHW[:, None], channel_NC[:, :, None, None]
    sides = [map_NCHW * spatial_N1HW.sqrt() * channel_NC11.sqrt() for map_NCHW in (teacher_NCHW, student_NCHW)]
    feature_losses = []
    for mask_NHW in (foreground_NHW, background_NHW):
        teacher_side, student_side = (side * mask_NHW[:, None].sqrt() for side in sides)
        feature_losses.append(mse_loss(student_side, teacher_side, reduction="sum") / images)

    attention = (channel_NC - student_channel_NC).abs().sum() * on.channel
    attention = (attention + (spatial_NHW - student_spatial_NHW).abs().sum() * on.spatial) / images
    student_related = related(student_NCHW, method.student_context[level])
    teacher_related = related(teacher_NCHW, method.teacher_context[level])
    return {
        "fg": on.foreground * feature_losses[0],
        "bg": on.background * feature_losses[1],
        "attention": attention,
        "global": on.global_ * mse_loss(student_related, teacher_related, reduction="sum") / images,
    }


def attentions(feature_NCHW: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Equations 4-7."""
    images, channels, height, width = feature_NCHW.shape
    magnitude_NCHW = feature_NCHW.abs()
    spatial_NP = (magnitude_NCHW.mean(1) / temperature).view(images, -1).softmax(1)
    channel_NC = (magnitude_NCHW.mean(3).mean(2) / temperature).softmax(1)
    return (height * width * spatial_NP).view(images, height, width), channels * channel_NC


def masks(batch: Batch, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Equations 2 and 3, one box after the other."""
    foreground_NHW = torch.zeros(len(batch.targets), height, width, device=device)
    background_NHW = torch.ones_like(foreground_NHW)
    for n, (target, (image_height, image_width)) in enumerate(zip(batch.targets, batch.image_sizes, strict=True)):
        scale_4 = torch.tensor([width, height, width, height]) / torch.tensor([image_width, image_height] * 2)
        for box_4 in target.boxes_K4.cpu() * scale_4:
            x1, y1, x2, y2 = box_4.tolist()
            lines = slice(math.floor(y1), math.ceil(y2) + 1)
            columns = slice(math.floor(x1), math.ceil(x2) + 1)
            share = 1.0 / ((lines.stop - lines.start) * (columns.stop - columns.start))
            region_HW = foreground_NHW[n, lines, columns]
            foreground_NHW[n, lines, columns] = torch.maximum(region_HW, torch.full_like(region_HW, share))
        background_NHW[n] = torch.where(foreground_NHW[n] > 0, 0.0, background_NHW[n])
        cells = background_NHW[n].sum()
        if cells:
            background_NHW[n] /= cells
    return foreground_NHW, background_NHW


def related(feature_NCHW: Tensor, block: ContextBlock) -> Tensor:
    """Equation 11."""
    images, channels = feature_NCHW.shape[:2]
    logits_N1P1 = block.attend(feature_NCHW).view(images, 1, -1).softmax(2).unsqueeze(3)
    context_NC11 = torch.matmul(feature_NCHW.view(images, 1, channels, -1), logits_N1P1).view(images, channels, 1, 1)
    added_NC11: Tensor = block.transform(context_NC11)
    return feature_NCHW + added_NC11
