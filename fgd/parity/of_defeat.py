"""DeFeat's golden figures: maps of each level, boxes, adapters, scores of regions; the boxes' levels, masks, raw terms,
total and gradients."""

from __future__ import annotations

import torch
from pydantic import BaseModel, NonNegativeFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import DeFeat
from fgd.methods.base import Pair
from fgd.methods.defeat import DeFeatLoss, head_terms, official_levels
from fgd.methods.geometry import Layout
from fgd.parity.figures import (
    NO_CALIBRATION,
    Arrays,
    Case,
    Few,
    Shape,
    batch_of,
    floats,
    gradients,
    load_parameters,
    prefixed,
    shapes_of,
    wholes,
)
from fgd.spec import Schedule
from fgd.types import View


class Head(BaseModel):
    num_classes: PositiveInt
    head_cls_w: NonNegativeFloat
    head_cls_back_w: NonNegativeFloat
    head_cls_T: float = 1.0


class DeFeatCase(Case):
    method = "defeat"

    n: Few
    cs: PositiveInt
    ct: PositiveInt
    ih: PositiveInt
    iw: PositiveInt
    strides: list[PositiveInt]
    boxes: object = None
    hint_neck_w: NonNegativeFloat
    hint_neck_back_w: NonNegativeFloat
    head: Head | None

    def loss(self) -> DeFeatLoss:
        spec = DeFeat(foreground=1.0, background=1.0, compat="official")
        pair = Pair.alike({str(i): stride for i, stride in enumerate(self.strides)}, self.cs, self.ct)
        return DeFeatLoss(spec, pair, NO_CALIBRATION, Schedule())

    def parameters(self) -> dict[str, Shape]:
        return shapes_of(self.loss, golden_name)

    def levels(self, what: str, *channels: int, whole: bool = False) -> dict[str, Shape]:
        return {
            f"{what}/{i}": Shape((self.n, *channels, -(-self.ih // stride), -(-self.iw // stride)), whole)
            for i, stride in enumerate(self.strides)
        }

    def inputs(self) -> dict[str, Shape]:
        head: dict[str, Shape] = {}
        if self.head:
            scores = floats(None, self.head.num_classes + 1)
            head = {"head/student_logits": scores, "head/teacher_logits": scores, "head/labels": wholes(None)}
        return {
            **self.levels("student", self.cs),
            **self.levels("teacher", self.ct),
            **{f"boxes/{image}": floats(None, 4) for image in range(self.n)},
            **prefixed("module", self.parameters()),
            **head,
        }

    def results(self) -> dict[str, Shape]:
        classes = self.head.num_classes + 1 if self.head else 0
        head = {"raw/head_fg": floats(), "raw/head_bg": floats(), "grad_head": floats(None, classes)}
        return {
            **{f"level/{image}": wholes(None) for image in range(self.n)},
            **self.levels("mask", whole=True),
            "raw/fg": floats(),
            "raw/bg": floats(),
            **(head if self.head else {}),
            "total": floats(),
            **self.levels("grad_student", self.cs),
            **prefixed("grad", self.parameters()),
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        names = [str(i) for i in range(len(self.strides))]
        maps = {i: arrays[f"student/{i}"].clone().requires_grad_() for i in names}
        theirs = {i: arrays[f"teacher/{i}"] for i in names}
        batch = batch_of((self.ih, self.iw), [arrays[f"boxes/{image}"] for image in range(self.n)])
        loss = self.loss()
        parameters = load_parameters(loss, golden_name, arrays)
        raw = loss(View(maps), View(theirs), batch)
        made = {"raw/fg": raw["fg"], "raw/bg": raw["bg"]}
        total = self.hint_neck_w * raw["fg"] + self.hint_neck_back_w * raw["bg"]
        learnt = {f"grad_student/{i}": each for i, each in maps.items()}
        learnt |= {f"grad/{name}": each for name, each in parameters.items()}
        if self.head:
            ours_RC = arrays["head/student_logits"].clone().requires_grad_()
            labels_R = arrays["head/labels"]
            object_R = labels_R < labels_R.max()  # the reference takes the largest label that is there for background
            foreground, background = head_terms(ours_RC, arrays["head/teacher_logits"], object_R)
            made |= {"raw/head_fg": foreground, "raw/head_bg": background}
            total = total + self.head.head_cls_w * foreground + self.head.head_cls_back_w * background
            learnt["grad_head"] = ours_RC
        levels_NK = official_levels(Layout.of(batch, torch.device("cpu")), len(names))
        counts = [len(target.boxes_K4) for target in batch.targets]
        return {
            **made,
            "total": total,
            **{f"level/{image}": levels_NK[image, :count] for image, count in enumerate(counts)},
            **{f"mask/{i}": mask_N1HW[:, 0] for i, mask_N1HW in loss.masks(batch, theirs).items()},
            **dict(zip(learnt, gradients(total, list(learnt.values())), strict=True)),
        }


def golden_name(parameter: str) -> str:
    _, level, kind = parameter.split(".")
    return f"neck_adapt/{level}.0.{kind}"
