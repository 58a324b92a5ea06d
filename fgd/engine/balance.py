"""How strong each method is beside the detection loss: measured once before step 0, then frozen.

The strength of a loss is the norm of its gradient at the maps that student and teacher share: there the two pull at
the same numbers, whatever their units. A method with `rho` R gets factors for its terms, so that the gradient of its
sum is R times the detection loss's, and its terms have their stated shares of it. The published weights of a method
hold for one detector, input size and width; these factors make one default serve all of them.
"""

# N images, C x H x W of a level's map, T terms

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgd.engine.distill import Distill
from fgd.engine.running_statistics import RunningStatistics
from fgd.events import Note
from fgd.methods.base import Method
from fgd.types import Batch, View

BATCHES = 32
"""The first ones of the training's first epoch, or all if fewer."""


@dataclass(frozen=True)
class Pull:
    """Gradients of one batch at the shared maps."""

    detection: float
    """Norm of the detection losses' gradient."""
    terms: tuple[str, ...]
    """<method>/<term>, as in the losses."""
    products_TT: Tensor
    """Inner products of the terms' gradients, float64."""


def measure(
    distill: Distill,
    batches: Iterable[Batch],
    view: Callable[[Batch], View],
    rhos: Mapping[str, float],
    *,
    seed: int,
    check_stop: Callable[[], None],
) -> dict[str, float]:
    """<method>/<term> -> factor, for the methods of `rhos` that are not 0. See the module.

    view: what the teacher shows of a batch. The networks, their running statistics and the random generators are left
    as they were. A term whose gradient is 0 on every batch gets the factor 0.
    """
    running = RunningStatistics(distill)
    training = distill.training
    distill.train()
    pulls = []
    devices = [distill.device] if distill.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for number, batch in enumerate(batches):
            check_stop()
            torch.manual_seed(seed + number)
            pulls.append(pull(distill, batch, view(batch)))
    running.restore()
    distill.train(training)
    found: dict[str, float] = {}
    for kind, rho in rhos.items():
        if rho > 0:
            method = distill.methods[kind]
            assert isinstance(method, Method)
            found |= factors(pulls, kind, rho, method.shares)
    return found


def pull(distill: Distill, batch: Batch, teacher: View) -> Pull:
    """What each loss of a batch does to the maps that both networks have."""
    with torch.no_grad():
        features = distill.student.features(batch.images_NCHW)
    features = {level: map_NCHW.requires_grad_() for level, map_NCHW in features.items()}
    at = [features[level] for level in teacher.features]
    losses = distill.losses(features, batch, teacher)
    detection = torch.stack([loss for name, loss in losses.items() if name.startswith("detection/")]).sum()
    terms = tuple(name for name in losses if not name.startswith("detection/"))
    norm = float(torch.linalg.vector_norm(gradient(detection, at)))
    gradients_TM = torch.stack([gradient(losses[name], at) for name in terms])
    return Pull(norm, terms, (gradients_TM @ gradients_TM.T).double().cpu())


def gradient(loss: Tensor, at: Sequence[Tensor]) -> Tensor:
    """Of all maps in a row, float32; 0 where the loss does not depend on one."""
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(each).flatten() for each in at]).float()
    found = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([each.flatten() for each in found]).float()


def factors(pulls: Sequence[Pull], kind: str, rho: float, shares: Mapping[str, float]) -> dict[str, float]:
    """The factors of one method's terms, medians over the batches.

    First each term is brought to its share of the detection loss's gradient, then the sum of them to `rho` times it:
    where two terms pull the same way, or against each other, the sum is not the sum of the norms.
    """
    terms = [name for name in (pulls[0].terms if pulls else ()) if name.partition("/")[0] == kind]
    apart = {}
    for name in terms:
        share = shares.get(name.partition("/")[2], 1.0)
        apart[name] = share * median_ratio((pulled.detection, norm_of(pulled, {name: 1.0})) for pulled in pulls)
    together = median_ratio((pulled.detection, norm_of(pulled, apart)) for pulled in pulls)
    return {name: rho * together * factor for name, factor in apart.items()}


def norm_of(pulled: Pull, weights: Mapping[str, float]) -> float:
    """Of the weighted sum of some terms' gradients."""
    weights_T = torch.tensor([weights.get(name, 0.0) for name in pulled.terms], dtype=torch.float64)
    return math.sqrt(max(0.0, float(weights_T @ pulled.products_TT @ weights_T)))


def median_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """Of the first number to the second, over the pairs in which there is a second; 0 if there is none in any."""
    ratios = [first / second for first, second in pairs if second > 0 and math.isfinite(first / second)]
    return statistics.median(ratios) if ratios else 0.0


def note(found: Mapping[str, float], rhos: Mapping[str, float]) -> Note:
    """What was found, for people."""
    told = ", ".join(f"{name} x{factor:.3g}" for name, factor in found.items())
    silent = [name for name, factor in found.items() if factor == 0]
    if silent:
        told += f"; {' and '.join(silent)} had no gradient on any of the batches and is off"
    return Note(
        code="balanced",
        message=f"the methods' terms are weighted against the detection loss's gradient: {told}",
        data={"factors": dict(found), "rho": dict(rhos)},
        level="warning" if silent else "info",
    )
