"""What the losses need of two feature maps, at the speed of memory.

Written as formulas a loss reads and writes each map dozens of times. Here a pass takes a block that stays in the
processor's cache, does all that is to be done with it, and keeps sums over channels (a number per cell) and over cells
(a number per channel). The rest is algebra on those sums; it is small, and stays with the losses and with autograd.
Two passes give the sums and two more the gradient, which is the only thing of a map's size that is allocated.
"""

# N images, C channels, P cells of one level; a block is a part of each

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_BLOCK = 2**20
"""Values worked on at a time: 4 MiB, so that blocks and buffers stay in cache and each operation is worth starting."""
GPU_BLOCK = 2**23
"""Bounds the buffers to 32 MiB each; larger ones would only save a few calls."""

SMALL = 2**15
"""Values of an image's block below which a call costs more than its work."""

Block = tuple[slice, slice, slice]
"""Images, channels, cells."""


class WantedSums(NamedTuple):
    """Which sums are computed; the others stay zero."""

    feature: bool = False
    magnitude: bool = False
    context: bool = False
    error: bool = False


class Sums(NamedTuple):
    """Of a student's map s, a teacher's t and d = s - t; v is 1 on valid cells, else 0."""

    student_cells_NP: Tensor
    """sum_c |s|, if `magnitude`."""
    student_channels_NC: Tensor
    """sum_p v |s|, if `magnitude`."""
    teacher_cells_NP: Tensor
    """sum_c |t|, if `magnitude` or `feature`."""
    teacher_channels_NC: Tensor
    """sum_p v |t|, if `magnitude` or `feature`."""
    feature_NP: Tensor
    """sum_c A_c d^2, if `feature`; A = C softmax_c(mean_p |t| / T) is the teacher's channel attention."""
    error_NP: Tensor
    """sum_c d^2, if `error` or `context`."""
    difference_NC: Tensor
    """sum_p v d, if `context`."""
    student_context_NC: Tensor
    """sum_p softmax_p(w . s_p) s_p over the valid cells, if `context`; w: the student's weights in `Attend`."""
    teacher_context_NC: Tensor
    """The same of t, with the teacher's w, if `context`."""


def needed_by(wanted: WantedSums) -> tuple[bool, ...]:
    """Of each of `Sums`."""
    teacher = wanted.magnitude or wanted.feature
    squares = (wanted.feature, wanted.error or wanted.context)
    return (wanted.magnitude, wanted.magnitude, teacher, teacher, *squares, *[wanted.context] * 3)


class Attend(NamedTuple):
    """Weights (C, and any trailing ones) and biases behind the logits of the two contexts."""

    student: Tensor
    student_bias: Tensor
    teacher: Tensor
    teacher_bias: Tensor


class Plane(NamedTuple):
    """added_p + channel_c cell_p: a map of few numbers."""

    added_NP: Tensor
    channel_NC: Tensor
    cell_NP: Tensor

    def write(self, block: Block, out_NCP: Tensor) -> Tensor:
        n, c, p = block
        added, channel, cell = self.added_NP[n, None, p], self.channel_NC[n, c, None], self.cell_NP[n, None, p]
        return torch.addcmul(added, channel, cell, out=out_NCP)


class Softmax(NamedTuple):
    """Behind a context: the gradient of its logits is share_p (context_c . x_cp - mean), x the map."""

    context_NC: Tensor
    """Gradient of the context."""
    mean_N1: Tensor
    """sum_p share_p (context_c . x_cp), which is the gradient of the context times the context."""
    share_NP: Tensor


