"""LD's golden figures: class logits, box distributions and maps of each level, boxes with labels; anchors, assignment,
regions, raw terms of each level, totals and gradients."""

from __future__ import annotations

import torch
from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from fgd.method_specs import LD
from fgd.methods.base import Pair
from fgd.methods.fgfi import overlap
from fgd.methods.ld import LDLoss, atss_candidates, atss_thresholds, centres, valuable_region
from fgd.methods.ld_regions import REGIONS, Heads, instances
from fgd.parity.figures import NO_CALIBRATION, Arrays, Case, Few, Shape, batch_of, floats, wholes
from fgd.parity.heads import of_places, predictions
from fgd.spec import Schedule
from fgd.types import Predictions, View

IMITATED = {"finegrained": "fine_grained", "fitnet": "inside", "gibox": "general_instances"}
"""The reference's names of regions and ours."""
INSIDE = 0.01
"""Pixels by which a centre must lie inside a box, as ATSS has it."""


class Weights(BaseModel):
    ld: NonNegativeFloat
    ld_vlr: NonNegativeFloat
    kd: NonNegativeFloat
    im: NonNegativeFloat


class LDCase(Case):
    method = "ld"

    n: Few
    c: PositiveInt
    num_classes: PositiveInt
    reg_max: PositiveInt
    ih: PositiveInt
    iw: PositiveInt
    strides: list[PositiveInt]
    boxes: object = None
    T_ld: PositiveFloat
    T_kd: PositiveFloat
    loss_weights: Weights
    atss_topk: PositiveInt
    octave_base_scale: PositiveFloat

    @property
    def names(self) -> list[str]:
        return [str(i) for i in range(len(self.strides))]

    def sizes(self) -> list[tuple[int, int]]:
        return [(-(-self.ih // stride), -(-self.iw // stride)) for stride in self.strides]

    def maps(self, what: str, channels: int) -> dict[str, Shape]:
        return {
            f"{what}/{i}": floats(self.n, channels, *size) for i, size in zip(self.names, self.sizes(), strict=True)
        }

    def places(self, what: str, *first: int, last: tuple[int, ...] = (), whole: bool = False) -> dict[str, Shape]:
        return {
            f"{what}/{i}": Shape((*first, h * w, *last), whole)
            for i, (h, w) in zip(self.names, self.sizes(), strict=True)
        }

    def inputs(self) -> dict[str, Shape]:
        sides = 4 * (self.reg_max + 1)
        return {
            **self.maps("student_cls", self.num_classes),
            **self.maps("teacher_cls", self.num_classes),
            **self.maps("student_reg", sides),
            **self.maps("teacher_reg", sides),
            **self.maps("student_feat", self.c),
            **self.maps("teacher_feat", self.c),
            **{f"boxes/{image}": floats(None, 4) for image in range(self.n)},
            **{f"labels/{image}": wholes(None) for image in range(self.n)},
        }

    def results(self) -> dict[str, Shape]:
        terms = ("loss_ld", "loss_ld_vlr", "loss_kd", *(f"loss_im_{region}" for region in IMITATED))
        totals = ("ld", "kd", *(f"im_{region}" for region in IMITATED))
        shapes = {f"raw/{term}": floats(len(self.strides)) for term in terms}
        shapes |= {f"total/{term}": floats() for term in totals}
        shapes |= self.places("anchors", last=(4,)) | self.places("assigned_labels", self.n, whole=True)
        shapes |= self.places("label_weights", self.n) | self.places("vlr_region", self.n)
        shapes |= self.maps("grad_reg", 4 * (self.reg_max + 1)) | self.maps("grad_cls_kd", self.num_classes)
        for region in IMITATED:
            shapes |= self.maps(f"grad_feat_{region}", self.c)
        for region in ("finegrained", "fitnet"):
            shapes |= self.places(f"region_{region}", self.n, whole=True)
        return shapes | {f"gi_index/{i}": wholes(None) for i in self.names}

    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        learnt = {
            f"{what}/{i}": arrays[f"student_{what}/{i}"].clone().requires_grad_()
            for what in ("cls", "reg", "feat")
            for i in self.names
        }
        anchors = self.anchors()
        boxes = [arrays[f"boxes/{image}"] for image in range(self.n)]
        matches = [self.matches(anchors, each) for each in boxes]
        ours = self.head({key: each for key, each in learnt.items() if not key.startswith("feat")}, anchors, matches)
        theirs = self.head(
            {f"{what}/{i}": arrays[f"teacher_{what}/{i}"] for what in ("cls", "reg") for i in self.names}, anchors
        )
        student = View({i: learnt[f"feat/{i}"] for i in self.names}, ours)
        teacher = View({i: arrays[f"teacher_feat/{i}"] for i in self.names}, theirs)
        batch = batch_of((self.ih, self.iw), boxes)
        made = self.assignment(anchors, matches, [arrays[f"labels/{image}"] for image in range(self.n)])
        made |= self.split("vlr_region", valuable_region(ours, boxes))
        for region, name in IMITATED.items():
            levels = self.loss(name).levels(student, teacher, batch)
            raw = {term: torch.stack([each[term] for each in levels]) for term in levels[0]}
            total = self.loss_weights.im * raw["imitation"].sum()
            made |= {f"raw/loss_im_{region}": raw["imitation"], f"total/im_{region}": total}
            made |= self.learnt(f"grad_feat_{region}", total, learnt, "feat")
        made |= {"raw/loss_ld": raw["main"], "raw/loss_ld_vlr": raw["valuable"], "raw/loss_kd": raw["scores"]}
        made["total/ld"] = self.loss_weights.ld * raw["main"].sum() + self.loss_weights.ld_vlr * raw["valuable"].sum()
        made["total/kd"] = self.loss_weights.kd * raw["scores"].sum()
        made |= self.learnt("grad_reg", made["total/ld"], learnt, "reg")
        made |= self.learnt("grad_cls_kd", made["total/kd"], learnt, "cls")
        for i, stride in zip(self.names, self.strides, strict=True):
            heads = Heads(ours, theirs, i, stride)
            for region in ("finegrained", "fitnet"):
                made[f"region_{region}/{i}"] = REGIONS[IMITATED[region]](heads, boxes)
            made[f"gi_index/{i}"] = instances(heads)
        return made

    def loss(self, region: str) -> LDLoss:
        spec = LD(
            main=1.0,
            valuable=1.0,
            scores=1.0,
            imitation=1.0,
            region=region,
            temperature=self.T_ld,
            scores_temperature=self.T_kd,
            compat="official",
        )
        pair = Pair.alike(dict(zip(self.names, self.strides, strict=True)), self.c, self.c)
        return LDLoss(spec, pair, NO_CALIBRATION, Schedule())

    def learnt(self, what: str, total: Tensor, of: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        """Gradients of the total by one kind of input."""
        tensors = [of[f"{name}/{i}"] for i in self.names]
        tied = total + torch.stack([0.0 * each.sum() for each in tensors]).sum()
        found = torch.autograd.grad(tied, tensors, retain_graph=True)
        return {f"{what}/{i}": each for i, each in zip(self.names, found, strict=True)}

    def anchors(self) -> list[Tensor]:
        """Squares around the cells' corners."""
        made = []
        for stride, (height, width) in zip(self.strides, self.sizes(), strict=True):
            y_HW, x_HW = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
            corner_K2 = torch.stack([x_HW.flatten(), y_HW.flatten()], 1)
            reach = self.octave_base_scale * stride / 2
            made.append(torch.cat([corner_K2 - reach, corner_K2 + reach], 1).float())
        return made

    def matches(self, anchors: list[Tensor], boxes_M4: Tensor) -> Tensor:
        """ATSS: place -> its box, -1: none."""
        anchors_K4, rows = torch.cat(anchors), [len(each) for each in anchors]
        if not len(boxes_M4):
            return torch.full((len(anchors_K4),), -1)
        iou_KM = overlap(anchors_K4, boxes_M4, 0.0)
        candidate_KM = torch.zeros_like(iou_KM, dtype=torch.bool).scatter(
            0, atss_candidates(anchors_K4, rows, boxes_M4), value=True
        )
        centre_K12 = centres(anchors_K4)[:, None]
        inner_KM = torch.cat([centre_K12 - boxes_M4[:, :2], boxes_M4[:, 2:] - centre_K12], 2).amin(2) > INSIDE
        good_KM = candidate_KM & inner_KM & (iou_KM >= atss_thresholds(anchors_K4, rows, boxes_M4, iou_KM))
        best_K, box_K = torch.where(good_KM, iou_KM, -1.0).max(1)
        return torch.where(best_K >= 0, box_K, -1)

    def assignment(self, anchors: list[Tensor], matches: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        background = self.num_classes
        assigned_NK = torch.stack(
            [
                torch.cat([labels_M, torch.tensor([background])])[match_K]  # -1: the last one
                for match_K, labels_M in zip(matches, labels, strict=True)
            ]
        )
        return {
            **{f"anchors/{i}": each for i, each in zip(self.names, anchors, strict=True)},
            **self.split("assigned_labels", assigned_NK),
            **self.split("label_weights", torch.ones(assigned_NK.shape)),
        }

    def split(self, what: str, values_NK: Tensor) -> dict[str, Tensor]:
        parts = torch.split(values_NK, [h * w for h, w in self.sizes()], 1)
        return {f"{what}/{i}": each for i, each in zip(self.names, parts, strict=True)}

    def head(self, maps: dict[str, Tensor], anchors: list[Tensor], matches: list[Tensor] | None = None) -> Predictions:
        logits, sides = ({i: of_places(maps[f"{what}/{i}"], 1) for i in self.names} for what in ("cls", "reg"))
        return predictions(logits, sides, anchors_K4=torch.cat(anchors), matches=matches)
