"""A training from spec to result, in the order it happens: evaluate, save, stop?, step, report.

Knows nothing of processes, HTTP or databases: it is given a spec of paths, a folder, a place to emit events and a
question to ask ("was a stop asked?").
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgd.asked import asked_to_finish, forget
from fgd.data import open_index
from fgd.data.index import Index
from fgd.data.loader import Dataset, Split, train_batches
from fgd.data.transforms import Transform
from fgd.detectors import DETECTORS, Detector, Recipe, anchors, build
from fgd.engine import checkpoint, device, distributed, pretrained, weights
from fgd.engine.average import Average
from fgd.engine.checkpoint import State
from fgd.engine.device import Machine, seeded, to_device
from fgd.engine.distill import Distill, Teacher
from fgd.engine.distributed import ALONE, Ranks
from fgd.engine.evaluate import evaluate
from fgd.engine.gauge import Gauge, busy_s
from fgd.engine.known import Known, Question, content_of
from fgd.engine.optimise import learning_rate, make_optimizer, set_learning_rate
from fgd.engine.start import Laps
from fgd.engine.teacher import (
    CALIBRATION_IMAGES,
    CHECK_IMAGES,
    Examined,
    box_count,
    calibrate,
    check_classes,
    check_teacher,
    evenly_spaced,
    refuse_unfit,
)
from fgd.engine.teacher_cache import KEEP_FREE, TeacherCache
from fgd.engine.warm import start_from
from fgd.errors import DatasetError, Diverged, SpecError, Stopped
from fgd.events import Alive, Emit, Evaluated, Finished, Note, Phase, Saved, Started, Stepped
from fgd.methods import build as build_method
from fgd.methods.base import Method, Pair
from fgd.outline import idle_resources, whole_steps, without_effect
from fgd.presets import resolve
from fgd.spec import DetectorSpec, EarlyStop, FromPath, JobSpec, Schedule, Spec, TeacherFromPath
from fgd.types import Batch, Calibration

ALIVE_S = 10.0
"""Seconds between signs of life during work that has no steps."""
REPORT_S = 1.0
"""Seconds between reports of the running means."""
KEEP_CHECKPOINTS = 2
NOTHING_KNOWN = Known(None)
MOST_SKIPPED = 10
"""Steps in a row that are not finite; then `on_non_finite` "skip" gives up: the weights themselves are at fault."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """All that stands before the first step."""

    spec: JobSpec
    machine: Machine
    train: Dataset
    val: Dataset
    test: Dataset | None
    transform: Transform
    distill: Distill
    teacher: Teacher | None
    calibration: Calibration | None
    identity: dict[str, Any]
    """What a checkpoint belongs to: the spec without its paths, and digests of data, teacher and inherited weights."""
    ranks: Ranks
    model: nn.Module
    """`distill`, wrapped where several processes train it."""
    cache: TeacherCache | None = None
    """Of the teacher's maps."""

    @property
    def student(self) -> Detector:
        return self.distill.student

    @property
    def digest(self) -> str:
        return checkpoint_digest(self.spec, self.identity)