def compare(
    student_NCP: Tensor,
    teacher_NCP: Tensor,
    valid_NP: Tensor,
    wanted: WantedSums,
    *,
    temperature: float = 1.0,
    attend: Attend | None = None,
) -> Sums:
    """The wanted sums. Gradients reach the student's map and `attend`, never the teacher's map.

    Maps of any float type and memory layout, read as they are; float64 is summed in float64, all else in float32.
    """
    dtype = torch.float64 if student_NCP.dtype == torch.float64 else torch.float32
    weights = (None,) * 4 if attend is None else attend
    return Sums(*_Compare.apply(student_NCP, teacher_NCP.detach(), valid_NP.to(dtype), wanted, temperature, *weights))


class _Compare(torch.autograd.Function):
    """The biases are arguments for their gradient's sake, which is zero: a softmax does not see a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NCP: Tensor,
        teacher_NCP: Tensor,
        valid_NP: Tensor,
        wanted: WantedSums,
        temperature: float,
        *attend: Tensor | None,
    ) -> tuple[Tensor, ...]:
        weights = CellWeights.of(student_NCP, valid_NP, *attend[::2])
        sums = Sums(
            *(valid_NP.new_zeros(len(valid_NP), student_NCP.shape[2 if "NP" in f else 1]) for f in Sums._fields)
        )
        with torch.autocast(valid_NP.device.type, enabled=False):
            maps = Maps(student_NCP, teacher_NCP, valid_NP.dtype)
            for blocks in maps.groups:
                _magnitudes(maps, blocks, wanted, weights, sums)
                _weigh(blocks[0][0], wanted, temperature, weights, sums)
                _differences(maps, blocks[::-1], wanted, weights, sums)  # what was read last is still in cache
        ctx.save_for_backward(student_NCP, teacher_NCP)  # freed by backward; the rest lives as long as the loss
        ctx.wanted, ctx.weights = wanted, weights
        ctx.contexts_NC = sums.student_context_NC.clone(), sums.teacher_context_NC.clone()  # outputs would be a cycle
        ctx.attend = [each is not None and each.shape for each in attend]
        ctx.mark_non_differentiable(sums.teacher_cells_NP, sums.teacher_channels_NC)
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student_NCP, teacher_NCP = ctx.saved_tensors
        weights, wanted = ctx.weights, ctx.wanted
        of_teacher = ctx.needs_input_grad[7]
        parts = GradientParts.of(Sums(*upstream), weights, ctx.contexts_NC, wanted, of_teacher=of_teacher)
        with torch.autocast(student_NCP.device.type, enabled=False):
            gradient_NCP = torch.empty_like(student_NCP)
            maps = Maps(student_NCP, teacher_NCP, weights.valid_NP.dtype)
            for blocks in maps.groups:
                if wanted.context:
                    _logits_gradients(maps, blocks, parts)
                _gradients(maps, blocks[::-1], wanted, parts, gradient_NCP)
        attend = [
            parts.student_attend_NC.sum(0),
            parts.student_attend_NC.new_zeros(1),
            parts.teacher_attend_NC.sum(0),
            parts.teacher_attend_NC.new_zeros(1),
        ]
        of_attend = (each.view(shape) if shape else None for each, shape in zip(attend, ctx.attend, strict=True))
        return gradient_NCP, None, None, None, None, *of_attend


@dataclass(frozen=True)
class CellWeights:
    """What the maps are multiplied by while they are summed."""

    valid_NP: Tensor
    one_NC: Tensor
    attention_NC: Tensor
    """The teacher's channel attention A."""
    student_attend_NC: Tensor
    teacher_attend_NC: Tensor
    student_share_NP: Tensor
    """softmax_p of the context's logits; before `_weigh` the logits."""
    teacher_share_NP: Tensor

    @classmethod
    def of(cls, student_NCP: Tensor, valid_NP: Tensor, student: Tensor | None, teacher: Tensor | None) -> CellWeights:
        images, channels, _ = student_NCP.shape
        one_NC = valid_NP.new_ones(images, channels)
        attend_NC = [
            one_NC if each is None else each.detach().view(1, -1).expand_as(one_NC) for each in (student, teacher)
        ]
        return cls(
            valid_NP=valid_NP,
            one_NC=one_NC,
            attention_NC=torch.zeros_like(one_NC),
            student_attend_NC=attend_NC[0],
            teacher_attend_NC=attend_NC[1],
            student_share_NP=torch.zeros_like(valid_NP),
            teacher_share_NP=torch.zeros_like(valid_NP),
        )


