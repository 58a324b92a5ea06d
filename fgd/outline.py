"""What a job will do, from its spec and the size of its data: sizes, steps, what has no effect. Knows no torch.

`outline` is known at once; `Measured` is what a rehearsal of a few real steps adds (`python -m fgd.plan`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict

from fgd.class_names import shared_labels
from fgd.detector_specs import OF_THE_HEAD, DetectorSpec
from fgd.errors import SpecError
from fgd.method_specs import title
from fgd.recipe import Recipe
from fgd.spec import Cosine, JobSpec, Schedule, Step, teacher_pointer

ONE_CELL = 32
"""Pixels of an image, both ways, of which the map of stride 32 has a single cell."""


class PlanPart(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class PairedLevel(PlanPart):
    """A level of the student's pyramid."""

    name: str
    stride: int
    """Pixels of the padded input."""
    student_channels: int
    teacher_channels: int | None
    """Of `teacher`, or of the only one; null: there is none, or it has no level of that stride. Of several: see
    `teachers`."""


class PlannedTeacher(PlanPart):
    """What a teacher teaches, and how much of it runs."""

    teacher: str | None
    """Its name in `teachers`; null: `teacher`."""
    network: str
    methods: tuple[str, ...]
    head_for: tuple[str, ...]
    """The methods for which it runs its head at each step; (): trunk and neck are all that runs."""
    channels: dict[str, int]
    """Width of each level that it shares with the student, by the student's name."""
    classes: tuple[str, ...]
    """Of the data set's classes those that it knows by name and teaches. (): none, so its maps teach as they are."""


class PlannedAdapter(PlanPart):
    """A layer that a method trains to bring the student's map to the teacher's width; it never enters the student."""

    method: str
    """Its kind, and @ the teacher's name where it has one."""
    level: str
    layer: str
    """"1x1 convolution", or what else the method has; "none" where nothing is needed, as between equal widths."""
    from_channels: int
    to_channels: int


class Size(PlanPart):
    """Pixels, as torchvision means them."""

    min_size: int
    max_size: int


class PlanWarning(PlanPart):
    """Something in the spec that has no effect, or another one than its words say."""

    pointer: str
    """JSON pointer of the field."""
    message: str


class Outline(PlanPart):
    levels: tuple[PairedLevel, ...]
    teachers: tuple[PlannedTeacher, ...] = ()
    adapters: tuple[PlannedAdapter, ...]
    sizes: tuple[Size, ...]
    """Training is at one of these, drawn for each step; evaluation at the spec's own min_size and max_size."""
    images: dict[str, int]
    """Of each split."""
    images_per_step: int
    unlabelled_per_step: int = 0
    """Images without labels, beside those. The teacher runs its head on them."""
    steps_per_epoch: int
    left_over: int
    """Images that no step of an epoch uses; others in each epoch."""
    total_steps: int
    evaluations: int
    """On the validation images; the test images are scored once, at the end."""
    warnings: tuple[PlanWarning, ...]


class TeacherCost(PlanPart):
    """Of one teacher, at each step."""

    teacher: str | None
    """Its name in `teachers`; null: `teacher`."""
    parameters: int
    head_parameters: int
    """Of them those of the head."""
    weights_mb: float
    """MiB of the device's memory."""
    head_weights_mb: float
    """Of them those of the head, which are held whether it runs or not."""
    maps_mb: float
    """MiB of a batch's maps."""
    trunk_s: float
    """Seconds a step of trunk and neck."""
    head_s: float | None
    """Seconds a step of the head; null: no method needs it, so it does not run."""


class Measurement(PlanPart):
    """Of a few real steps and a small evaluation on the job's own data."""

    device: str
    threads: int
    precision: str
    student_parameters: int
    teacher_parameters: int | None
    """Of all teachers."""
    teachers: tuple[TeacherCost, ...] = ()
    method_parameters: int
    """Of adapters and context blocks."""
    memory_peak_mb: float
    """MiB; on a GPU what torch held of its memory, else the resident memory of the process."""
    cache_mb: float
    """MiB of host memory that decoded images take besides, once all have been read."""
    s_per_step: float
    """Median; with several sizes the mean of their medians."""
    steps: int
    """Steps that were timed."""
    s_per_image_evaluated: float
    s_to_start: float
    """Until the first step: loading, checking and calibrating the teacher."""
    hours: float
    """The whole job: starting, training, evaluating, saving. With `early_stop` at most."""
    training_hours: float
    checkpoint_mb: float
    result_mb: float
    teacher_cache_mb: float = 0.0
    """MiB of the worker's disk that `resources.teacher_cache_gib` will fill; what it saves is not in `hours`."""
    disk_mb: float
    """At most, of the worker's disk and the store together: checkpoints, result and the teacher's cache, without the
    data set."""


