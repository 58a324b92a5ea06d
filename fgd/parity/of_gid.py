"""GID's golden figures: maps, class logits and coded boxes of each level, anchors; instances with scores and levels,
which anchors respond, raw terms, total and gradients. The boxes of objects are there, but nothing depends on them."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from fgd.detectors.anchors import decoded
from fgd.method_specs import GID
from fgd.methods.base import Pair
from fgd.methods.gid import GIDLoss, instances
from fgd.methods.regions import levels_of
from fgd.parity.figures import NO_CALIBRATION, Arrays, Case, Few, Shape, batch_of, floats, gradients, wholes
from fgd.parity.heads import predictions
from fgd.spec import Schedule
from fgd.types import Predictions, View

TERMS = {"feature": "feature", "relation": "relation", "response_cls": "scores", "response_reg": "boxes"}
"""The reference's names and ours."""


class Pooler(BaseModel):
    output: Literal[10]
    sampling_ratio: Literal[2]
    aligned: Literal[True]
    canonical_size: Literal[224]
    canonical_level: Literal[4]


class Weights(BaseModel):
    feature: NonNegativeFloat
    relation: NonNegativeFloat
    response_cls: NonNegativeFloat
    response_reg: NonNegativeFloat


class GIDCase(Case):
    method = "gid"

    n: Few
    c: PositiveInt
    num_classes: PositiveInt
    num_anchors: PositiveInt
    ih: PositiveInt
    iw: PositiveInt
    strides: list[PositiveInt]
    boxes: object = None
    nms_thresh: Annotated[float, Field(ge=0.3, le=0.3)]
    pre_nms_topk: Literal[3000]
    post_nms_topk: PositiveInt
    min_box_side: Literal[10]
    pooler: Pooler
    response_iou: tuple[float, Annotated[float, Field(ge=0.5, le=0.5)]]
    allow_low_quality_matches: Literal[True]
    relation_beta: Annotated[float, Field(ge=1, le=1)]
    reg_beta: Annotated[float, Field(ge=0, le=0)]
    loss_weights: Weights

    @property
    def names(self) -> list[str]:
        return [str(i) for i in range(len(self.strides))]

    def sizes(self) -> list[tuple[int, int]]:
        return [(-(-self.ih // stride), -(-self.iw // stride)) for stride in self.strides]

    def maps(self, what: str) -> dict[str, Shape]:
        sizes = zip(self.names, self.sizes(), strict=True)
        return {f"{what}/{i}": floats(self.n, self.c, h, w) for i, (h, w) in sizes}

    def rows(self, what: str, columns: int, *first: int) -> dict[str, Shape]:
        sizes = zip(self.names, self.sizes(), strict=True)
        return {f"{what}/{i}": floats(*first, h * w * self.num_anchors, columns) for i, (h, w) in sizes}

    def inputs(self) -> dict[str, Shape]:
        shapes = self.maps("student") | self.maps("teacher") | self.rows("anchors", 4)
        for whose in ("student", "teacher"):
            shapes |= self.rows(f"{whose}_cls", self.num_classes, self.n) | self.rows(f"{whose}_reg", 4, self.n)
        return shapes | {f"boxes/{image}": floats(None, 4) for image in range(self.n)}

    def results(self) -> dict[str, Shape]:
        places = sum(h * w for h, w in self.sizes()) * self.num_anchors
        return {
            **{f"gi_boxes/{image}": floats(None, 4) for image in range(self.n)},
            **{f"gi_scores/{image}": floats(None) for image in range(self.n)},
            "gi_level": wholes(None),
            "response_mask": wholes(self.n, places),
            **{f"raw/{term}": floats() for term in TERMS},
            "total": floats(),
            **self.maps("grad_student"),
            **self.rows("grad_cls", self.num_classes, self.n),
            **self.rows("grad_reg", 4, self.n),
        }

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        keys = [f"student{part}/{i}" for part in ("", "_cls", "_reg") for i in self.names]
        learnt = {key: arrays[key].clone().requires_grad_() for key in keys}
        ours, theirs = self.head({**arrays, **learnt}, "student"), self.head(arrays, "teacher")
        batch = batch_of((self.ih, self.iw), [arrays[f"boxes/{image}"] for image in range(self.n)])
        student = View({i: learnt[f"student/{i}"] for i in self.names}, ours)
        teacher = View({i: arrays[f"teacher/{i}"] for i in self.names}, theirs)
        raw = self.loss()(student, teacher, batch)
        weights = self.loss_weights.model_dump()
        total = torch.stack([weights[term] * raw[ours] for term, ours in TERMS.items()]).sum()
        found = [instances(ours, theirs, n, (self.ih, self.iw), self.post_nms_topk) for n in range(self.n)]
        of_learnt = gradients(total, list(learnt.values()))
        named = [key.replace("student_", "grad_").replace("student/", "grad_student/") for key in learnt]
        return {
            **{f"gi_boxes/{n}": each.boxes_R4 for n, each in enumerate(found)},
            **{f"gi_scores/{n}": each.scores_R for n, each in enumerate(found)},
            "gi_level": levels_of(torch.cat([each.boxes_R4 for each in found]), self.strides),
            "response_mask": torch.stack([each.responds_K for each in found]),
            **{f"raw/{term}": raw[ours] for term, ours in TERMS.items()},
            "total": total,
            **dict(zip(named, of_learnt, strict=True)),
        }

    def head(self, arrays: Arrays, whose: str) -> Predictions:
        coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        return predictions(
            {i: arrays[f"{whose}_cls/{i}"] for i in self.names},
            {i: arrays[f"{whose}_reg/{i}"] for i in self.names},
            anchors_K4=torch.cat([arrays[f"anchors/{i}"] for i in self.names]),
            decode=lambda boxes_NK4, anchors_K4: decoded(coder, boxes_NK4, anchors_K4),
        )

    def loss(self) -> GIDLoss:
        spec = GID(feature=1.0, relation=1.0, scores=1.0, boxes=1.0, instances=self.post_nms_topk, compat="official")
        pair = Pair.alike(dict(zip(self.names, self.strides, strict=True)), self.c, self.c)
        return GIDLoss(spec, pair, NO_CALIBRATION, Schedule())
