"""The one operator of our own in a traced graph, in torch and in ONNX."""

# N images, C classes, M candidates

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.onnx import register_custom_op_symbolic, symbolic_helper  # type: ignore[attr-defined]

FIRST_OPSET, LAST_OPSET = 16, 20
"""Versions of ONNX in which it can be written."""


@torch.library.custom_op("fgd::non_max_suppression", mutates_args=())
def non_max_suppression(boxes_NM4: Tensor, scores_NCM: Tensor, iou: float) -> Tensor:
    """Scores N x M of those that are kept, else 0. Each candidate has a score in one class at most."""
    left_NM = scores_NCM.new_zeros(scores_NCM.shape[0], scores_NCM.shape[2])
    for boxes_M4, scores_CM, left_M in zip(boxes_NM4, scores_NCM, left_NM, strict=True):
        for scores_M in scores_CM:
            (there_K,) = torch.where(scores_M > 0)
            kept_K = there_K[torchvision.ops.nms(boxes_M4[there_K], scores_M[there_K], iou)]
            left_M[kept_K] = scores_M[kept_K]
    return left_NM


def _to_onnx(g: Any, boxes_NM4: Any, scores_NCM: Any, iou: Any) -> Any:
    def constant(*values: float, dtype: torch.dtype = torch.int64) -> Any:
        return g.op("Constant", value_t=torch.tensor(values, dtype=dtype))

    threshold = constant(symbolic_helper._get_const(iou, "f", "iou"), dtype=torch.float32)  # type: ignore[no-untyped-call]
    every, no_score = constant(2**31 - 1), constant(0.0, dtype=torch.float32)
    found_K3 = g.op("NonMaxSuppression", boxes_NM4, scores_NCM, every, threshold, no_score)  # image, class, candidate
    place_K2 = g.op("Gather", found_K3, constant(0, 2), axis_i=1)
    x1_NM = g.op("Gather", boxes_NM4, g.op("Constant", value_t=torch.tensor(0)), axis_i=2)
    zeros_NM = g.op("ConstantOfShape", g.op("Shape", x1_NM), value_t=torch.zeros(1))
    left_NM = g.op("ScatterND", zeros_NM, place_K2, g.op("GatherND", scores_NCM, found_K3))
    return left_NM.setType(x1_NM.type())


register_custom_op_symbolic("fgd::non_max_suppression", _to_onnx, FIRST_OPSET)