# --- the sums -------------------------------------------------------------------------------------------------


def _magnitudes(maps: Maps, blocks: list[Block], wanted: WantedSums, weights: CellWeights, sums: Sums) -> None:
    """The sums of |s| and |t|, and the logits of the contexts."""
    if not (wanted.magnitude or wanted.feature or wanted.context):
        return
    for block in blocks:
        n, c, p = block
        student, teacher = maps.load(block)
        if wanted.magnitude:
            magnitude = torch.abs(student, out=maps.buffer("work", block))
            add_over_channels(sums.student_cells_NP[n, p], magnitude, weights.one_NC[n, c])
            add_over_cells(sums.student_channels_NC[n, c], magnitude, weights.valid_NP[n, p])
        if wanted.magnitude or wanted.feature:
            magnitude = torch.abs(teacher, out=maps.buffer("work", block))
            add_over_channels(sums.teacher_cells_NP[n, p], magnitude, weights.one_NC[n, c])
            add_over_cells(sums.teacher_channels_NC[n, c], magnitude, weights.valid_NP[n, p])
        if wanted.context:
            add_over_channels(weights.student_share_NP[n, p], student, weights.student_attend_NC[n, c])
            add_over_channels(weights.teacher_share_NP[n, p], teacher, weights.teacher_attend_NC[n, c])


def _weigh(n: slice, wanted: WantedSums, temperature: float, weights: CellWeights, sums: Sums) -> None:
    """The teacher's channel attention (FGD's equation 7) and the shares of the contexts (in 11) of images n."""
    valid_NP = weights.valid_NP[n]
    if wanted.feature:
        logits_NC = sums.teacher_channels_NC[n] / (valid_NP.sum(1, keepdim=True).clamp(min=1) * temperature)
        weights.attention_NC[n] = logits_NC.shape[1] * logits_NC.softmax(1)
    if wanted.context:
        for share_NP in (weights.student_share_NP, weights.teacher_share_NP):
            lowest = torch.finfo(share_NP.dtype).min  # not -inf: an image may have no cell that counts
            share_NP[n] = share_NP[n].masked_fill(valid_NP == 0, lowest).softmax(1)


def _differences(maps: Maps, blocks: list[Block], wanted: WantedSums, weights: CellWeights, sums: Sums) -> None:
    """The sums of d and d^2, and the contexts."""
    if not (wanted.feature or wanted.error or wanted.context):
        return
    for block in blocks:
        n, c, p = block
        student, teacher = maps.load(block)
        difference = torch.sub(student, teacher, out=maps.buffer("work", block))
        if wanted.context:
            add_over_cells(sums.difference_NC[n, c], difference, weights.valid_NP[n, p])
            add_over_cells(sums.student_context_NC[n, c], student, weights.student_share_NP[n, p])
            add_over_cells(sums.teacher_context_NC[n, c], teacher, weights.teacher_share_NP[n, p])
        square = difference.mul_(difference)
        if wanted.feature:
            add_over_channels(sums.feature_NP[n, p], square, weights.attention_NC[n, c])
        if wanted.context or wanted.error:
            add_over_channels(sums.error_NP[n, p], square, weights.one_NC[n, c])


