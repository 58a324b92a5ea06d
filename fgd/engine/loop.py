"""A training from spec to result, in the order it happens: evaluate, save, stop?, step, report.

Knows nothing of processes, HTTP or databases: it is given a spec of paths, a folder, a place to emit events and a
question to ask ("was a stop asked?").
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fgd.data.loader import train_batches
from fgd.engine import device, distributed
from fgd.engine.alive import alive
from fgd.engine.average import Average
from fgd.engine.balance import warm_up
from fgd.engine.checkpoint import TrainingState
from fgd.engine.device_metrics import DeviceMetrics
from fgd.engine.focus import FocusWriter
from fgd.engine.laps import Laps
from fgd.engine.meter import Meter
from fgd.engine.optimise import make_optimizer
from fgd.engine.prepare import balanced, cache_of, prepare, unlabelled_of
from fgd.engine.result import Kept, Measure, choose_best, finish, not_measured, score, tell_undecodable
from fgd.engine.running_statistics import RunningStatistics
from fgd.engine.saver import Saver
from fgd.engine.step import all_finite, gives_up, skip, step
from fgd.errors import Diverged, Stopped
from fgd.events import Emit, Evaluated, Note, Phase, Started
from fgd.outline import unlabelled_per_step, whole_steps
from fgd.presets import resolve
from fgd.process.finish_file import asked_to_finish, forget
from fgd.spec import EarlyStop, JobSpec
from fgd.spec_fields import FromPath
from fgd.types import Batch


def run(
    spec: JobSpec,
    out: Path,
    *,
    resume: Path | None,
    emit: Emit,
    stop: Callable[[], bool],
    measure: Measure = not_measured,
    dataset_name: str | None = None,
) -> None:
    """Train, and leave the result in `out`/result. Raises FGDError; Stopped after a checkpoint when stop was asked.

    measure: what tells the latency of the student, whose export is not the engine's business. dataset_name: for people;
    None: that of its folder."""
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
    shown = average.detector if average else student  # what is evaluated, and becomes the result
    per_epoch = whole_steps(len(parts.train), schedule.batch_size, schedule.accumulate)
    total = per_epoch * schedule.epochs
    per_step = schedule.batch_size * schedule.accumulate
    seen = per_step + unlabelled_per_step(spec)
    meter = Meter(state, emit, seen, DeviceMetrics(machine), parts.cache, parts.found)
    saver = Saver(parts, state, optimizer, average, meter, out, emit)
    if contents is not None:
        assert resume is not None
        saver.restore(contents, resume)
        contents = None  # or its copies would take room as long as the training
    if left_over := len(parts.train) - per_epoch * per_step:
        message = f"{left_over} of {len(parts.train)} images are left out of each epoch, different ones each time"
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

    batches: Iterator[Batch] | None = None
    bare, bare_of_step = unlabelled_of(parts, schedule, range(state.step, total), per_epoch)
    statistics = RunningStatistics(distill)
    focus = FocusWriter(parts, out, emit, per_epoch, check_stop)
    early, kept = False, None
    laps.end("optimiser")
    emit(laps.note())
    emit(Phase(phase="training"))
    distill.train()
    try:
        if state.step == 0:
            with meter.pause():
                focus.show(0, 0)
        while True:
            epoch, done_in_epoch = divmod(state.step, per_epoch)
            if done_in_epoch == 0 and state.step > 0 and evaluation_due(state, epoch, spec):
                emit(Phase(phase="evaluating"))
                with meter.evaluating():
                    evaluation = score(parts, shown, parts.val, check_stop)
                state.scores, kept = evaluation.scores, Kept(state.step, evaluation.detections)
                tell_undecodable(parts, emit)
                state.evaluated_step = state.step
                emit(Evaluated(step=state.step, epoch=epoch, split="val", values=dict(state.scores)))
                if state.scores["ap"] > state.best_ap:
                    state.best_ap, state.best_step = state.scores["ap"], state.step
                    state.best_scores = dict(state.scores)
                    saver.remember_best()
                if schedule.early_stop is not None:
                    count(state, schedule.early_stop)
                saver.save()
                with meter.evaluating():
                    focus.show(state.step, epoch)
                emit(Phase(phase="training"))
            if saver.due():
                saver.save()
            if ranks.any(stop()):
                raise Stopped("asked to stop")
            if state.step == total or stale(state, schedule.early_stop):
                break
            if early := state.step > 0 and ranks.any(asked_to_finish(out)):
                saver.save()
                break
            if parts.balanced_methods and not parts.balance and state.step >= warm_up(per_epoch, schedule.epochs):
                state.balance = ranks.of_first(partial(balanced, parts, emit, check_stop))
                parts = dataclasses.replace(parts, balance=state.balance)
                emit(Phase(phase="training"))
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
            unlabelled = meter.waiting(itertools.islice(bare, bare_of_step))
            statistics.remember()
            try:
                losses, rate = step(parts, optimizer, of_step, state.step, per_epoch, unlabelled)
            except Diverged as diverged:  # nothing was applied; only running statistics took harm
                statistics.restore()
                if gives_up(state, schedule):
                    if all_finite(distill):
                        saver.save()
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
        saver.save()
        with contextlib.suppress(RuntimeError):  # one that stopped elsewhere, and is gone
            ranks.wait()  # a rank that ends early has the others killed after a while, also in the middle of a save
            distributed.leave()  # a process that ends without it may abort, and that is not what a stop looks like
        raise
    finally:
        if batches is not None:
            batches.close()  # type: ignore[attr-defined]  # a generator: ends its reader thread
        bare.close()  # type: ignore[attr-defined]
        if parts.cache is not None:  # before the result needs the room
            parts.cache.close()
    if early:
        epoch = state.step // per_epoch
        kept = choose_best(parts, shown, state, saver.best, total, emit, check_stop, epoch, kept)
        saver.best = None
    elif state.step < total:
        message = f"{state.stale} evaluations in a row without improvement: ended after epoch {state.step // per_epoch}"
        emit(Note(code="early_stopped", message=message, data={"step": state.step, "total_steps": total}))
    emit(meter.cost())
    emit(meter.evaluation_cost())
    if parts.cache is not None:
        emit(parts.cache.cost())
    epoch = state.step // per_epoch
    name = dataset_name or name_of_folder(spec)
    finish(parts, shown, state, saver.best, out, emit, check_stop, measure, epoch, kept, name, stopped=early)
    forget(out)
    distributed.leave()


def name_of_folder(spec: JobSpec) -> str:
    assert isinstance(spec.dataset, FromPath)
    return Path(spec.dataset.path).resolve().name


def evaluation_due(state: TrainingState, epoch: int, spec: JobSpec) -> bool:
    last = epoch == spec.schedule.epochs
    return state.evaluated_step < state.step and (last or epoch % spec.schedule.evaluate_every == 0)


def count(state: TrainingState, rule: EarlyStop) -> None:
    """Whether the evaluation just made was an improvement. No AP at all (no box to be found) is none."""
    ap = state.scores["ap"]
    if ap > state.counted_ap + (rule.min_delta if state.counted_ap >= 0 else 0.0):
        state.counted_ap, state.stale = ap, 0
    else:
        state.stale += 1


def stale(state: TrainingState, rule: EarlyStop | None) -> bool:
    return rule is not None and state.stale >= rule.patience
