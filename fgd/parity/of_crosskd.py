"""CrossKD's golden figures, of five heads: predictions of teacher and cross-head with what each head needs, raw terms,
total and gradients; and once the crossing itself, with both heads' convolutions.
"""

# N images, K places, C channels or classes, H x W cells of a level

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from fgd.methods.crosskd import (
    centreness_sum,
    confidence,
    distribution_distance,
    giou_distance,
    iou,
    quality_focal,
    rescaled,
)
from fgd.parity.figures import Arrays, Case, Few, Shape, floats, gradients
from fgd.parity.heads import of_places

Size = tuple[PositiveInt, PositiveInt]
RANGES = (-1.0, 64.0, 128.0, 256.0, 512.0)
"""Pixels: from which side of a box on a level finds it; the next level's is where it ends."""


class Term(BaseModel):
    weight: NonNegativeFloat


class CrossKDCase(Case):
    method = "crosskd"

    cls_kd: Term
    reg_kd: Term


class OfLevels(CrossKDCase):
    """The cross-head's predictions are given."""

    n: Few
    num_classes: PositiveInt
    sizes: list[Size]

    def sides(self) -> int:
        """Channels of the boxes' map."""
        return 4

    def anchors_of_a_cell(self) -> int:
        return 1

    def parts(self) -> dict[str, int]:
        """Predictions of each level, and their channels."""
        return {"cls": self.anchors_of_a_cell() * self.num_classes, "reg": self.anchors_of_a_cell() * self.sides()}

    def names(self) -> list[str]:
        return [str(i) for i in range(len(self.sizes))]

    def maps(self, what: str, channels: int) -> dict[str, Shape]:
        return {f"{what}/{i}": floats(self.n, channels, h, w) for i, (h, w) in enumerate(self.sizes)}

    def places(self, what: str, *first: int, last: tuple[int, ...] = (), whole: bool = False) -> dict[str, Shape]:
        cells = [h * w * self.anchors_of_a_cell() for h, w in self.sizes]
        return {f"{what}/{i}": Shape((*first, count, *last), whole) for i, count in enumerate(cells)}

    def inputs(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for part, channels in self.parts().items():
            shapes |= self.maps(f"teacher_{part}", channels) | self.maps(f"cross_{part}", channels)
        return shapes

    def of_gradients(self) -> dict[str, Shape]:
        shapes = {"total": floats()}
        for part, channels in self.parts().items():
            shapes |= self.maps(f"grad_cross_{part}", channels)
        return shapes

    def learnt(self, arrays: Arrays) -> dict[str, Tensor]:
        keys = [f"cross_{part}/{i}" for part in self.parts() for i in self.names()]
        return {key: arrays[key].clone().requires_grad_() for key in keys}

    def rows(self, arrays: Arrays, part: str) -> list[Tensor]:
        """NKC of each level."""
        return [of_places(arrays[f"{part}/{i}"], self.anchors_of_a_cell()) for i in self.names()]

    def with_total(self, total: Tensor, learnt: dict[str, Tensor], **made: Tensor) -> dict[str, Tensor]:
        found = gradients(total, list(learnt.values()))
        return {"total": total, **made, **{f"grad_{key}": each for key, each in zip(learnt, found, strict=True)}}


class OfDistributions(OfLevels):
    family: Literal["gfl"]
    reg_max: PositiveInt
    avg_factor: PositiveFloat

    def sides(self) -> int:
        return 4 * (self.reg_max + 1)

    def inputs(self) -> dict[str, Shape]:
        return super().inputs() | self.places("label_weights", self.n)

    def results(self) -> dict[str, Shape]:
        levels = floats(len(self.sizes))
        raw = {"raw/cls_kd": levels, "raw/reg_kd": levels, "kd_avg_factor": floats()}
        return raw | self.of_gradients()

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        learnt = self.learnt(arrays)
        weights = [arrays[f"label_weights/{i}"] for i in self.names()]
        theirs, crossed = self.rows(arrays, "teacher_cls"), self.rows(learnt, "cross_cls")
        scores = summed_scores(crossed, theirs, weights) / self.avg_factor
        confident = [(weight > 0) * confidence(each) for each, weight in zip(theirs, weights, strict=True)]
        factor = torch.stack([each.sum() for each in confident]).sum()
        sides = zip(confident, self.rows(learnt, "cross_reg"), self.rows(arrays, "teacher_reg"), strict=True)
        boxes = torch.stack([(g * distribution_distance(s, t)).sum() for g, s, t in sides]) / factor
        total = self.cls_kd.weight * scores.sum() + self.reg_kd.weight * boxes.sum()
        return self.with_total(total, learnt, **{"raw/cls_kd": scores, "raw/reg_kd": boxes, "kd_avg_factor": factor})


class OfAnchors(OfLevels):
    num_anchors: PositiveInt
    strides: list[PositiveInt]
    avg_factor: PositiveFloat
    coder_means: tuple[Literal[0], Literal[0], Literal[0], Literal[0]]
    coder_stds: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]

    def anchors_of_a_cell(self) -> int:
        return self.num_anchors

    def inputs(self) -> dict[str, Shape]:
        shapes = super().inputs() | self.places("label_weights", self.n)
        return shapes | self.places("anchors", last=(4,))

    def results(self) -> dict[str, Shape]:
        return {"raw/cls_kd": floats(len(self.sizes)), "raw/reg_kd": floats(len(self.sizes))} | self.of_gradients()

    def terms(self, arrays: Arrays, learnt: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw scores and boxes of each level."""
        weights = [arrays[f"label_weights/{i}"] for i in self.names()]
        theirs, crossed = self.rows(arrays, "teacher_cls"), self.rows(learnt, "cross_cls")
        scores = summed_scores(crossed, theirs, weights) / self.avg_factor
        anchors = [arrays[f"anchors/{i}"] for i in self.names()]
        boxes = [
            (weight_NK * confidence(logits_NKC) * giou_distance(self.decoded(ours, at), self.decoded(their, at))).sum()
            for weight_NK, logits_NKC, ours, their, at in zip(
                [(each > 0).float() for each in weights],
                theirs,
                self.rows(learnt, "cross_reg"),
                self.rows(arrays, "teacher_reg"),
                anchors,
                strict=True,
            )
        ]
        return scores, torch.stack(boxes) / self.avg_factor

    def decoded(self, deltas_NK4: Tensor, anchors_K4: Tensor) -> Tensor:
        x, y, width, height = (1 / std for std in self.coder_stds)
        coder = BoxCoder((x, y, width, height))
        return torch.stack([coder.decode_single(each, anchors_K4) for each in deltas_NK4])


class OfRetinaNet(OfAnchors):
    family: Literal["retinanet"]
    center_kd: None = None

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        learnt = self.learnt(arrays)
        scores, boxes = self.terms(arrays, learnt)
        total = self.cls_kd.weight * scores.sum() + self.reg_kd.weight * boxes.sum()
        return self.with_total(total, learnt, **{"raw/cls_kd": scores, "raw/reg_kd": boxes})


class OfATSS(OfAnchors):
    family: Literal["atss"]
    center_kd: Term

    def parts(self) -> dict[str, int]:
        return super().parts() | {"center": self.num_anchors}

    def inputs(self) -> dict[str, Shape]:
        return super().inputs() | self.places("labels", self.n, whole=True)

    def results(self) -> dict[str, Shape]:
        return {"raw/center_kd": floats(len(self.sizes))} | super().results()

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        learnt = self.learnt(arrays)
        scores, boxes = self.terms(arrays, learnt)
        centres = []
        both = zip(self.rows(learnt, "cross_center"), self.rows(arrays, "teacher_center"), strict=True)
        for i, (ours_NK1, theirs_NK1) in zip(self.names(), both, strict=True):
            labels_NK = arrays[f"labels/{i}"]
            found_NK = (labels_NK >= 0) & (labels_NK < self.num_classes)
            entropy_NK1 = F.binary_cross_entropy_with_logits(ours_NK1, theirs_NK1.sigmoid(), reduction="none")
            centres.append((found_NK * entropy_NK1[..., 0]).sum() / self.avg_factor)
        centred = torch.stack(centres)
        total = self.cls_kd.weight * scores.sum() + self.reg_kd.weight * boxes.sum()
        total = total + self.center_kd.weight * centred.sum()
        return self.with_total(total, learnt, **{"raw/center_kd": centred, "raw/cls_kd": scores, "raw/reg_kd": boxes})


class OfPoints(OfLevels):
    family: Literal["fcos"]
    ih: PositiveInt
    iw: PositiveInt
    strides: list[PositiveInt]
    boxes: object = None

    def inputs(self) -> dict[str, Shape]:
        return super().inputs() | {f"boxes/{image}": floats(None, 4) for image in range(self.n)}

    def results(self) -> dict[str, Shape]:
        raw = {"raw/cls_kd": floats(), "raw/reg_kd": floats(), "centerness_sum": floats()}
        return self.places("points", last=(2,)) | raw | self.of_gradients()

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        learnt, points = self.learnt(arrays), self.points()
        boxes = [arrays[f"boxes/{image}"] for image in range(self.n)]
        places_K4 = torch.cat([torch.cat(points)] * 2, 1)
        centred = centreness_sum(places_K4, [self.matches(points, each) for each in boxes], boxes)
        theirs, crossed = self.rows(arrays, "teacher_cls"), self.rows(learnt, "cross_cls")
        scores = summed_scores(crossed, theirs, [torch.ones(each.shape[:2]) for each in theirs]).sum() / centred
        sides = zip(theirs, self.rows(learnt, "cross_reg"), self.rows(arrays, "teacher_reg"), points, strict=True)
        apart = [
            (confidence(logits_NKC) * -iou(around(ours, at), around(their, at))[0].clamp(min=1e-6).log()).sum()
            for logits_NKC, ours, their, at in sides
        ]
        distance = torch.stack(apart).sum() / centred
        total = self.cls_kd.weight * scores + self.reg_kd.weight * distance
        made = {"raw/cls_kd": scores, "raw/reg_kd": distance, "centerness_sum": centred}
        made |= {f"points/{i}": each for i, each in zip(self.names(), points, strict=True)}
        return self.with_total(total, learnt, **made)

    def points(self) -> list[Tensor]:
        """The cells' middles."""
        made = []
        for stride, (height, width) in zip(self.strides, self.sizes, strict=True):
            y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            made.append((torch.stack([x_HW.flatten(), y_HW.flatten()], 1) + 0.5) * stride)
        return made

    def matches(self, points: list[Tensor], boxes_M4: Tensor) -> Tensor:
        """FCOS: the smallest box around a point whose farthest side lies in the level's range; -1: none."""
        if not len(boxes_M4):
            return torch.full((sum(map(len, points)),), -1)
        area_M = (boxes_M4[:, 2:] - boxes_M4[:, :2]).prod(1)
        found = []
        for level, point_K2 in enumerate(points):
            low, high = RANGES[level], (*RANGES[1:], float("inf"))[level]
            sides_KM4 = torch.cat([point_K2[:, None] - boxes_M4[:, :2], boxes_M4[:, 2:] - point_K2[:, None]], 2)
            farthest_KM = sides_KM4.amax(2)
            fits_KM = (sides_KM4.amin(2) > 0) & (farthest_KM >= low) & (farthest_KM <= high)
            smallest_K, box_K = torch.where(fits_KM, area_M, float("inf")).min(1)
            found.append(torch.where(smallest_K.isinf(), -1, box_K))
        return torch.cat(found)


class Crossing(CrossKDCase):
    """Two heads of convolution, group norm and ReLU, and what the teacher's rest makes of the student's maps."""

    family: Literal["gfl_cross_head"]
    n: Few
    c: PositiveInt
    num_classes: PositiveInt
    reg_max: PositiveInt
    h: PositiveInt
    w: PositiveInt
    reused_teacher_head_idx: NonNegativeInt
    stacked_convs: Few
    gn_groups: PositiveInt
    avg_factor: PositiveFloat

    def outputs(self) -> dict[str, int]:
        return {"cls": self.num_classes, "reg": 4 * (self.reg_max + 1)}

    def convolutions(self, until: int) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for name in self.outputs():
            for i in range(until):
                shapes[f"{name}_convs.{i}.conv.weight"] = floats(self.c, self.c, 3, 3)
                shapes |= dict.fromkeys((f"{name}_convs.{i}.gn.weight", f"{name}_convs.{i}.gn.bias"), floats(self.c))
        return shapes

    def inputs(self) -> dict[str, Shape]:
        head = self.convolutions(self.stacked_convs) | {"scales.0.scale": floats()}
        for name, channels in self.outputs().items():
            head |= {f"gfl_{name}.weight": floats(channels, self.c, 3, 3), f"gfl_{name}.bias": floats(channels)}
        return {
            **{f"module/{who}/{key}": shape for who in ("teacher", "student") for key, shape in head.items()},
            **dict.fromkeys(("student", "teacher"), floats(self.n, self.c, self.h, self.w)),
            "label_weights": floats(self.n, self.h * self.w),
        }

    def results(self) -> dict[str, Shape]:
        held, size = floats(self.n, self.c, self.h, self.w), (self.h, self.w)
        return {
            "mid/teacher_cls_hold": held,
            "mid/student_cls_hold": held,
            **{
                f"mid/{whose}_{name}": floats(self.n, channels, *size)
                for whose in ("cross", "teacher")
                for name, channels in self.outputs().items()
            },
            "kd_avg_factor": floats(),
            "raw/cls_kd": floats(),
            "raw/reg_kd": floats(),
            "total": floats(),
            "grad_student": held,
            **{f"grad/student/{key}": shape for key, shape in self.convolutions(self.reused_teacher_head_idx).items()},
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        first, valid_N1HW = self.reused_teacher_head_idx, torch.ones(self.n, 1, self.h, self.w)
        learnt = {"student": arrays["student"].clone().requires_grad_()}
        learnt |= {
            f"module/student/{key}": arrays[f"module/student/{key}"].clone().requires_grad_()
            for key in self.convolutions(first)
        }
        inputs, made = {**arrays, **learnt}, {}
        for name in self.outputs():
            ours_NCHW = self.through(inputs, "student", name, inputs["student"], 0, first)
            theirs_NCHW = self.through(inputs, "teacher", name, inputs["teacher"], 0, first)
            map_NCHW = rescaled(ours_NCHW, theirs_NCHW, valid_N1HW)
            made[f"mid/cross_{name}"] = self.predicted(inputs, name, map_NCHW.relu() if first else map_NCHW)
            made[f"mid/teacher_{name}"] = self.predicted(inputs, name, theirs_NCHW)
            if name == "cls":
                made |= {"mid/teacher_cls_hold": theirs_NCHW, "mid/student_cls_hold": ours_NCHW}
        rows = {key: of_places(each, 1) for key, each in made.items()}
        weight_NK = arrays["label_weights"]
        scores = (weight_NK * quality_focal(rows["mid/cross_cls"], rows["mid/teacher_cls"])).sum() / self.avg_factor
        confident_NK = (weight_NK > 0) * confidence(rows["mid/teacher_cls"])
        factor = confident_NK.sum()
        distance_NK = distribution_distance(rows["mid/cross_reg"], rows["mid/teacher_reg"])
        boxes = (confident_NK * distance_NK).sum() / factor
        total = self.cls_kd.weight * scores + self.reg_kd.weight * boxes
        of_student, *of_parameters = gradients(total, list(learnt.values()))
        return {
            **made,
            "kd_avg_factor": factor,
            "raw/cls_kd": scores,
            "raw/reg_kd": boxes,
            "total": total,
            "grad_student": of_student,
            **{
                key.replace("module/", "grad/"): each for key, each in zip(list(learnt)[1:], of_parameters, strict=True)
            },
        }

    def through(self, arrays: Arrays, who: str, name: str, map_NCHW: Tensor, first: int, end: int) -> Tensor:
        for i in range(first, end):
            at = f"module/{who}/{name}_convs.{i}"
            map_NCHW = F.conv2d(map_NCHW, arrays[f"{at}.conv.weight"], padding=1)
            map_NCHW = F.group_norm(map_NCHW, self.gn_groups, arrays[f"{at}.gn.weight"], arrays[f"{at}.gn.bias"]).relu()
        return map_NCHW

    def predicted(self, arrays: Arrays, name: str, map_NCHW: Tensor) -> Tensor:
        """By the teacher's convolutions from `first` on."""
        at = f"module/teacher/gfl_{name}"
        map_NCHW = self.through(arrays, "teacher", name, map_NCHW, self.reused_teacher_head_idx, self.stacked_convs)
        out_NCHW = F.conv2d(map_NCHW, arrays[f"{at}.weight"], arrays[f"{at}.bias"], padding=1)
        return out_NCHW * arrays["module/teacher/scales.0.scale"] if name == "reg" else out_NCHW


def summed_scores(crossed: list[Tensor], theirs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Of each level."""
    levels = zip(crossed, theirs, weights, strict=True)
    return torch.stack([(weight_NK * quality_focal(ours, their)).sum() for ours, their, weight_NK in levels])


def around(sides_NK4: Tensor, point_K2: Tensor) -> Tensor:
    """Boxes from their distances to the left, upper, right and lower side."""
    return torch.cat([point_K2 - sides_NK4[..., :2], point_K2 + sides_NK4[..., 2:]], 2)


KINDS: tuple[type[CrossKDCase], ...] = (OfDistributions, OfRetinaNet, OfATSS, OfPoints, Crossing)
"""By `family`."""