# --- the gradient -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientParts:
    """The student's gradient is d * scale + sign(s) * slope + shift; the shift is of three products, a channel's number
    times a cell's."""

    scale: Plane
    slope: Plane
    attend_NC: Tensor
    """The student's attending weights: of the shift, times the gradient of its logits."""
    difference_NC: Tensor
    """Of the shift, times v; the third is the student's context, times its share."""
    student: Softmax
    teacher: Softmax
    student_logits_NP: Tensor
    """Gradient of the logits, filled group by group."""
    teacher_logits_NP: Tensor
    student_attend_NC: Tensor
    """Gradient of the attending weights, by image."""
    teacher_attend_NC: Tensor
    of_teacher: bool
    """Whether the teacher's context is trained."""

    @classmethod
    def of(
        cls,
        upstream: Sums,
        weights: CellWeights,
        contexts_NC: tuple[Tensor, Tensor],
        wanted: WantedSums,
        *,
        of_teacher: bool,
    ) -> GradientParts:
        one_NC, valid_NP = weights.one_NC, weights.valid_NP
        upstream = Sums(
            *(
                each if needed else torch.zeros_like(each)
                for each, needed in zip(upstream, needed_by(wanted), strict=True)
            )
        )
        student, teacher = (
            Softmax(of_context_NC, (of_context_NC * context_NC).sum(1, keepdim=True), share_NP)
            for of_context_NC, context_NC, share_NP in zip(
                (upstream.student_context_NC, upstream.teacher_context_NC),
                contexts_NC,
                (weights.student_share_NP, weights.teacher_share_NP),
                strict=True,
            )
        )
        return cls(
            scale=Plane(2 * upstream.error_NP, 2 * weights.attention_NC, upstream.feature_NP),
            slope=Plane(upstream.student_cells_NP, upstream.student_channels_NC, valid_NP),
            attend_NC=weights.student_attend_NC,
            difference_NC=upstream.difference_NC,
            student=student,
            teacher=teacher,
            student_logits_NP=torch.zeros_like(valid_NP),
            teacher_logits_NP=torch.zeros_like(valid_NP),
            student_attend_NC=torch.zeros_like(one_NC),
            teacher_attend_NC=torch.zeros_like(one_NC),
            of_teacher=of_teacher and wanted.context,
        )


def _logits_gradients(maps: Maps, blocks: list[Block], parts: GradientParts) -> None:
    """As `Softmax` tells."""
    n = blocks[0][0]
    for block in blocks:
        _, c, p = block
        student, teacher = maps.load(block)
        add_over_channels(parts.student_logits_NP[n, p], student, parts.student.context_NC[n, c])
        if parts.of_teacher:
            add_over_channels(parts.teacher_logits_NP[n, p], teacher, parts.teacher.context_NC[n, c])
    parts.student_logits_NP[n].sub_(parts.student.mean_N1[n]).mul_(parts.student.share_NP[n])
    if parts.of_teacher:
        parts.teacher_logits_NP[n].sub_(parts.teacher.mean_N1[n]).mul_(parts.teacher.share_NP[n])


def _gradients(maps: Maps, blocks: list[Block], wanted: WantedSums, parts: GradientParts, gradient_NCP: Tensor) -> None:
    """Writes the gradient of the student's map, and adds up those of the attending weights."""
    n = blocks[0][0]
    if wanted.context:
        of_channels = (parts.attend_NC[n], parts.student.context_NC[n], parts.difference_NC[n])
        of_cells = (parts.student_logits_NP[n], parts.student.share_NP[n], parts.slope.cell_NP[n])
        shift = torch.stack(of_channels, 2), torch.stack(of_cells, 1)
    for block in blocks:
        _, c, p = block
        student, teacher = maps.load(block)
        in_place = gradient_NCP.dtype == student.dtype
        gradient = gradient_NCP[block] if in_place else maps.buffer("gradient", block)
        if wanted.feature or wanted.error or wanted.context:
            parts.scale.write(block, gradient)
            gradient.mul_(torch.sub(student, teacher, out=maps.buffer("work", block)))
        else:
            gradient.zero_()
        if wanted.context:
            add_outer(shift[0][:, c], shift[1][:, :, p], gradient)
            add_over_cells(parts.student_attend_NC[n, c], student, parts.student_logits_NP[n, p])
            if parts.of_teacher:
                add_over_cells(parts.teacher_attend_NC[n, c], teacher, parts.teacher_logits_NP[n, p])
        if wanted.magnitude:
            slope = parts.slope.write(block, maps.buffer("work", block))
            gradient.addcmul_(slope, torch.sign(student, out=maps.buffer("sign", block)))
        if not in_place:
            gradient_NCP[block] = gradient


