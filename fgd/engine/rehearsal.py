"""A few real steps of a job, to see what the whole of it will cost. Nothing of it is kept.

The networks, data, sizes, methods and optimiser are the job's own, built and stepped by the loop's own functions.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from fgd.data.loader import CACHE_BYTES, Dataset, train_batches
from fgd.detector_specs import OF_THE_HEAD
from fgd.engine import checkpoint, device, prepare, saver, step, weights
from fgd.engine.average import Average
from fgd.engine.checkpoint import KEEP_CHECKPOINTS, TrainingState
from fgd.engine.device_metrics import MIB, DeviceMetrics
from fgd.engine.distill import Teacher
from fgd.engine.evaluate import evaluate
from fgd.engine.optimise import make_optimizer
from fgd.engine.prepare import Training
from fgd.engine.result import score
from fgd.engine.teacher import CALIBRATION_IMAGES, CHECK_IMAGES
from fgd.events import Emit
from fgd.methods.base import Pair
from fgd.outline import Measurement, TeacherCost, evaluations, whole_steps
from fgd.presets import resolve
from fgd.spec import JobSpec, Schedule
from fgd.types import Batch

WARM_UP = 1
"""Steps at each size that are not timed: the first ones allocate."""
TIMED = 5
"""Steps that are timed, over all sizes; at least one at each."""
MOST_STEPS = 1000
"""More than are ever tried."""
LIMIT_S = 60.0
"""After so long no further step is begun at a size that has been timed once."""
MAX_SIZES = 5
FLIPS = {"none": 1, "horizontal": 2, "vertical": 2, "both": 4}
"""In how many ways an image is shown."""
IMAGES = 16
"""Images that are evaluated, and on which a teacher is calibrated."""


def rehearse(spec: JobSpec, emit: Emit) -> Measurement:
    """Raises FGDError where the job itself would, as far as its first steps show it."""
    began = time.monotonic()
    spec = resolve(spec)
    machine = device.choose(spec.resources, spec.schedule.precision)
    parts, _, _ = prepare.prepare(spec, machine, None, emit, lambda: None, rehearsal_images=IMAGES)
    loading_s = time.monotonic() - began
    optimizer = make_optimizer([parts.distill], spec.schedule.optimizer)
    average = Average(parts.student, spec.schedule.ema) if spec.schedule.ema else None
    parts.distill.train()
    seconds = step_seconds(parts, optimizer, average)
    s_per_step = statistics.fmean(statistics.median(taken) for taken in seconds)
    shown = average.detector if average else parts.student
    s_per_image = evaluation_seconds(parts, lambda few: score(parts, shown, few, lambda: None))
    memory_peak_mb = DeviceMetrics(machine).memory_peak_mb()
    checkpoint_bytes, result_bytes, save_s = written(parts, optimizer, average)

    kept_bytes = (KEEP_CHECKPOINTS + 1) * checkpoint_bytes + result_bytes + detections_bytes(parts)

    schedule, total = spec.schedule, total_steps(parts)
    training_s = total * s_per_step
    start_s = loading_s + sum(starting_seconds(parts, each) for each in parts.teachers.values())
    tested = len(parts.test) if parts.test is not None else 0
    evaluating_s = (evaluations(schedule) * len(parts.val) + tested) * s_per_image
    saving_s = save_s * (evaluations(schedule) + training_s / schedule.checkpoint_s)
    return Measurement(
        device=machine.device_name,
        threads=machine.threads,
        precision=machine.precision,
        student_parameters=parameters(parts.student),
        teacher_parameters=sum(each.parameters for each in parts.teachers.values()) if parts.teachers else None,
        teachers=tuple(teacher_cost(parts, name, each) for name, each in parts.teachers.items()),
        method_parameters=parameters(parts.distill.methods),
        memory_peak_mb=memory_peak_mb,
        cache_mb=sum(cache_bytes(each) for each in (parts.train, parts.val, parts.test) if each is not None) / MIB,
        s_per_step=s_per_step,
        steps=sum(map(len, seconds)),
        s_per_image_evaluated=s_per_image,
        s_to_start=start_s,
        hours=(start_s + training_s + evaluating_s + saving_s) / 3600,
        training_hours=training_s / 3600,
        checkpoint_mb=checkpoint_bytes / MIB,
        result_mb=result_bytes / MIB,
        teacher_cache_mb=teacher_cache_bytes(parts) / MIB,
        # Here and in the store alike: those that are kept, one that is being written, and the result.
        disk_mb=(2 * kept_bytes + teacher_cache_bytes(parts)) / MIB,
    )


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def total_steps(parts: Training) -> int:
    schedule = parts.spec.schedule
    return whole_steps(len(parts.train), schedule.batch_size, schedule.accumulate) * schedule.epochs


def step_seconds(parts: Training, optimizer: torch.optim.Optimizer, average: Average | None) -> list[list[float]]:
    """Seconds of the timed steps, a list for each size. The last size is the largest: the memory's peak is its."""
    until = time.monotonic() + LIMIT_S
    schedule = parts.spec.schedule
    sides = some_sides(schedule)
    each = -(-TIMED // len(sides))
    seconds: list[list[float]] = []
    number, total = 0, total_steps(parts)
    for side in sides:
        taken: list[float] = []
        batches = endless(parts, schedule.but(scales=(side,)))
        per_epoch = total // schedule.epochs
        bare, bare_of_step = prepare.unlabelled_of(
            parts, schedule.but(scales=(side,)), range(number, MOST_STEPS), per_epoch
        )
        try:
            while len(taken) < WARM_UP + each and (len(taken) <= WARM_UP or time.monotonic() < until):
                began = time.monotonic()
                of_step = itertools.islice(batches, schedule.accumulate)
                unlabelled = itertools.islice(bare, bare_of_step)
                step.step(parts, optimizer, of_step, number % total, per_epoch, unlabelled)
                number += 1
                if average is not None:
                    average.update(parts.student, number)
                taken.append(time.monotonic() - began)
        finally:
            batches.close()  # type: ignore[attr-defined]  # a generator: ends its reader thread
            bare.close()  # type: ignore[attr-defined]
        seconds.append(taken[WARM_UP:])
    return seconds


def some_sides(schedule: Schedule) -> tuple[int, ...]:
    """The sizes to time, rising: all of them, or some evenly spaced ones with the largest."""
    sides = schedule.scales or (schedule.min_size,)
    if len(sides) <= MAX_SIZES:
        return sides
    return tuple(sides[round(n * (len(sides) - 1) / (MAX_SIZES - 1))] for n in range(MAX_SIZES))


def endless(parts: Training, schedule: Schedule) -> Iterator[Batch]:
    """The job's batches, one epoch after another."""
    shard = (0, parts.spec.resources.devices)  # what one device does; how long they wait for each other is not known
    for epoch in itertools.count():
        yield from train_batches(parts.train, parts.transform, schedule, parts.spec.seed, epoch, shard=shard)


def evaluation_seconds(parts: Training, evaluate: Callable[[Dataset], object]) -> float:
    """Seconds for each image; the first call warms up."""
    few = parts.val.with_images(parts.val.images[:IMAGES], parts.val.classes)
    evaluate(few)
    began = time.monotonic()
    evaluate(few)
    return (time.monotonic() - began) / len(few)


@torch.no_grad()
def teacher_cost(parts: Training, name: str, teacher: Teacher) -> TeacherCost:
    """Of one batch at the job's own size, times those of a step."""
    schedule, detector = parts.spec.schedule, teacher.detector
    batches = endless(parts, schedule.but(scales=()))
    try:
        batch = device.to_device(next(batches), parts.machine.device)
    finally:
        batches.close()  # type: ignore[attr-defined]  # a generator: ends its reader thread
    maps = teacher.features(batch)
    trunk = sum(each.numel() for part in detector.trunk_and_neck for each in part.parameters())
    bytes_of_trunk = sum(each.nbytes for part in detector.trunk_and_neck for each in part.parameters())
    bytes_of_all = sum(each.nbytes for each in detector.parameters())
    runs_head = bool(teacher.needs & OF_THE_HEAD)
    return TeacherCost(
        teacher=name or None,
        parameters=teacher.parameters,
        weights_mb=bytes_of_all / MIB,
        head_weights_mb=(bytes_of_all - bytes_of_trunk) / MIB,
        head_parameters=sum(each.numel() for each in detector.parameters()) - trunk,
        maps_mb=sum(each.nbytes for each in maps.values()) / MIB,
        trunk_s=schedule.accumulate * seconds_of(parts, lambda: teacher.features(batch)),
        head_s=schedule.accumulate * seconds_of(parts, lambda: teacher.predictions(maps, batch)) if runs_head else None,
    )


def seconds_of(parts: Training, work: Callable[[], object]) -> float:
    """Median of three."""
    taken = []
    for _ in range(3):
        began = time.monotonic()
        work()
        if parts.machine.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def starting_seconds(parts: Training, teacher: Teacher) -> float:
    """What checking and calibrating a teacher will take."""

    def score(few: Dataset) -> None:
        evaluate(
            teacher.detector,
            few,
            parts.transform,
            batch_size=parts.spec.schedule.batch_size,
            device=parts.machine.device,
            features=teacher.features,
        )

    images = min(CHECK_IMAGES, len(parts.val)) + min(CALIBRATION_IMAGES, len(parts.train))
    return images * evaluation_seconds(parts, score)


def written(parts: Training, optimizer: torch.optim.Optimizer, average: Average | None) -> tuple[int, int, float]:
    """Bytes of a checkpoint and of a result, and the seconds that saving takes: written for real, then deleted."""
    tensors = {name: value.clone() for name, value in parts.student.module.state_dict().items()}  # as `best` is
    contents = saver.contents_of(parts.distill, optimizer, tensors, average)
    with tempfile.TemporaryDirectory(prefix="fgd-plan-") as folder:
        file = Path(folder) / "checkpoint.pt"
        began = time.monotonic()
        checkpoint.save(file, contents, TrainingState(), parts.calibrations, parts.digest)
        save_s = time.monotonic() - began
        result = Path(folder) / "result"
        manifest = {
            **parts.identity,
            **checkpoint.told_calibrations(parts.calibrations),
        }
        weights.export(result, parts.student, manifest, tensors)
        return file.stat().st_size, sum(each.stat().st_size for each in result.iterdir()), save_s


def detections_bytes(parts: Training) -> int:
    """Of detections.npz at most: before it is compressed."""
    images = [image for each in (parts.val, parts.test) if each is not None for image in each.images]
    found = len(images) * parts.student.recipe.detections_per_img
    return 28 * found + 41 * sum(len(image.boxes) for image in images) + sum(16 + len(image.name) for image in images)


def cache_bytes(dataset: Dataset) -> int:
    """Of decoded pixels that the loader keeps once it has read all images."""
    return min(CACHE_BYTES, sum(3 * image.width * image.height for image in dataset.images))


def teacher_cache_bytes(parts: Training) -> int:
    """What `resources.teacher_cache_gib` will fill, at most."""
    asked, teacher = parts.spec.resources, parts.teacher if len(parts.teachers) == 1 else None
    if asked.teacher_cache_gib is None or teacher is None:
        return 0
    most = int(asked.teacher_cache_gib * 2**30)
    sizes = {parts.transform.padded_size_of(image.height, image.width) for image in parts.train.images}
    if len(sizes) > 1:  # batches decide how each is padded
        return most
    ((height, width),) = sizes
    pair = Pair.of(parts.spec.student, teacher.detector.recipe.detector)
    values = sum(
        -(-height // level.stride) * -(-width // level.stride) * level.teacher_channels
        for level in pair.levels.values()
    )
    entry = values * teacher.dtype.itemsize
    return min(most, entry * len(parts.train) * FLIPS[parts.spec.schedule.flip] * asked.devices)