def run(spec: JobSpec, out: Path, *, resume: Path | None, emit: Emit, stop: Callable[[], bool]) -> None:
    """Train, and leave the result in `out`/result. Raises FGDError; Stopped after a checkpoint when stop was asked."""
    laps = Laps()
    laps.end("imports")
    spec = resolve(spec)
    machine = device.choose(spec.resources, spec.schedule.precision)
    ranks = distributed.join(machine.device)
    laps.end("device")
    check_stop = alive(stop, emit)
    if resume is None and ranks.first:  # what an earlier run left would be taken for this one's
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    parts, state, contents = prepare(spec, machine, resume, emit, check_stop, ranks=ranks, laps=laps)
    parts = dataclasses.replace(parts, cache=cache_of(parts, out, emit))
    distill, student, schedule = parts.distill, parts.student, spec.schedule
    optimizer = make_optimizer([distill], schedule.optimizer)
    average = Average(student, schedule.ema) if schedule.ema else None
    best: dict[str, Tensor] | None = None
    if contents is not None:
        assert resume is not None
        with checkpoint.reading(resume):
            distill.load_state_dict(contents["model"], strict=True)
            optimizer.load_state_dict(contents["optimizer"])
            best = contents["best"]
            if average is not None:
                average.load_state_dict(contents["average"])
        contents = None  # or its copies would take room as long as the training
    shown = average.detector if average else student  # what is evaluated, and becomes the result
    per_epoch = whole_steps(len(parts.train), schedule.batch_size, schedule.accumulate)
    total = per_epoch * schedule.epochs
    per_step = schedule.batch_size * schedule.accumulate
    if left_over := len(parts.train) - per_epoch * per_step:
        message = f"{left_over} of {len(parts.train)} images are left out of each epoch, others each time"
        emit(Note(code="left_over", message=message, data={"images": left_over}))
    emit(
        Started(
            step=state.step,
            total_steps=total,
            epochs=schedule.epochs,
            device=machine.device_name,
            threads=machine.threads,
            precision=machine.precision,
            versions=device.versions(),
        )
    )

    meter = Meter(state, emit, per_step, Gauge(machine), parts.cache)
    saved, saved_at = (state.step, state.evaluated_step), time.monotonic()
    kept: list[Path] = []

    def save() -> None:
        nonlocal saved, saved_at
        if saved == (state.step, state.evaluated_step) or not ranks.first:
            return
        path = out / "checkpoints" / f"step-{state.step:08d}-{max(state.evaluated_step, 0):08d}.pt"
        is_best = state.best_step == state.step  # then `best` is what is there anyway, and need not be written twice
        everything = everything_of(distill, optimizer, shown.module.state_dict() if is_best else best, average)
        everything["recipe"] = student.recipe.model_dump(mode="json")  # a promoted checkpoint needs nothing else
        with meter.saving():
            digest = checkpoint.save(path, everything, state, parts.calibration, parts.digest)
        emit(Saved(step=state.step, path=str(path), sha256=digest, size=path.stat().st_size, best=is_best))
        kept.append(path)
        for old in kept[:-KEEP_CHECKPOINTS]:
            old.unlink(missing_ok=True)
            kept.remove(old)
        saved, saved_at = (state.step, state.evaluated_step), time.monotonic()

    batches: Iterator[Batch] | None = None
    statistics = Statistics(distill)
    early = False
    laps.end("optimiser")
    emit(laps.note())
    emit(Phase(phase="training"))
    distill.train()
    try:
        while True:
            epoch, done_in_epoch = divmod(state.step, per_epoch)
            if done_in_epoch == 0 and state.step > 0 and evaluation_due(state, epoch, spec):
                emit(Phase(phase="evaluating"))
                with meter.evaluating():
                    state.scores = score(parts, shown, parts.val, check_stop)
                tell_undecodable(parts, emit)
                state.evaluated_step = state.step
                emit(Evaluated(step=state.step, epoch=epoch, split="val", values=dict(state.scores)))
                if state.scores["ap"] > state.best_ap:
                    state.best_ap, state.best_step = state.scores["ap"], state.step
                    state.best_scores = dict(state.scores)
                    best = {key: value.clone() for key, value in shown.module.state_dict().items()}
                if schedule.early_stop is not None:
                    count(state, schedule.early_stop)
                save()
                emit(Phase(phase="training"))
            every = schedule.checkpoint_steps or math.inf
            if time.monotonic() - saved_at > schedule.checkpoint_s or state.step - saved[0] >= every:
                save()
            if ranks.any(stop()):
                raise Stopped("asked to stop")
            if state.step == total or stale(state, schedule.early_stop):
                break
            if early := state.step > 0 and ranks.any(asked_to_finish(out)):
                save()
                break
            if batches is None or done_in_epoch == 0:
                batches = train_batches(
                    parts.train,
                    parts.transform,
                    schedule,
                    spec.seed,
                    epoch,
                    first_step=done_in_epoch,
                    shard=ranks.shard,
                )
            of_step = meter.waiting(itertools.islice(batches, schedule.accumulate))
            statistics.remember()
            try:
                losses, rate = step(parts, optimizer, of_step, state.step, per_epoch)
            except Diverged as diverged:  # nothing was applied; only running statistics took harm
                statistics.restore()
                if gives_up(state, schedule):
                    if all_finite(distill):
                        save()
                    raise
                losses, rate = {}, skip(diverged, state, schedule, per_epoch, emit)
            else:
                state.skipped_in_a_row = 0
            state.step += 1
            if average is not None and losses:
                average.update(student, state.step)
            meter.add(losses, rate, epoch + 1, last_of_epoch=done_in_epoch + 1 == per_epoch)
            tell_undecodable(parts, emit)
    except Stopped:
        save()
        with contextlib.suppress(RuntimeError):  # one that stopped elsewhere, and is gone
            ranks.wait()  # a rank that ends early has the others killed after a while, also in the middle of a save
            distributed.leave()  # a process that ends without it may abort, and that is not what a stop looks like
        raise
    finally:
        if batches is not None:
            batches.close()  # type: ignore[attr-defined]  # a generator: ends its reader thread
        if parts.cache is not None:  # before the result needs the room
            parts.cache.close()
    if early:
        choose_best(parts, shown, state, best, total, emit, check_stop, epoch=state.step // per_epoch)
        best = None
    elif state.step < total:
        message = (
            f"{state.stale} evaluations in a row without an improvement: ended after epoch {state.step // per_epoch}"
        )
        emit(Note(code="early_stopped", message=message, data={"step": state.step, "total_steps": total}))
    emit(meter.cost())
    emit(meter.evaluation_cost())
    if parts.cache is not None:
        emit(parts.cache.cost())
    finish(parts, shown, state, best, out, emit, check_stop, epoch=state.step // per_epoch, stopped=early)
    forget(out)
    distributed.leave()


def gives_up(state: State, schedule: Schedule) -> bool:
    """Whether a step that is not finite ends the training."""
    return schedule.on_non_finite == "fail" or state.skipped_in_a_row + 1 >= MOST_SKIPPED


def skip(diverged: Diverged, state: State, schedule: Schedule, per_epoch: int, emit: Emit) -> float:
    """A step goes by without a change; the learning rate it would have had."""
    state.skipped_in_a_row += 1
    state.skipped += 1
    message = f"{diverged}. The step is skipped ({state.skipped} until now, {state.skipped_in_a_row} in a row)"
    data = diverged.data | {"skipped": state.skipped, "in_a_row": state.skipped_in_a_row}
    emit(Note(code="loss_non_finite", message=message, data=data, level="warning"))
    return learning_rate(diverged.step, steps_per_epoch=per_epoch, schedule=schedule)


def all_finite(module: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())


class Statistics:
    """Running statistics of batch norm as they were before a step: a step that is not finite spoils them at once."""

    def __init__(self, module: nn.Module) -> None:
        norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self.live = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.kept = [buffer.clone() for buffer in self.live]

    def remember(self) -> None:
        if self.live:
            torch._foreach_copy_(self.kept, self.live)

    def restore(self) -> None:
        if self.live:
            torch._foreach_copy_(self.live, self.kept)


def choose_best(
    parts: Parts,
    shown: Detector,
    state: State,
    best: dict[str, Tensor] | None,
    total: int,
    emit: Emit,
    check_stop: Callable[[], None],
    epoch: int,
) -> None:
    """Asked to finish early: `shown` becomes the best that was evaluated; the last weights are, if nothing was yet."""
    if best is not None:
        shown.module.load_state_dict(best, strict=True)
    measured = state.best_scores if best is not None else state.scores if state.evaluated_step == state.step else {}
    if not measured:
        emit(Phase(phase="evaluating"))
        measured = score(parts, shown, parts.val, check_stop)
        tell_undecodable(parts, emit)
        emit(Evaluated(step=state.step, epoch=epoch, split="val", values=dict(measured)))
    state.scores = dict(measured)
    if best is None:
        state.best_ap, state.best_step = measured["ap"], state.step
    message = (
        f"asked to finish early: ended after step {state.step} of {total}; the result has the weights of step "
        f"{state.best_step}, AP {state.best_ap:.1f}"
    )
    data = {"step": state.step, "total_steps": total, "weights_of_step": state.best_step}
    emit(Note(code="finished_early", message=message, data=data))


def step(
    parts: Parts, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], number: int, per_epoch: int
) -> tuple[dict[str, float], float]:
    """One update from `accumulate` batches; the mean losses as numbers and the learning rate used.

    Raises Diverged before a bad update is applied.
    """
    spec, distill, ranks = parts.spec, parts.distill, parts.ranks
    rate = learning_rate(number, steps_per_epoch=per_epoch, schedule=spec.schedule)
    set_learning_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    summed: dict[str, Tensor] = {}
    for nth, (batch, share) in enumerate(shared(parts, batches)):
        # Anew for each batch: what a method draws for one must not change what the detector draws for the next.
        torch.manual_seed(seeded(spec.seed, 2, number, *([nth, ranks.rank] if ranks.rank else [nth] if nth else [])))
        with distributed.quiet(parts.model, last=nth + 1 == spec.schedule.accumulate):
            losses = {
                name: loss * (share if name.startswith("detection/") else 1 / spec.schedule.accumulate)
                for name, loss in forward(parts, to_device(batch, parts.machine.device)).items()
            }
            total = torch.stack(list(losses.values())).sum()
            total.backward()  # type: ignore[no-untyped-call]
        summed = {name: summed.get(name, 0.0) + loss.detach() for name, loss in losses.items()}
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


def shared(parts: Parts, batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
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


def forward(parts: Parts, batch: Batch) -> dict[str, Tensor]:
    teacher = parts.cache or parts.teacher
    losses: dict[str, Tensor] = parts.model(batch, teacher.shared_features(batch) if teacher else None)
    return losses


def clip(module: nn.Module, max_norm: float) -> float:
    """Clip in place (0: only measure); the norm before. Student and methods apart, so the control is clipped alike."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm: Tensor = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm)
    if max_norm > 0 and value > 0.99 * max_norm:  # below it torch would multiply every gradient by exactly 1
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return value


def prepare(
    spec: JobSpec,
    machine: Machine,
    resume: Path | None,
    emit: Emit,
    check_stop: Callable[[], None],
    *,
    rehearsal_images: int | None = None,
    ranks: Ranks = ALONE,
    laps: Laps | None = None,
) -> tuple[Parts, State, dict[str, Any] | None]:
    """Data, networks, teacher's fitness and calibration; and what the checkpoint holds, if one is given.

    rehearsal_images: the teacher is not checked, and calibrated on so many images only: enough to see how fast it is.
    """
    emit(Phase(phase="loading"))
    laps = laps or Laps()
    schedule = spec.schedule
    assert isinstance(spec.dataset, FromPath)
    index, root = open_index(Path(spec.dataset.path))
    train, val, test = split(index, root, "train"), split(index, root, "val"), split(index, root, "test")
    if train is None or val is None:
        raise DatasetError(f"{root}: a training needs images in train and val; found {sorted(index.splits)}")
    per_epoch = whole_steps(len(train), schedule.batch_size, schedule.accumulate)
    for warned in (*without_effect(schedule, per_epoch), *idle_resources(spec)):
        message = f"{warned.pointer}: {warned.message}"
        emit(Note(code="no_effect", message=message, data={"pointer": warned.pointer}, level="warning"))
    recipe = Recipe(
        detector=finished(spec.student),
        classes=index.classes,
        min_size=schedule.min_size,
        max_size=schedule.max_size,
        norm_eps=pretrained.norm_eps(spec.student),
    )
    transform = Transform(recipe.min_size, recipe.max_size, recipe.image_mean, recipe.image_std)
    recipe = with_anchors(recipe, spec.student, train, transform, emit)
    laps.end("data")
    torch.manual_seed(seeded(spec.seed, 0))
    student = build(recipe)
    student.bf16 = machine.bf16
    identity: dict[str, Any] = {
        "spec": spec.model_dump(mode="json", exclude={"name", "teacher", "dataset", "resources"})
        | {"student": finished(spec.student).model_dump(mode="json", exclude={"inherit"})},
        "dataset": digest_of_json(index.model_dump(mode="json")),
    }
    if isinstance(spec.student.weights, FromPath):
        identity["weights"] = warm_start(spec.student.weights, student, emit)
    if recipe.anchor_sizes is not None:
        identity["anchor_sizes"] = recipe.anchor_sizes
    if recipe.anchor_ratios is not None:
        identity["anchor_ratios"] = recipe.anchor_ratios
    source = pretrained.source_of(spec.student)
    if source is not None:
        identity["pretrained"] = pretrained_start(source, student, emit, check_stop)
    if spec.student.inherit is not None:
        identity["inherit"] = inherit_from(spec, student, emit)
    student.to(machine.device)
    laps.end("student")
    teacher = None
    if spec.teacher is not None:
        teacher, identity["teacher"] = load_teacher(spec, student, machine)
        pair_up(spec, teacher, emit)
        laps.end("teacher")

    state, contents, calibration = State(), None, None
    if resume is not None:
        digests = {checkpoint_digest(spec, identity, by_batches=by_batches) for by_batches in (False, True)}
        contents, state, calibration = checkpoint.load(resume, digests, machine.device)
        emit(Note(code="resumed", message=f"going on from step {state.step}", data={"step": state.step}))
    elif teacher is not None and rehearsal_images is not None:
        few = train.with_images(train.images[:rehearsal_images], train.classes)
        calibration = measure(teacher, spec, few, transform, machine, emit, check_stop)
    elif teacher is not None:
        about = {
            "teacher": [identity["teacher"], teacher.detector.recipe.model_dump(mode="json")],
            "student": [
                recipe.min_size,
                recipe.max_size,
                recipe.image_mean,
                recipe.image_std,
                student.recipe.detector.levels(),
            ],
            "machine": [machine.device_name, machine.threads, schedule.batch_size, ranks.size, device.versions()],
        }
        known = Known.from_environment()
        examine(teacher, spec, val, transform, machine, emit, check_stop, ranks, known, about)
        laps.end("teacher check")
        of_first = partial(measure, teacher, spec, train, transform, machine, emit, check_stop, known, about)
        calibration = ranks.of_first(of_first)
        laps.end("calibration")
    methods: dict[str, Method] = {}
    if teacher is not None:
        assert calibration is not None
        if machine.bf16:  # only now: what is checked and measured of it is float32
            teacher.quicken()
        pair = Pair.of(student.recipe.detector, teacher.detector.recipe.detector)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(spec.seed, 1))
            methods = {m.kind: build_method(m, pair, calibration, schedule) for m in spec.methods}
        for method in methods.values():
            method.train_in_bf16(on=machine.bf16)
    distill = Distill(student, methods).to(machine.device)
    model = ranks.wrap(distill)
    parts = Parts(spec, machine, train, val, test, transform, distill, teacher, calibration, identity, ranks, model)
    return parts, state, contents


def cache_of(parts: Parts, out: Path, emit: Emit) -> TeacherCache | None:
    """Each process of a job has its own, with its share of the bytes."""
    gib = parts.spec.resources.teacher_cache_gib
    if gib is None or parts.teacher is None:
        return None
    trained = sum(parameter.nbytes for parameter in parts.distill.parameters())
    # Here and in the store: checkpoints of weights, two moments and the best weights.
    checkpoints = 2 * (KEEP_CHECKPOINTS + 1) * 4 * trained
    max_bytes = int(gib * 2**30) // parts.ranks.size
    try:
        return TeacherCache(parts.teacher, out, max_bytes=max_bytes, keep_free=max(KEEP_FREE, checkpoints), emit=emit)
    except OSError as error:
        message = f"there is no cache of the teacher's maps: {error.strerror}"
        emit(Note(code="teacher_cache_stopped", message=message, level="warning"))
        return None


def split(index: Index, root: Path, name: Split) -> Dataset | None:
    return Dataset(index, name, root) if index.splits.get(name) else None


def finished(student: DetectorSpec) -> DetectorSpec:
    """The network without the folders that its training began from: those are nobody's business later."""
    weights = student.weights if isinstance(student.weights, str) else "none"
    return student.but(inherit=None, weights=weights, norm=student.trunk_norm())


def warm_start(source: FromPath, student: Detector, emit: Emit) -> str:
    folder = Path(source.path)
    begun = start_from(student, folder)
    message = f"begins with {len(begun.copied)} tensors of the weights named; {len(begun.left)} start afresh"
    data = {"copied": len(begun.copied), "afresh": list(begun.left)}
    emit(Note(code="warm_started", message=message, data=data))
    return digest_of_file(folder / weights.WEIGHTS)


def with_anchors(recipe: Recipe, student: DetectorSpec, train: Dataset, transform: Transform, emit: Emit) -> Recipe:
    """The recipe with anchors that fit the training boxes, or the network's whose heads are inherited."""
    layout = DETECTORS[type(student)].anchor_layout
    if layout is None:
        return recipe
    if student.weights == "COCO_V1":
        base = anchors.BASES[0]
        emit(Note(code="anchors", message=f"anchors from {base} px, as COCO_V1 was trained with", data={"base": base}))
        return recipe.but(anchor_sizes=layout.sizes(base))
    for begun_from in (student.inherit, student.weights):  # regression heads were trained for their anchors
        if not isinstance(begun_from, FromPath):
            continue
        source = weights.read_recipe(Path(begun_from.path))
        if type(source.detector) is type(student):
            sizes = source.anchor_sizes or layout.sizes(anchors.BASES[0])
            message = f"anchors from {sizes[0][0]} px, as in the network that it begins from"
            emit(Note(code="anchors", message=message, data={"anchor_sizes": sizes}))
            return recipe.but(anchor_sizes=sizes, anchor_ratios=source.anchor_ratios)
    recalls = anchors.fit(layout, train.images, transform)
    base = anchors.best_base(recalls)
    told = ", ".join(f"{size}: {100 * share:.1f} %" for size, share in recalls.items())
    message = f"anchors from {base} px; share of training boxes that an anchor covers with IoU 0.5, by size: {told}"
    emit(Note(code="anchors", message=message, data={"base": base, "recall": recalls}))
    return recipe.but(anchor_sizes=layout.sizes(base))


def pretrained_start(
    source: pretrained.Source, student: Detector, emit: Emit, check_stop: Callable[[], None]
) -> dict[str, str]:
    """Pretrained weights into the student; what the manifest keeps of them."""
    loaded = pretrained.load(student, source, check_stop)
    message = (
        f"{source.name} (SHA-256 {loaded.sha256}): {len(loaded.copied)} tensors copied, "
        f"{len(loaded.afresh)} start afresh: {weights.some(loaded.afresh) or 'none'}"
    )
    data = {"weights": source.name, "file": source.file, "sha256": loaded.sha256, "afresh": loaded.afresh}
    emit(Note(code="pretrained", message=message, data=data))
    return {"weights": source.name, "file": source.file, "sha256": loaded.sha256}


def pair_up(spec: JobSpec, teacher: Teacher, emit: Emit) -> None:
    """Refuse a pair without a common level; say which levels are left out of a pair that lacks some."""
    spec.refuse_pair(teacher.detector.recipe.detector)
    left_out = {name: stride for name, stride in spec.student.levels().items() if name not in teacher.shared}
    if left_out:
        message = (
            f"levels are matched by stride: {', '.join(teacher.shared)} are distilled; "
            f"the teacher has none for {', '.join(f'{name} (stride {s})' for name, s in left_out.items())}"
        )
        data = {"distilled": list(teacher.shared), "left_out": list(left_out)}
        emit(Note(code="levels_left_out", message=message, data=data, level="warning"))


def inherit_from(spec: JobSpec, student: Detector, emit: Emit) -> str:
    assert isinstance(spec.student.inherit, FromPath)
    folder, classes = Path(spec.student.inherit.path), student.recipe.classes
    detector = weights.load_detector(folder)
    spec.refuse_inherit(detector.recipe.detector)
    if detector.recipe.classes != classes:  # the head's rows are classes, by place
        message = f"inherits from a model of classes {detector.recipe.classes}, the data set has {classes}"
        raise SpecError(message, "/student/inherit")
    copied, kept = weights.inherit(student, detector)
    message = f"copied {len(copied)} neck and head tensors; {len(kept)} of another shape start afresh"
    emit(Note(code="inherited", message=message, data={"copied": copied, "kept": kept}))
    return digest_of_file(folder / weights.WEIGHTS)


def load_teacher(spec: JobSpec, student: Detector, machine: Machine) -> tuple[Teacher, str]:
    assert isinstance(spec.teacher, TeacherFromPath)
    folder = Path(spec.teacher.path)
    detector = weights.load_detector(folder)
    check_classes(detector.recipe.classes, student.recipe.classes)
    return Teacher(detector.to(machine.device), student.recipe), digest_of_file(folder / weights.WEIGHTS)


def examine(
    teacher: Teacher,
    spec: JobSpec,
    val: Dataset,
    transform: Transform,
    machine: Machine,
    emit: Emit,
    check_stop: Callable[[], None],
    ranks: Ranks,
    known: Known,
    about: Question,
) -> None:
    """The teacher is checked before it teaches, unless an earlier training did on the same images."""
    assert spec.teacher is not None
    emit(Phase(phase="checking_teacher"))
    images = evenly_spaced(val.images, CHECK_IMAGES)
    question = about | {"check": [content_of(images, val.root), val.classes]} if known.folder else {}
    answer = ranks.of_first(lambda: known.answer(question))
    if answer is not None:
        found = Examined.from_json(answer)
    else:
        found = check_teacher(
            teacher,
            val,
            transform,
            batch_size=spec.schedule.batch_size,
            device=machine.device,
            check_stop=check_stop,
            ranks=ranks,
        )
        if ranks.first:
            known.keep(question, dataclasses.asdict(found))
    own = "; it was trained at min_size {}, max_size {}".format(*found.own_size) if found.advice else ""
    message, cached = as_known(f"{found}{own}", known=answer is not None)
    emit(Note(code="teacher_checked", message=message, data=found.data | cached))
    refuse_unfit(found, allow_unfit=spec.teacher.allow_unfit)


def measure(
    teacher: Teacher,
    spec: JobSpec,
    train: Dataset,
    transform: Transform,
    machine: Machine,
    emit: Emit,
    check_stop: Callable[[], None],
    known: Known = NOTHING_KNOWN,
    about: Question | None = None,
) -> Calibration:
    """The calibration, or what an earlier training made of the same images and the same count of boxes."""
    emit(Phase(phase="calibrating"))
    images = evenly_spaced(train.images, CALIBRATION_IMAGES)
    counts = [len(train), box_count(train.images)]
    question = (about or {}) | {"calibration": [content_of(images, train.root), counts]} if known.folder else {}
    answer = known.answer(question)
    if answer is not None:
        calibration = Calibration(**answer)
    else:
        calibration = calibrate(
            teacher, train, transform, batch_size=spec.schedule.batch_size, device=machine.device, check_stop=check_stop
        )
        known.keep(question, dataclasses.asdict(calibration))
    scales = ", ".join(f"{level} {rms:.2f}" for level, rms in calibration.teacher_rms.items())
    message = f"RMS of the teacher's maps: {scales}; {calibration.boxes_per_image:.1f} boxes per image"
    message, cached = as_known(message, known=answer is not None)
    emit(Note(code="calibration", message=message, data=dataclasses.asdict(calibration) | cached))
    return calibration


def as_known(message: str, *, known: bool) -> tuple[str, dict[str, Any]]:
    """The message, and what is added to its data, where an earlier training has found it out."""
    return (f"{message} (as an earlier training on this host found)", {"cached": True}) if known else (message, {})


def evaluation_due(state: State, epoch: int, spec: JobSpec) -> bool:
    last = epoch == spec.schedule.epochs
    return state.evaluated_step < state.step and (last or epoch % spec.schedule.evaluate_every == 0)


def count(state: State, rule: EarlyStop) -> None:
    """Whether the evaluation just made was an improvement. No AP at all (no box to be found) is none."""
    ap = state.scores["ap"]
    if ap > state.counted_ap + (rule.min_delta if state.counted_ap >= 0 else 0.0):
        state.counted_ap, state.stale = ap, 0
    else:
        state.stale += 1


def stale(state: State, rule: EarlyStop | None) -> bool:
    return rule is not None and state.stale >= rule.patience


def score(parts: Parts, detector: Detector, dataset: Dataset, check_stop: Callable[[], None]) -> dict[str, float]:
    parts.ranks.share_buffers(detector.module)
    return evaluate(
        detector,
        dataset,
        parts.transform,
        batch_size=parts.spec.schedule.batch_size,
        device=parts.machine.device,
        check_stop=check_stop,
        ranks=parts.ranks,
    )


def tell_undecodable(parts: Parts, emit: Emit) -> None:
    """One note an image that was left out since the last look, with how many of its split are by now."""
    for dataset in filter(None, (parts.train, parts.val, parts.test)):
        for image in dataset.undecodable():
            count = len(dataset.broken)
            instead = "another one stands in for it" if dataset.split == "train" else "it is not scored"
            message = f"{image.file} in {dataset.split}: {image.reason}; {instead}"
            data = {"file": image.file, "split": dataset.split, "count": count}
            emit(Note(code="image_undecodable", message=message, data=data, level="warning"))


def finish(
    parts: Parts,
    shown: Detector,
    state: State,
    best: dict[str, Tensor] | None,
    out: Path,
    emit: Emit,
    check_stop: Callable[[], None],
    epoch: int,
    stopped: bool = False,
) -> None:
    """Score the test images, write the result, say so. The last weights, or their average, are the result; nothing is
    selected. stopped: someone asked for an early finish, and `shown` holds the best."""
    metrics = {"val": state.scores}
    if parts.test is not None:
        emit(Phase(phase="testing"))
        metrics["test"] = score(parts, shown, parts.test, check_stop)
        tell_undecodable(parts, emit)
        emit(Evaluated(step=state.step, epoch=epoch, split="test", values=dict(metrics["test"])))
    if not parts.ranks.first:
        return
    emit(Phase(phase="exporting"))
    tensors = shown.module.state_dict()
    weights_digest = checkpoint.digest_of_tensors(tensors)
    machine = parts.machine
    manifest = {
        "format": "fgd-manifest/1",
        **parts.identity,
        "calibration": dataclasses.asdict(parts.calibration) if parts.calibration else None,
        "metrics": {name: {k: finite(v) for k, v in values.items()} for name, values in metrics.items()},
        "best": {"step": state.best_step, "val_ap": finite(state.best_ap)},
        "steps": state.step,
        "weights": told_weights(parts.spec.schedule, state, stopped),
        "ended_early": epoch < parts.spec.schedule.epochs,
        "stopped_by_request": stopped,
        "skipped_steps": state.skipped,
        "weights_digest": weights_digest,
        "parameters": sum(p.numel() for p in parts.student.module.parameters()),
        "machine": {"device": machine.device_name, "threads": machine.threads, "precision": machine.precision}
        | ({"devices": parts.ranks.size} if parts.ranks.size > 1 else {}),
        "versions": device.versions(),
    }
    files = weights.export(out / "result", shown, manifest, best if state.best_step != state.step else None)
    emit(Finished(step=state.step, folder=str(out / "result"), files=files, weights_digest=weights_digest))


def told_weights(schedule: Schedule, state: State, stopped: bool) -> str:
    what = "average of the steps' weights (ema)" if schedule.ema else "weights"
    if stopped:
        return f"{what} of the best evaluation, step {state.best_step}; the training was asked to finish early"
    return what if schedule.ema else "of the last step"


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Meter:
    """Running means: a report about every second, and one of each whole epoch."""

    def __init__(
        self, state: State, emit: Emit, images_per_step: int, gauge: Gauge, cache: TeacherCache | None = None
    ) -> None:
        self.state, self.emit, self.images_per_step, self.gauge = state, emit, images_per_step, gauge
        self.cache = cache
        self.window: dict[str, float] = {}
        self.steps = 0
        self.waited_s = 0.0
        self.since, self.busy_since = time.monotonic(), busy_s()
        self.rate, self.epoch = 0.0, 0
        self.stepping_s, self.saving_s, self.saves = 0.0, 0.0, 0
        self.evaluating_s = 0.0

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """What was not reported yet is, for whoever goes on from the checkpoint does not know these steps."""
        if self.steps:
            self.report(last_of_epoch=False)
        began = time.monotonic()
        with self.pause():
            yield
        self.saving_s += time.monotonic() - began
        self.saves += 1

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        began = time.monotonic()
        with self.pause():
            yield
        self.evaluating_s += time.monotonic() - began

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent on evaluating and saving is not the steps'."""
        began, busy_before = time.monotonic(), busy_s()
        yield
        self.since += time.monotonic() - began
        self.busy_since += busy_s() - busy_before

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; counts how long each was waited for."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.waited_s += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, float], rate: float, epoch: int, *, last_of_epoch: bool) -> None:
        """No losses: the step was skipped, and is in no mean."""
        values = named(losses) if losses else {}
        for sums in (self.window, self.state.sums):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        self.steps += bool(losses)
        self.state.summed_steps += bool(losses)
        self.rate, self.epoch = rate, epoch
        if time.monotonic() - self.since >= REPORT_S or last_of_epoch:
            self.report(last_of_epoch)

    def report(self, last_of_epoch: bool) -> None:
        elapsed = time.monotonic() - self.since
        self.stepping_s += elapsed
        means = {name: total / self.steps for name, total in self.window.items()}
        speed = self.steps * self.images_per_step / elapsed
        means |= {"lr": self.rate, "images_per_s": speed, "checkpoint/share": self.share()} | self.device(elapsed)
        means["evaluate/share"] = self.evaluating_share()
        if self.cache is not None:
            means |= self.cache.figures()
        if last_of_epoch:
            count = self.state.summed_steps
            means |= {f"epoch/{name}": total / count for name, total in self.state.sums.items()}
            self.state.sums, self.state.summed_steps = {}, 0
        if self.state.skipped:
            means["skipped_steps"] = self.state.skipped
        self.emit(Stepped(step=self.state.step, epoch=self.epoch, values=dict(means)))
        self.window, self.steps, self.waited_s = {}, 0, 0.0
        self.since, self.busy_since = time.monotonic(), busy_s()

    def share(self) -> float:
        """Of the time of steps and checkpoints, what the checkpoints took."""
        return self.saving_s / (self.stepping_s + self.saving_s) if self.saving_s else 0.0

    def evaluating_share(self) -> float:
        """Of the time of steps, checkpoints and evaluations, what the evaluations took."""
        whole_s = self.stepping_s + self.saving_s + self.evaluating_s
        return self.evaluating_s / whole_s if self.evaluating_s else 0.0

    def evaluation_cost(self) -> Note:
        share = self.evaluating_share()
        message = f"evaluations took {self.evaluating_s:.1f} s, {100 * share:.1f} % of the training time"
        return Note(code="evaluation_cost", message=message, data={"seconds": self.evaluating_s, "share": share})

    def cost(self) -> Note:
        """Told as an event and not in the manifest, whose bytes are the same however fast the disk was."""
        message = (
            f"{self.saves} checkpoints took {self.saving_s:.1f} s, {100 * self.share():.1f} % of the training time"
        )
        data = {"checkpoints": self.saves, "seconds": self.saving_s, "share": self.share()}
        return Note(code="checkpoint_cost", message=message, data=data)

    def device(self, elapsed_s: float) -> dict[str, float]:
        """What device and data did in this window; memory since the start."""
        values = {
            "device/memory_peak_mb": self.gauge.memory_peak_mb(),
            "device/utilisation": self.gauge.utilisation(busy_s() - self.busy_since, elapsed_s),
            "data/wait_share": self.waited_s / elapsed_s,
        }
        return {name: value for name, value in values.items() if value is not None}


def named(losses: dict[str, float]) -> dict[str, float]:
    """loss/total, loss/detection and its parts, each method's weighted terms, and their share of the detection loss."""
    detection = sum(value for name, value in losses.items() if name.startswith("detection/"))
    shares = {
        f"share/{name}": value / detection if detection else math.inf
        for name, value in losses.items()
        if not name.startswith("detection/")
    }
    values = {f"loss/{name}": value for name, value in losses.items()}
    return {"loss/total": sum(losses.values()), "loss/detection": detection} | values | shares


def alive(stop: Callable[[], bool], emit: Emit) -> Callable[[], None]:
    """Called between batches of whatever takes long: raises Stopped if a stop was asked, and now and then says that
    work goes on, so that a long evaluation is not taken for a hang."""
    said_at = time.monotonic()

    def check() -> None:
        nonlocal said_at
        if stop():
            raise Stopped("asked to stop")
        if time.monotonic() - said_at > ALIVE_S:
            emit(Alive())
            said_at = time.monotonic()

    return check


def everything_of(
    distill: Distill, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None, average: Average | None
) -> dict[str, Any]:
    """What a checkpoint holds."""
    contents = {"model": distill.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
    return contents | ({"average": average.state_dict()} if average is not None else {})


def checkpoint_digest(spec: JobSpec, identity: dict[str, Any], *, by_batches: bool = False) -> str:
    """What a checkpoint must agree with. Defaults are left out: a later version's new field is no other spec.

    by_batches: as versions before `on_out_of_memory` told it, to which four batches of 2 were no step of 8.
    """
    lean = without_defaults(spec, leave_out={"name", "teacher", "dataset", "resources"})
    lean["student"] = student_alone(lean["student"])
    if not by_batches and (schedule := steps_alone(lean.pop("schedule", {}), spec.schedule)):
        lean["schedule"] = schedule
    return digest_of_json({**identity, "spec": lean})


def steps_alone(lean: dict[str, Any], schedule: Schedule) -> dict[str, Any]:
    """With the images of a step, however many batches it takes: a job that ran out of memory goes on in smaller ones.
    As if unsaid where they are as many as by default."""
    images = schedule.batch_size * schedule.accumulate
    rest = {name: value for name, value in lean.items() if name not in ("batch_size", "accumulate")}
    return rest if images == type(schedule).model_fields["batch_size"].default else rest | {"batch_size": images}


def without_defaults(spec: Spec, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The fields that are not at their defaults, and each part's `kind`: without it two schedules would look alike."""

    def lean(value: object) -> object:
        if isinstance(value, Spec):
            return without_defaults(value)
        return [lean(each) for each in value] if isinstance(value, tuple) else value

    fields = type(spec).model_fields
    told = {name: value for name, value in spec if name == "kind" or value != fields[name].default}
    return {name: lean(value) for name, value in told.items() if name not in leave_out}


def student_alone(student: dict[str, Any]) -> dict[str, Any]:
    """Without the folders that it begins from, whose digests are told apart. `kind` and `norm` as if unsaid in what the
    first version's checkpoints knew."""
    unsaid = {"kind": "fcos", "norm": "batch"}
    named = {key: value for key, value in student.items() if key != "inherit" and unsaid.get(key) != value}
    return {key: value for key, value in named.items() if key != "weights" or isinstance(value, str)}


def digest_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
