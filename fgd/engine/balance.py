"""How strong each method is beside the detection loss: measured once after a warm-up, then frozen.

The strength of a loss is the norm of its gradient at the maps that student and teacher share: there the two pull at
the same numbers, whatever their units. The published weights of a method hold for one detector, input size and width;
these factors make one default serve all of them.

Before the first step the detection loss's gradient says little: a head that begins with small weights passes hardly
any of it on. With the default weights, FGD's is then 143 times as strong on RetinaNet and 2 times on FCOS; after one
epoch of BCCD it is 9 and 20 times. So the student first learns by its detection loss alone, for `warm_up` steps; then
the factors are measured, and grow from 0 over as many steps again.

A method with `rho` R gets one factor, so that the gradient of its sum is R times the detection loss's: its weights
decide how its terms are mixed, and terms that pull the same way are not counted twice. A method with shares as well
gets a factor for each term, measured by itself: the gradient of term i is R x share_i / (sum of the shares) times the
detection loss's, whatever its weight. Its sum is then R times as strong at most, and as strong as that only if all
terms pull the same way. A term without a gradient on any batch cannot be measured: it is off, and the others share.
"""

# N images, C x H x W of a level's map, T terms

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
WARM_UP = 200
"""Steps at most before the measurement."""


def warm_up(per_epoch: int, epochs: int) -> int:
    """Steps before the factors are measured: an epoch, and an eighth of a short training."""
    return min(per_epoch, WARM_UP, max(1, per_epoch * epochs // 8))


def strengths(found: Mapping[str, float], kinds: Collection[str], step: int, warm_up: int) -> Callable[[str], float]:
    """What a term, <method>/<term>, is multiplied by in a step, the first of which is 0.

    found: the factors, if they are measured. kinds: the methods that have some; the terms of others stay as they are.
    """
    ramp = min(1.0, max(0.0, (step + 1) / warm_up - 1.0))

    def strength(name: str) -> float:
        if name.partition("/")[0] not in kinds:
            return 1.0
        return ramp * found[name] if found else 0.0

    return strength


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
    views: Callable[[Batch], Mapping[str, View]],
    rhos: Mapping[str, float],
    *,
    seed: int,
    check_stop: Callable[[], None],
) -> dict[str, float]:
    """<method>/<term> -> factor, for the methods of `rhos` that are not 0. See the module.

    views: what each teacher shows of a batch. The networks, their running statistics and the random generators are left
    as they were.
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
            pulls.append(pull(distill, batch, views(batch)))
    running.restore()
    distill.train(training)
    found: dict[str, float] = {}
    for kind, rho in rhos.items():
        if rho > 0:
            method = distill.methods[kind]
            assert isinstance(method, Method)
            found |= factors(pulls, kind, rho, method.shares)
    return found


def pull(distill: Distill, batch: Batch, teachers: Mapping[str, View]) -> Pull:
    """What each loss of a batch does to the maps that the student and any teacher have."""
    with torch.no_grad():
        features = distill.student.features(batch.images_NCHW)
    features = {level: map_NCHW.requires_grad_() for level, map_NCHW in features.items()}
    at = [features[level] for level in dict.fromkeys(level for view in teachers.values() for level in view.features)]
    losses = distill.losses(features, batch, teachers)
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


def factors(
    pulls: Sequence[Pull], kind: str, rho: float, shares: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The factors of one method's terms, medians over the batches. See the module; shares: None if there are none."""
    terms = [name for name in (pulls[0].terms if pulls else ()) if name.partition("/")[0] == kind]
    if shares is None:
        return dict.fromkeys(terms, rho * ratio(pulls, terms))
    apart = {name: ratio(pulls, [name]) for name in terms}
    wanted = {name: shares.get(name.partition("/")[2], 1.0) for name in terms if apart[name] > 0}
    all_shares = sum(wanted.values())
    return {name: rho * wanted[name] / all_shares * factor if name in wanted else 0.0 for name, factor in apart.items()}


def ratio(pulls: Sequence[Pull], terms: Collection[str]) -> float:
    """Of the detection loss's gradient to that of the sum of these terms."""
    return median_ratio((pulled.detection, norm_of(pulled, terms)) for pulled in pulls)


def norm_of(pulled: Pull, terms: Collection[str]) -> float:
    """Of the gradient of the sum of these terms."""
    on_T = torch.tensor([float(name in terms) for name in pulled.terms], dtype=torch.float64)
    return math.sqrt(max(0.0, float(on_T @ pulled.products_TT @ on_T)))


def median_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """Of the first number to the second, over the pairs in which there is a second; 0 if there is none in any."""
    ratios = [first / second for first, second in pairs if second > 0 and math.isfinite(first / second)]
    return statistics.median(ratios) if ratios else 0.0


def note(found: Mapping[str, float], rhos: Mapping[str, float], shares: Mapping[str, Mapping[str, float]]) -> Note:
    """What was found, for people. shares: of the methods that have them."""
    told = ", ".join(f"{name} x{factor:.3g}" for name, factor in found.items())
    silent = [name for name, factor in found.items() if factor == 0]
    if silent:
        told += f"; {' and '.join(silent)} had no gradient on any of the batches and is off"
    return Note(
        code="balanced",
        message=f"the methods' terms are weighted against the detection loss's gradient: {told}",
        data={"factors": dict(found), "rho": dict(rhos), "shares": {kind: dict(each) for kind, each in shares.items()}},
        level="warning" if silent else "info",
    )