# --- blocks -----------------------------------------------------------------------------------------------------


class Maps:
    """Two maps cut into blocks that are contiguous in the student's memory, and buffers of a block's size."""

    def __init__(self, student_NCP: Tensor, teacher_NCP: Tensor, dtype: torch.dtype) -> None:
        self.student_NCP, self.teacher_NCP, self.dtype = student_NCP, teacher_NCP, dtype
        self.channels_last = student_NCP.stride(1) < student_NCP.stride(2)
        self.groups = self._groups(GPU_BLOCK if student_NCP.is_cuda else CPU_BLOCK)
        self._flat: dict[str, Tensor] = {}

    def _groups(self, values: int) -> list[list[Block]]:
        """Blocks of about as many values: images while they fit, else parts of one image, grouped by images."""
        images, channels, cells = self.student_NCP.shape
        together = max(1, values // (channels * cells))
        groups = []
        for n in _slices(images, together):
            parts = -(-(n.stop - n.start) * channels * cells // values)
            if self.channels_last:
                groups.append([(n, slice(0, channels), p) for p in _slices(cells, -(-cells // parts))])
            else:
                groups.append([(n, c, slice(0, cells)) for c in _slices(channels, -(-channels // parts))])
        return groups

    def load(self, block: Block) -> tuple[Tensor, Tensor]:
        """Both maps' block in the type of the sums: a view, or a buffer's copy if they are of another type."""
        return self._as("student", self.student_NCP[block], block), self._as("teacher", self.teacher_NCP[block], block)

    def _as(self, name: str, part: Tensor, block: Block) -> Tensor:
        return part if part.dtype == self.dtype else self.buffer(name, block).copy_(part)

    def buffer(self, name: str, block: Block) -> Tensor:
        """Memory of the block's shape and layout, the same for every block."""
        images, channels, cells = (each.stop - each.start for each in block)
        size = images * channels * cells
        if name not in self._flat or len(self._flat[name]) < size:
            self._flat[name] = self.student_NCP.new_empty(size, dtype=self.dtype)
        flat = self._flat[name][:size]
        return flat.view(images, cells, channels).mT if self.channels_last else flat.view(images, channels, cells)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def add_over_channels(out_NP: Tensor, x_NCP: Tensor, weight_NC: Tensor) -> None:
    """out += sum_c weight_c x_c."""
    if x_NCP.is_cuda or x_NCP[0].numel() < SMALL:
        out_NP.unsqueeze(1).baddbmm_(weight_NC.unsqueeze(1), x_NCP)
        return
    # A matrix times a vector is twice as fast as a batch of thin products.
    for out_P, x_CP, weight_C in zip(out_NP, x_NCP, weight_NC, strict=True):
        out_P.addmv_(x_CP.t(), weight_C)


def add_over_cells(out_NC: Tensor, x_NCP: Tensor, weight_NP: Tensor) -> None:
    """out += sum_p weight_p x_p."""
    add_over_channels(out_NC, x_NCP.mT, weight_NP)


def add_outer(left_NCK: Tensor, right_NKP: Tensor, out_NCP: Tensor) -> None:
    """out += left x right, written along the memory of out."""
    if out_NCP.stride(1) < out_NCP.stride(2):
        out_NCP.mT.baddbmm_(right_NKP.mT, left_NCK.mT)
    else:
        out_NCP.baddbmm_(left_NCK, right_NKP)