def outline(
    spec: JobSpec,
    images: Mapping[str, int],
    teachers: Mapping[str, Recipe] = MappingProxyType({}),
    classes: Sequence[str] = (),
) -> Outline:
    """images: number of each split. teachers: by name. classes: of the data set. Raises SpecError if it cannot be
    trained."""
    schedule = spec.schedule
    per_epoch = whole_steps(images.get("train", 0), schedule.batch_size, schedule.accumulate)
    per_step = schedule.batch_size * schedule.accumulate
    for name, recipe in teachers.items():
        spec.refuse_pair(recipe.detector, name)
        spec.refuse_foreign(classes or recipe.classes, recipe.classes, name)
    only = next(iter(teachers.values())) if len(teachers) == 1 else teachers.get("")
    theirs = [name for recipe in teachers.values() for name in recipe.classes]
    refuse_unlabelled(spec, images.get("unlabelled", 0), classes, theirs)
    return Outline(
        levels=levels(spec.student, only.detector if only is not None else None),
        teachers=tuple(planned_teacher(spec, name, recipe, classes) for name, recipe in teachers.items()),
        adapters=tuple(adapters(spec, {name: recipe.detector for name, recipe in teachers.items()})),
        sizes=sizes(schedule),
        images=dict(images),
        images_per_step=per_step,
        unlabelled_per_step=unlabelled_per_step(spec),
        steps_per_epoch=per_epoch,
        left_over=images.get("train", 0) - per_epoch * per_step,
        total_steps=per_epoch * schedule.epochs,
        evaluations=evaluations(schedule),
        warnings=(
            *without_effect(schedule, per_epoch),
            *idle_resources(spec),
            *idle_unlabelled(spec),
            *(unfound_classes(spec, classes, theirs) if theirs else ()),
            *(
                warned
                for name, recipe in teachers.items()
                if classes
                for warned in unlike_classes(classes, recipe.classes, teacher_pointer(name))
            ),
        ),
    )


def whole_steps(images: int, batch_size: int, accumulate: int = 1) -> int:
    """Steps of `accumulate` batches in a pass over `images`. Raises SpecError if there is not even one."""
    if batch_size > images:
        raise SpecError(
            f"batch size {batch_size} is larger than the training set of {images} images; set {images} or less",
            "/schedule/batch_size",
        )
    if batch_size * accumulate > images:
        raise SpecError(
            f"{accumulate} batches of {batch_size} are more than the training set of {images} images; set "
            f"accumulate to {images // batch_size} or less",
            "/schedule/accumulate",
        )
    return images // (batch_size * accumulate)


def levels(student: DetectorSpec, teacher: DetectorSpec | None) -> tuple[PairedLevel, ...]:
    widths = {level.stride: level.channels for level in teacher.levels()} if teacher is not None else {}
    return tuple(
        PairedLevel(
            name=level.name,
            stride=level.stride,
            student_channels=level.channels,
            teacher_channels=widths.get(level.stride),
        )
        for level in student.levels()
    )


def planned_teacher(spec: JobSpec, name: str, recipe: Recipe, classes: Sequence[str]) -> PlannedTeacher:
    methods = spec.methods_of(name)
    shared = [level for level in levels(spec.student, recipe.detector) if level.teacher_channels is not None]
    return PlannedTeacher(
        teacher=name or None,
        network=recipe.detector.title(),
        methods=tuple(method.kind for method in methods),
        head_for=tuple(method.kind for method in methods if method.takes() & OF_THE_HEAD),
        channels={level.name: level.teacher_channels or 0 for level in shared},
        classes=tuple(classes[label - 1] for label in shared_labels(classes, recipe.classes)),
    )


