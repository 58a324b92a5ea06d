"""CrossKD (arXiv 2306.11369): the student's maps go through the rest of the teacher's head, whose predictions from them
are compared with those from the teacher's own maps.

Official (jbwang1997/CrossKD@87e156a): the student's map before convolution `first` is brought to mean and deviation of
the teacher's, channel by channel over N, H and W (divisor N H W - 1, plus 1e-6), and after a ReLU (none before the
first convolution) goes through the teacher's convolutions from there on. With s the logits so found and t the
teacher's:
    scores    sum_k BCE(s_k, sigmoid(t_k)) |sigmoid(s_k) - sigmoid(t_k)| of each place
    boxes     g x distance of the boxes, g the teacher's highest score at the place
both summed over all places. A head with anchors: distance 1 - GIoU, divided by the number of anchors that shall find a
box, at least 1 an image; anchors that do not count for the detector do not here. A head of points with centreness:
distance -log IoU, divided by the sum of the centreness that its places shall have. A head of distributions over bins:
KL / 4 x sum over sides and bins, divided by the sum of g; scores as with anchors.

The default departs from it:
- only places of the image count, in the sums and in the rescaling;
- a batch without objects has a divisor of 1.
Nothing of it depends on the scale of the neck's maps, nor on size and width.
"""

# N images, K places, C classes or channels, H x W cells of a level

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgd.method_specs import CrossKD
from fgd.methods.base import Method, Pair, resolved
from fgd.methods.frs import places
from fgd.methods.paired import full, valid_masks
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Output, Predictions, View

EPSILON = 1e-6
TOWERS: dict[str, Output] = {"cls": "logits", "reg": "boxes"}
"""Of the head -> what is taken of each."""


