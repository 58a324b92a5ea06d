"""One update of the weights, and what happens when it is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fgd.engine import distributed
from fgd.engine.balance import strengths, warm_up
from fgd.engine.checkpoint import TrainingState
from fgd.engine.device import seeded, to_device
from fgd.engine.optimise import learning_rate, set_learning_rate
from fgd.engine.prepare import Training
from fgd.engine.unlabelled import Looked, look
from fgd.errors import Diverged
from fgd.events import Emit, Note
from fgd.outline import unlabelled_per_step
from fgd.spec import Schedule
from fgd.types import Batch

MOST_SKIPPED = 10
"""Steps in a row that are not finite; then `on_non_finite` "skip" gives up: the weights themselves are at fault."""


def gives_up(state: TrainingState, schedule: Schedule) -> bool:
    """Whether a step that is not finite ends the training."""
    return schedule.on_non_finite == "fail" or state.skipped_in_a_row + 1 >= MOST_SKIPPED


def skip(diverged: Diverged, state: TrainingState, schedule: Schedule, per_epoch: int, emit: Emit) -> float:
    """A step goes by without a change; the learning rate it would have had."""
    state.skipped_in_a_row += 1
    state.skipped += 1
    message = f"{diverged}. The step is skipped ({state.skipped} so far, {state.skipped_in_a_row} in a row)"
    data = diverged.data | {"skipped": state.skipped, "in_a_row": state.skipped_in_a_row}
    emit(Note(code="loss_non_finite", message=message, data=data, level="warning"))
    return learning_rate(diverged.step, steps_per_epoch=per_epoch, schedule=schedule)


def all_finite(module: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())


def step(
    parts: Training,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    number: int,
    per_epoch: int,
    unlabelled: Iterable[Batch] = (),
) -> tuple[dict[str, float], float]:
    """One update from `accumulate` batches, and those of unlabelled images; the mean losses as numbers and the learning
    rate used.

    Raises Diverged before a bad update is applied.
    """
    spec, distill, ranks = parts.spec, parts.distill, parts.ranks
    rate = learning_rate(number, steps_per_epoch=per_epoch, schedule=spec.schedule)
    set_learning_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    summed: dict[str, Tensor] = {}
    strength = strengths(parts.balance, parts.balanced_methods, number, warm_up(per_epoch, spec.schedule.epochs))
    # The methods' losses are means over images, here over all of the step: it has so many labelled batches' worth.
    images = spec.schedule.accumulate + unlabelled_per_step(spec) / spec.schedule.batch_size

    def add(losses: dict[str, Tensor]) -> None:
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        summed.update({name: summed.get(name, 0.0) + loss.detach() for name, loss in losses.items()})

    # First: where several processes train, the last pass of a step must be one through everything that is trained.
    for nth, (looked, share) in enumerate(looked_at(parts, unlabelled)):
        torch.manual_seed(seeded(spec.seed, 4, number, nth, ranks.rank))
        of_images = ranks.size * len(looked.batch.targets) / spec.schedule.batch_size
        with distributed.quiet(parts.model, last=False):
            losses = parts.model(looked.batch, looked.views, "pseudo" if share is not None else None)
            add(
                {
                    name: loss * (share if name.startswith("pseudo/") else strength(name) * of_images / images)
                    for name, loss in losses.items()
                }
            )
    for nth, (batch, share) in enumerate(shared(parts, batches)):
        # Anew for each batch: what a method draws for one must not change what the detector draws for the next.
        torch.manual_seed(seeded(spec.seed, 2, number, *([nth, ranks.rank] if ranks.rank else [nth] if nth else [])))
        with distributed.quiet(parts.model, last=nth + 1 == spec.schedule.accumulate):
            losses = forward(parts, to_device(batch, parts.machine.device))
            add(
                {
                    name: loss * (share if name.startswith("detection/") else strength(name) / images)
                    for name, loss in losses.items()
                }
            )
    norms = {
        "the student's gradient": clip(parts.student, spec.schedule.clip_norm),
        "the methods' gradient": clip(distill.methods, spec.schedule.clip_norm),
    }
    means = ranks.summed(torch.stack(list(summed.values()))) / ranks.size
    values = dict(zip(summed, means.tolist(), strict=True))
    for name, value in [*values.items(), *norms.items()]:
        if not math.isfinite(value):
            raise Diverged(number, name, value)
    optimizer.step()
    return values, rate


def shared(parts: Training, batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch of a step and the share of its detection losses, by what they are means of, in all processes. The
    methods' losses are means over images, of which every batch has as many."""
    ranks = parts.ranks
    if parts.spec.schedule.accumulate * ranks.size == 1:
        yield from ((batch, 1.0) for batch in batches)
        return
    whole = list(batches)
    counts = [parts.student.counted(batch) for batch in whole]
    everyones = ranks.summed(torch.tensor(float(sum(counts)), device=ranks.device)).item()
    for batch, count in zip(whole, counts, strict=True):
        # Times their number, for the gradients' mean over the processes is taken.
        yield batch, ranks.size * max(1, count) / max(1.0, everyones)


def looked_at(parts: Training, batches: Iterable[Batch]) -> Iterator[tuple[Looked, float | None]]:
    """Each batch of unlabelled images as the teachers see it, and the share of its losses on pseudo-labels: as
    `shared`, times their weight; None without pseudo-labels."""
    chosen, ranks = parts.spec.unlabelled, parts.ranks
    if chosen is None:
        return
    seen = (look(parts.teachers, to_device(batch, parts.machine.device), chosen.score) for batch in batches)
    if not chosen.pseudo_labels:
        yield from ((parts.counted(looked), None) for looked in seen)
        return
    if parts.spec.schedule.accumulate == 1:
        whole = [parts.counted(looked) for looked in seen]
    else:  # the boxes of all first, for their number; what else the teacher said would take the room of all batches
        whole = [Looked(parts.counted(looked).batch) for looked in seen]
    counts = [parts.student.counted(looked.batch) for looked in whole]
    everyones = ranks.summed(torch.tensor(float(sum(counts)), device=ranks.device)).item()
    for looked, count in zip(whole, counts, strict=True):
        views = looked.views or {name: teacher.view(looked.batch) for name, teacher in parts.teachers.items()}
        yield Looked(looked.batch, views), chosen.weight * ranks.size * max(1, count) / max(1.0, everyones)


def forward(parts: Training, batch: Batch) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = parts.model(batch, parts.views(batch))
    return losses


def clip(module: nn.Module, max_norm: float) -> float:
    """Clip in place (0: only measure); the norm before. Student and methods apart, so the control is clipped alike."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm: Tensor = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm)
    if max_norm > 0 and value > 0.99 * max_norm:  # below it torch would multiply every gradient by exactly 1
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return value