def adapters(spec: JobSpec, teachers: Mapping[str, DetectorSpec]) -> Iterator[PlannedAdapter]:
    """One for each method and each level that it compares, as the method says."""
    for method in spec.methods:
        if (teacher := teachers.get(method.teacher or "")) is None:
            continue
        shared = [level for level in levels(spec.student, teacher) if level.teacher_channels is not None]
        for level in shared[: method.finest()]:
            ours, theirs = level.student_channels, level.teacher_channels or 0
            layer = method.adapter(ours, theirs)
            yield PlannedAdapter(
                method=title(method), level=level.name, layer=layer, from_channels=ours, to_channels=theirs
            )


def sizes(schedule: Schedule) -> tuple[Size, ...]:
    return tuple(
        Size(min_size=side, max_size=scaled_max_size(schedule.min_size, schedule.max_size, side))
        for side in schedule.scales or (schedule.min_size,)
    )


def scaled_max_size(min_size: int, max_size: int, side: int) -> int:
    """The bound of the longer side where the shorter one is `side` instead of `min_size`."""
    return round(max_size * side / min_size)


def evaluations(schedule: Schedule) -> int:
    return -(-schedule.epochs // schedule.evaluate_every)


def unlike_classes(classes: Sequence[str], theirs: Sequence[str], pointer: str) -> Iterator[PlanWarning]:
    """What a teacher of other classes means: which it teaches, and that its fitness is known of these alone."""
    known = len(shared_labels(classes, theirs))
    if known == 0:
        message = "the teacher knows none of the data set's classes by name: its features teach, but its AP is unknown"
        yield PlanWarning(pointer=pointer, message=message)
    elif known < len(classes):
        message = (
            f"the teacher knows {known} of the data set's {len(classes)} classes by name: it teaches these, and its AP "
            "is that of these"
        )
        yield PlanWarning(pointer=pointer, message=message)


def unlabelled_per_step(spec: JobSpec) -> int:
    return spec.unlabelled.per_step(spec.schedule, spec.resources.devices) if spec.unlabelled is not None else 0


def refuse_unlabelled(
    spec: JobSpec, images: int, classes: Sequence[str] = (), teacher_classes: Sequence[str] = ()
) -> None:
    """Raise SpecError for a job that is to learn from unlabelled images, of which there are none, or whose teacher can
    find nothing in them.

    images: of the unlabelled split. classes: of the data set; none: they are not known.
    """
    if spec.unlabelled is None:
        return
    if images == 0:
        raise SpecError(
            "the data set has no unlabelled split: put images into a folder that is called unlabelled and add the data "
            "set again, or leave this out",
            "/unlabelled",
        )
    if classes and teacher_classes and not shared_labels(classes, teacher_classes):
        raise SpecError(
            "the teacher knows none of the data set's classes by name, so it can find no box of them in unlabelled "
            "images; take a teacher that does, or leave this out",
            "/unlabelled",
        )


def unfound_classes(spec: JobSpec, classes: Sequence[str], theirs: Sequence[str]) -> Iterator[PlanWarning]:
    """What pseudo-labels of a teacher that knows some of the classes mean."""
    if spec.unlabelled is None or not spec.unlabelled.pseudo_labels:
        return
    known = shared_labels(classes, theirs)
    if unknown := [name for label, name in enumerate(classes, start=1) if label not in known]:
        message = (
            f"the teacher does not know {', '.join(unknown)}: their objects in unlabelled images are trained as "
            "background"
        )
        yield PlanWarning(pointer="/unlabelled/pseudo_labels", message=message)


def idle_unlabelled(spec: JobSpec) -> Iterator[PlanWarning]:
    chosen = spec.unlabelled
    if chosen is None:
        return
    if not chosen.pseudo_labels and chosen.weight != type(chosen).model_fields["weight"].default:
        yield PlanWarning(pointer="/unlabelled/weight", message="without pseudo_labels it has no effect")
    if chosen.pseudo_labels and chosen.weight == 0:
        message = "its weight is 0: it has no effect"
        yield PlanWarning(pointer="/unlabelled/pseudo_labels", message=message)


def refuse_single_values(spec: JobSpec, squarest: float) -> None:
    """Raise SpecError for a batch that torch would refuse: of one image whose coarsest map has one cell, so that a
    batch norm has one value a channel.

    squarest: longer by shorter side of the training image nearest to a square.
    """
    schedule, crop, devices = spec.schedule, spec.schedule.augment.crop, spec.resources.devices
    of_labelled = schedule.batch_size <= devices
    of_unlabelled = 0 < unlabelled_per_step(spec) < 2 * schedule.accumulate * devices
    if not (of_labelled or of_unlabelled) or not spec.student.batch_norms():
        return
    ratio = max(1.0, squarest / crop.max_aspect_change) if crop is not None and crop.probability else squarest
    for place, size in enumerate(sizes(schedule)):
        if size.min_size > ONE_CELL or min(size.min_size * ratio, size.max_size) >= ONE_CELL + 1:
            continue
        pointer = f"/schedule/scales/{place}" if schedule.scales else "/schedule/batch_size"
        pointer = pointer if devices == 1 else "/resources/devices"
        more = "a batch_size of 2 or more for each of resources.devices" if of_labelled else "a larger ratio"
        raise SpecError(
            f"with one image to each forward pass, batch normalisation gets one value a channel at {size.min_size} px, "
            f'which torch refuses; take {more}, sizes of 64 or more, or norm "group"',
            pointer if of_labelled else "/unlabelled/ratio",
        )


def squarest_of(widths: tuple[int, int], heights: tuple[int, int]) -> float:
    """For `refuse_single_values`: the least that images can have whose sides lie in these ranges, ends included."""
    return max(1.0, widths[0] / heights[1], heights[0] / widths[1])


def without_effect(schedule: Schedule, per_epoch: int) -> Iterator[PlanWarning]:
    """Settings that change nothing, or less than they say."""

    def warned(pointer: str, message: str) -> PlanWarning:
        return PlanWarning(pointer=f"/schedule/{pointer}", message=message)

    total = per_epoch * schedule.epochs
    if schedule.scales == (schedule.min_size,):
        yield warned("scales", "its only size is min_size, which is used anyway: it has no effect")
    photometric, crop = schedule.augment.photometric, schedule.augment.crop
    if photometric is not None and not any(value for _, value in photometric):
        yield warned("augment/photometric", "every change is 0: it has no effect")
    if crop is not None and (crop.probability == 0 or (crop.min_area == 1 and crop.max_aspect_change == 1)):
        reason = "probability is 0" if crop.probability == 0 else "the only possible crop is the whole image"
        yield warned("augment/crop", f"{reason}: it has no effect")
    if crop is not None and crop.keep == "centre" and crop.min_share != type(crop).model_fields["min_share"].default:
        yield warned("augment/crop/min_share", 'it applies to keep "share"; with "centre" it has no effect')
    if schedule.early_stop is not None and schedule.early_stop.patience >= evaluations(schedule) - 1:
        yield warned(
            "early_stop/patience",
            f"with {evaluations(schedule)} evaluations training cannot end early: lower it, or evaluate more often",
        )
    if schedule.evaluate_every > schedule.epochs:
        yield warned("evaluate_every", f"there are {schedule.epochs} epochs: only the last is evaluated")
    curve = schedule.lr_schedule
    if isinstance(curve, Cosine | Step) and curve.warmup_steps > total // 2:
        yield warned(
            "lr_schedule/warmup_steps",
            f"the job has {total} steps; warm-up takes {total // 2} of them, not {curve.warmup_steps}",
        )
    if isinstance(curve, Step) and (late := [m for m in curve.milestones if m >= schedule.epochs]):
        yield warned("lr_schedule/milestones", f"the job has {schedule.epochs} epochs: {late} have no effect")


def idle_resources(spec: JobSpec) -> Iterator[PlanWarning]:
    """What is asked of the host, and nothing comes of it."""
    if spec.resources.teacher_cache_gib is not None and not spec.teacher_refs():
        yield PlanWarning(pointer="/resources/teacher_cache_gib", message="there is no teacher: it has no effect")
    elif spec.resources.teacher_cache_gib is not None and spec.schedule.epochs == 1:
        message = "with one epoch no image is seen twice: it has no effect"
        yield PlanWarning(pointer="/resources/teacher_cache_gib", message=message)