class CrossKDLoss(Method):
    """Terms "scores" and "boxes", summed over levels."""

    def __init__(self, spec: CrossKD, pair: Pair, _calibration: Calibration, _schedule: Schedule) -> None:
        super().__init__()
        self.scores, self.boxes = resolved(spec.scores), resolved(spec.boxes)
        assert spec.first is not None
        self.first, self.official = spec.first, spec.compat == "official"
        self.levels = list(pair.levels)

    def forward(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = student.predictions, teacher.predictions
        assert ours is not None
        assert ours.matches is not None, "places and boxes are matched in training mode only"
        assert theirs is not None
        valid = valid_masks(batch, {level: teacher.features[level] for level in self.levels}, padding=self.official)
        scores, boxes, confident = [], [], []
        with torch.autocast(batch.images_NCHW.device.type, enabled=False):
            for level in self.levels:
                valid_N1HW = valid[level]
                at = theirs.span(level)
                their_logits_NkC = full(theirs.logits_NKC[:, at].detach())
                counts_Nk = places(valid_N1HW.float(), their_logits_NkC)[..., 0] * counted(ours)[:, ours.span(level)]
                crossed = {
                    output: full(self._crossed(name, level, student, teacher, valid_N1HW.float())[output])
                    for name, output in TOWERS.items()
                }
                scores.append((counts_Nk * quality_focal(crossed["logits"], their_logits_NkC)).sum())
                confident_Nk = counts_Nk * confidence(their_logits_NkC)
                their_boxes_NkD = full(theirs.boxes_NKD[:, at].detach())
                distance_Nk = box_distance(crossed["boxes"], their_boxes_NkD, theirs, theirs.anchors_K4[at])
                boxes.append((confident_Nk * distance_Nk).sum())
                confident.append(confident_Nk.sum())
            by_scores, by_boxes = self._divisors(ours, batch, torch.stack(confident).sum())
            terms = {}
            if self.scores:
                terms["scores"] = self.scores * torch.stack(scores).sum() / by_scores
            if self.boxes:
                terms["boxes"] = self.boxes * torch.stack(boxes).sum() / by_boxes
        return terms

    def _crossed(self, name: str, level: str, student: View, teacher: View, valid_N1HW: Tensor) -> dict[Output, Tensor]:
        """What the teacher's tower makes of the student's map."""
        assert student.predictions is not None
        assert teacher.predictions is not None
        tower = teacher.towers[name]
        first = min(self.first, tower.depth)
        ours_NCHW, theirs_NCHW = (
            full(each.predictions.held[name][level][first]) for each in (student, teacher) if each.predictions
        )
        map_NCHW = rescaled(ours_NCHW, theirs_NCHW.detach(), valid_N1HW)
        return tower(level, map_NCHW.relu() if first else map_NCHW, first)

    def _divisors(self, ours: Predictions, batch: Batch, confident: Tensor) -> tuple[Tensor, Tensor]:
        """Of scores and boxes."""
        assert ours.matches is not None
        if ours.quality_NK is not None:
            boxes = [target.boxes_K4 for target in batch.targets]
            centred = centreness_sum(ours.anchors_K4, list(ours.matches), boxes)
            centred = centred.clamp(min=EPSILON if self.official else 1.0)
            return centred, centred
        found = torch.stack([(each >= 0).sum().clamp(min=1) for each in ours.matches]).sum()
        return found, confident.clamp(min=EPSILON) if ours.boxes_NKD.shape[2] > 4 else found


def counted(predictions: Predictions) -> Tensor:
    """NK: 0 at places that the detector's own losses leave out."""
    assert predictions.matches is not None
    if predictions.quality_NK is not None:  # of points none is left out
        return torch.ones_like(predictions.quality_NK)
    return (torch.stack(list(predictions.matches)) > -2).float()


def rescaled(student_NCHW: Tensor, teacher_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
    """The student's map with the teacher's mean and deviation of each channel, over the cells that count."""
    (our_mean, our_deviation), (their_mean, their_deviation) = (
        statistics(each, valid_N1HW) for each in (student_NCHW, teacher_NCHW)
    )
    return (student_NCHW - our_mean) / (our_deviation + EPSILON) * their_deviation + their_mean


def statistics(map_NCHW: Tensor, valid_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, 1C11 each."""
    cells = valid_N1HW.sum().clamp(min=1)
    mean_1C11 = (valid_N1HW * map_NCHW).sum((0, 2, 3), keepdim=True) / cells
    square_1C11 = (valid_N1HW * (map_NCHW - mean_1C11).square()).sum((0, 2, 3), keepdim=True)
    variance_1C11 = square_1C11 / (cells - 1).clamp(min=1)
    return mean_1C11, variance_1C11.clamp(min=EPSILON**2).sqrt()  # the root of 0 has no gradient


def confidence(theirs_NKC: Tensor) -> Tensor:
    """g, NK."""
    return theirs_NKC.sigmoid().amax(2)


def quality_focal(ours_NKC: Tensor, theirs_NKC: Tensor) -> Tensor:
    """Of each place, NK; the focal weight has a gradient too."""
    wanted_NKC = theirs_NKC.sigmoid()
    entropy_NKC = F.binary_cross_entropy_with_logits(ours_NKC, wanted_NKC, reduction="none")
    return (entropy_NKC * (ours_NKC.sigmoid() - wanted_NKC).abs()).sum(2)


def box_distance(ours_NKD: Tensor, theirs_NKD: Tensor, head: Predictions, anchors_K4: Tensor) -> Tensor:
    """NK: as the module's docstring has it for the three kinds of heads; both boxes are coded by the teacher's head."""
    if ours_NKD.shape[2] > 4:
        return distribution_distance(ours_NKD, theirs_NKD)
    ours_NK4, theirs_NK4 = head.decode(ours_NKD, anchors_K4), head.decode(theirs_NKD, anchors_K4)
    if head.quality_NK is not None:
        return -iou(ours_NK4, theirs_NK4)[0].clamp(min=EPSILON).log()
    return giou_distance(ours_NK4, theirs_NK4)


def distribution_distance(ours_NKD: Tensor, theirs_NKD: Tensor) -> Tensor:
    """KL of the sides' distributions, a mean over the 4 sides, NK."""
    log_q, log_p = (each.view(*each.shape[:2], 4, -1).log_softmax(3) for each in (ours_NKD, theirs_NKD))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum((2, 3)) / 4


def giou_distance(ours_NK4: Tensor, theirs_NK4: Tensor) -> Tensor:
    """1 - GIoU, NK."""
    iou_NK, union_NK = iou(ours_NK4, theirs_NK4)
    low_NK2 = torch.minimum(ours_NK4[..., :2], theirs_NK4[..., :2])
    high_NK2 = torch.maximum(ours_NK4[..., 2:], theirs_NK4[..., 2:])
    outer_NK = (high_NK2 - low_NK2).prod(2).clamp(min=EPSILON)
    return 1 - iou_NK + (outer_NK - union_NK) / outer_NK


def iou(ours_NK4: Tensor, theirs_NK4: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union, NK each."""
    low_NK2 = torch.maximum(ours_NK4[..., :2], theirs_NK4[..., :2])
    high_NK2 = torch.minimum(ours_NK4[..., 2:], theirs_NK4[..., 2:])
    common_NK = (high_NK2 - low_NK2).clamp(min=0).prod(2)
    area_NK = [(each[..., 2:] - each[..., :2]).prod(2) for each in (ours_NK4, theirs_NK4)]
    union_NK = (area_NK[0] + area_NK[1] - common_NK).clamp(min=EPSILON)
    return common_NK / union_NK, union_NK


def centreness_sum(anchors_K4: Tensor, matches: list[Tensor], boxes: list[Tensor]) -> Tensor:
    """What the centreness of the places that shall find a box shall be, summed over all images."""
    centre_K2 = (anchors_K4[:, :2] + anchors_K4[:, 2:]) / 2
    sums = []
    for match_K, boxes_M4 in zip(matches, boxes, strict=True):
        found_K = match_K >= 0
        if not len(boxes_M4):
            continue
        box_K4 = boxes_M4[match_K.clamp(min=0)]
        low_K2, high_K2 = centre_K2 - box_K4[:, :2], box_K4[:, 2:] - centre_K2
        ratio_K2 = torch.minimum(low_K2, high_K2) / torch.maximum(low_K2, high_K2).clamp(min=EPSILON)
        sums.append((found_K * ratio_K2.clamp(min=0).prod(1).sqrt()).sum())
    return torch.stack(sums).sum() if sums else anchors_K4.new_zeros(())
