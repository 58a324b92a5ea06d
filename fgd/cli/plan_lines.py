"""A plan as lines for a person. Knows no HTTP and no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fgd.outline import Measurement, Outline, PlannedTeacher
from fgd.text.cut import some


def outline_lines(outline: Outline) -> Iterator[str]:
    images = ", ".join(f"{name} {count}" for name, count in outline.images.items())
    left_over = f", {outline.left_over} left over" if outline.left_over else ""
    yield f"images     {images}"
    yield (
        f"steps      {outline.total_steps}: {outline.steps_per_epoch} per epoch, "
        f"of {outline.images_per_step} images each{left_over}"
    )
    if outline.unlabelled_per_step:
        yield f"unlabelled {outline.unlabelled_per_step} images more in each step, with boxes that the teacher finds"
    yield f"evaluated  {outline.evaluations} times"
    yield f"sizes      {', '.join(f'{size.min_size} to {size.max_size}' for size in outline.sizes)} px"
    for level in outline.levels:
        teacher = f", teacher {level.teacher_channels}" if level.teacher_channels is not None else ""
        yield f"level      {level.name}: stride {level.stride}, student {level.student_channels} channels{teacher}"
    for planned in outline.teachers:
        yield f"teacher    {teacher_line(planned)}"
    alike: dict[tuple[str, str, int, int], list[str]] = {}
    for each in outline.adapters:
        alike.setdefault((each.method, each.layer, each.from_channels, each.to_channels), []).append(each.level)
    for (method, layer, from_channels, to_channels), levels in alike.items():
        change = f"{from_channels} -> {to_channels} channels"
        yield f"adapters   {method}: {layer} on {', '.join(levels)}, {change}"
    for warned in outline.warnings:
        yield f"warning    {warned.pointer}: {warned.message}"


def teacher_line(teacher: PlannedTeacher) -> str:
    name = f"{teacher.teacher}, " if teacher.teacher else ""
    runs = f"trunk, neck, and head for {', '.join(teacher.head_for)}" if teacher.head_for else "trunk and neck"
    classes = f"; teaches {some(teacher.classes)}" if teacher.classes else ""
    return f"{name}{teacher.network}: {', '.join(teacher.methods)}; {runs}{classes}"


def strength_lines(body: Mapping[str, Any]) -> Iterator[str]:
    """How strong each method of a spec will be; nothing of a spec that only the service knows, as with its plug-ins."""
    from pydantic import ValidationError

    from fgd.presets import complete
    from fgd.spec import SubmitJob

    try:
        spec = SubmitJob.model_validate(body)
        methods = [complete(method, type(spec.student)) for method in spec.methods]
    except (ValidationError, KeyError):
        return
    for method in methods:
        if method.rho:
            told = (
                f"measured after the warm-up, so that its gradient is {method.rho:g} times the detection loss's (rho)"
            )
        else:
            told = "its weights, as they are"
        yield f"strength   {method.kind}: {told}"


def measured_lines(measured: Measurement) -> Iterator[str]:
    teacher = f", teacher {millions(measured.teacher_parameters)}" if measured.teacher_parameters is not None else ""
    threads = f"{measured.threads} thread{'s' * (measured.threads != 1)}"
    yield f"measured   on {measured.device}, {threads}, {measured.precision}"
    yield f"parameters student {millions(measured.student_parameters)}{teacher}"
    for each in measured.teachers:
        head = f"head {each.head_s:.3f} s" if each.head_s is not None else "head does not run"
        name = f"{each.teacher}, " if each.teacher else ""
        yield (
            f"teacher    {name}{millions(each.parameters)} ({millions(each.head_parameters)} of it the head), "
            f"{each.weights_mb:.0f} MiB and {each.maps_mb:.0f} MiB of maps; trunk {each.trunk_s:.3f} s per step, {head}"
        )
    yield f"memory     {measured.memory_peak_mb:.0f} MiB at peak, plus {measured.cache_mb:.0f} MiB of decoded images"
    yield f"speed      {measured.s_per_step:.3f} s per step, {measured.s_per_image_evaluated:.3f} s per evaluated image"
    yield f"time       {hours(measured.hours)}, {hours(measured.training_hours)} of it training"
    cache = f" and {measured.teacher_cache_mb:.0f} MiB of the teacher's maps" if measured.teacher_cache_mb else ""
    yield f"disk       {measured.disk_mb:.0f} MiB at most, with checkpoints of {measured.checkpoint_mb:.0f} MiB{cache}"


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M"


def hours(hours: float) -> str:
    minutes = hours * 60
    return f"{hours:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 2 else f"{minutes * 60:.0f} s"
