"""Everything a job can be given. Knows no torch, no HTTP, no SQL.

The request body of `POST /v1/jobs` is a `SubmitJob`: a `JobSpec` and what only the service needs. The trainer
reads a `JobSpec` whose references are paths. Numbers left out are None and come from `fgd.presets.resolve`;
a weight of 0 switches its term off. Sizes are pixels, rates are per step, AP is 0-100.

Detectors are in `fgd.detector_specs`, methods in `fgd.method_specs`.

Over 500 lines, half of them the docstrings that users read in the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from fgd.class_names import shared_labels
from fgd.detector_specs import OF_CLASSES, OF_THE_HEAD, DetectorSpec, Need
from fgd.errors import SpecError
from fgd.method_specs import title, unserved
from fgd.plugins import AnyMethod
from fgd.spec_fields import (
    Bool,
    DatasetRef,
    Float,
    Int,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seconds,
    Spec,
    TeacherName,
    TeacherRef,
    is_empty,
)
from fgd.text.cut import some

# --- schedule -------------------------------------------------------------------------------------------------


class AdamW(Spec):
    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 4e-4
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled decay; not applied to biases and normalisation layers."""


class SGD(Spec):
    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.01
    """Peak learning rate."""
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    """L2 penalty, applied to all parameters, as the paper's schedule does."""


OptimizerSpec = Annotated[AdamW | SGD, Field(discriminator="kind")]


class OneCycle(Spec):
    """Linear warm-up to the peak, then a cosine down to a thousandth of it."""

    kind: Literal["one_cycle"] = "one_cycle"
    warmup_fraction: Annotated[Float, Field(ge=0, lt=1)] = 0.1
    """Share of all steps spent warming up."""


class Cosine(Spec):
    """Linear warm-up by steps, then a cosine to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: NonNegativeInt = 500


class Step(Spec):
    """Linear warm-up by steps, then the rate falls by `factor` after each milestone."""

    kind: Literal["step"] = "step"
    milestones: Annotated[tuple[PositiveInt, ...], Field(max_length=100)] = (16, 22)
    """Epochs after which the rate falls."""
    factor: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    warmup_steps: NonNegativeInt = 500

    @model_validator(mode="after")
    def _milestones_rise(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must increase")
        return self


LrSchedule = Annotated[OneCycle | Cosine | Step, Field(discriminator="kind")]


class Photometric(Spec):
    """Random changes of a training image's colours, different in each epoch; 0 switches one off."""

    brightness: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """The factor is drawn from 1 - brightness to 1 + brightness."""
    contrast: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Likewise, around the image's mean grey."""
    saturation: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Likewise; factor 0 is grey."""
    hue: Annotated[Float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the colour circle, either way; 0.5 is half of it."""


class Crop(Spec):
    """A random part of a training image, which is then resized like a whole image: objects appear larger."""

    probability: Annotated[Float, Field(ge=0, le=1)] = 0.5
    """Share of the images that are cropped."""
    min_area: Annotated[Float, Field(gt=0, le=1)] = 0.3
    """Smallest part of the image's area."""
    max_aspect_change: Annotated[Float, Field(ge=1, le=4)] = 1.5
    """Factor by which the crop's shape may be wider or higher than the image's."""
    keep: Literal["centre", "share"] = "centre"
    """"centre": a box stays if its centre is in the crop; "share": if at least `min_share` of its area is. Boxes are
    clipped to the crop; an image may lose them all."""
    min_share: Annotated[Float, Field(gt=0, le=1)] = 0.3
    """Only for keep "share"."""


class Augment(Spec):
    """Random changes of training images other than `flip` and `scales`; the same for control and distilled run."""

    photometric: Photometric | None = None
    """Random brightness, contrast, saturation and hue; null: none."""
    crop: Crop | None = None
    """Random crops; null: none."""


class EMA(Spec):
    """An exponential moving average of the student's weights: it is evaluated, and it is the result."""

    decay: Annotated[Float, Field(gt=0, lt=1)] = 0.999
    """Share of itself that the average keeps at each step."""
    warmup: NonNegativeInt = 10
    """The average builds up: step n keeps at most n / (n + warmup). 0: `decay` from the first step on."""


class EarlyStop(Spec):
    """Ends a training whose AP on the validation images no longer rises. The last weights are still the result."""

    patience: Annotated[Int, Field(ge=1, le=10_000)]
    """Number of evaluations in a row without improvement after which the training ends."""
    min_delta: NonNegativeFloat = 0.0
    """AP (0-100) by which an evaluation must exceed the last one that counted."""


MOST_BATCHES = 1024
"""Per step."""


class Schedule(Spec):
    """How long, how fast, at what size. The control of a distilled run uses the same."""

    epochs: Annotated[Int, Field(ge=1, le=10_000)] = 12
    batch_size: Annotated[Int, Field(ge=1, le=4096)] = 8
    """Images per forward pass. Images at the end of an epoch that do not fill a step are left out."""
    accumulate: Annotated[Int, Field(ge=1, le=MOST_BATCHES)] = 1
    """Batches per step. A step equals one of batch_size x accumulate images, at the device memory of one batch; only
    padding, and the statistics of norm "batch", are computed per batch."""
    min_size: Annotated[Int, Field(ge=32, le=8192)] = 240
    """Shorter side after resizing, as in torchvision."""
    max_size: Annotated[Int, Field(ge=32, le=8192)] = 320
    """Longest side after resizing."""
    optimizer: OptimizerSpec = AdamW()
    lr_schedule: LrSchedule = OneCycle()
    clip_norm: NonNegativeFloat = 35.0
    """L2 norm the student's gradient is clipped to; 0: no clipping."""
    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    """Random flips, each with probability one half."""
    scales: Annotated[tuple[Annotated[Int, Field(ge=32, le=8192)], ...], Field(max_length=64)] = ()
    """Shorter sides to train at instead of `min_size`, one drawn for each step; the bound on the longer side scales
    with it, max_size x side / min_size. Evaluation uses min_size and max_size."""
    augment: Augment = Augment()
    """Random crops and colours of training images."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Number format of trunk, neck, the wide layers of the head and the methods' adapters in training. "auto": bf16 if
    the device computes it natively, otherwise float32. Predictions, losses and every reported number are float32."""
    evaluate_every: PositiveInt = 1
    """Epochs between evaluations on the validation images; the last epoch is always evaluated."""
    ema: EMA | None = None
    """Average the student's weights over the steps; null: the weights of the last step are the result."""
    early_stop: EarlyStop | None = None
    """End before `epochs` if nothing more is gained; the learning rate still follows the whole schedule."""
    checkpoint_s: PositiveFloat = 60.0
    """At most this many seconds of training between checkpoints; each evaluated epoch also ends with one."""
    checkpoint_steps: PositiveInt | None = None
    """At most this many steps between checkpoints, in addition to the seconds."""

    on_non_finite: Literal["fail", "skip"] = "fail"
    """What happens when a loss or gradient is not finite. "fail": the job ends. "skip": the step changes nothing, an
    event reports it and `skipped_steps` counts it; ten in a row still end the job. Either way no weight is damaged, and
    the weights of the last finite step are kept as a checkpoint."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size {self.min_size} is larger than max_size {self.max_size}")
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError("scales must increase")
        return self

    def never_the_same(self) -> str:
        """What shows other pixels of an image each epoch, besides flips; "" if nothing does."""
        if self.augment.crop is not None:
            return "schedule.augment.crop cuts out a different part each time"
        if self.augment.photometric is not None:
            return "schedule.augment.photometric changes their colours each time"
        if len(self.scales) > 1:
            return "schedule.scales resizes them differently each time"
        return ""

    def in_batches_of(self, images: int) -> Self:
        """The same steps from smaller batches; `images` divides a step's."""
        return self.but(batch_size=images, accumulate=self.batch_size * self.accumulate // images)

    def halved(self, devices: int = 1) -> Self | None:
        """The same steps from batches of half the size, or the next smaller that divides it; None below an image for
        each of the devices."""
        sizes = range(self.batch_size // 2, 0, -1)
        smaller = next((n for n in sizes if self.batch_size % n == 0 and n % devices == 0), None)
        if smaller is None or self.batch_size * self.accumulate // smaller > MOST_BATCHES:
            return None
        return self.in_batches_of(smaller)


class Resources(Spec):
    """What the job needs of a worker's host."""

    retired: ClassVar[Mapping[str, str]] = {
        "compile": "leave it out, whether true or false; the losses are computed as they were without it"
    }

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto": a GPU if the worker has one, otherwise the processor."""
    threads: Annotated[Int, Field(ge=1, le=1024)] | None = None
    """Processor threads. Default: all that the worker gives a slot. The same number is needed for the same bytes."""
    devices: Annotated[Int, Field(ge=1, le=64)] = 1
    """GPUs of one host, or processes on its processor, that share each batch and each evaluation; `threads` is per
    device. `schedule.batch_size` counts the images of one batch over all devices, and must be a multiple."""
    on_out_of_memory: Literal["fail", "halve"] = "fail"
    """What happens when the GPU or the host runs out of memory. "fail": the job ends. "halve": the service continues
    from the last checkpoint with half of schedule.batch_size and twice schedule.accumulate, so that a step has as many
    images as before, down to a batch of one; an event reports it."""
    teacher_cache_gib: Annotated[Float, Field(gt=0, le=16_384)] | None = None
    """Keep the teacher's maps of the training images between epochs, in at most this many GiB of the worker's disk: the
    teacher then runs once per image and flip. The result has the same bytes. Only for schedules whose only
    augmentation is `flip`. Default: nothing is kept."""
    focus_images: Annotated[Int, Field(ge=0, le=24)] = 6
    """Validation images on which a job with a teacher shows what its methods look at: masks and attentions, before the
    first step and at evaluations. 0: none. The result has the same bytes."""


# --- latency --------------------------------------------------------------------------------------------------

Milliseconds = Annotated[Float, Field(gt=0, le=3_600_000)]
Runtime = Literal["onnxruntime", "torch"]


class LatencyBudget(Spec):
    """How a latency is measured: one image at a time, on the processor of the worker that has the job."""

    runtime: Runtime = "onnxruntime"
    """"onnxruntime": the exported ONNX file. "torch": the network in torch."""
    threads: Annotated[Int, Field(ge=1, le=1024)] | None = None
    """Processor threads that one image gets. Default: as many as the training has."""


# --- images without labels ------------------------------------------------------------------------------------


class Unlabelled(Spec):
    """How images of the data set's unlabelled split teach: the boxes that the teacher is sure of stand for labels."""

    ratio: Annotated[Float, Field(gt=0, le=64)] = 1.0
    """Unlabelled images for each labelled one, in each step: as many as come nearest to it, and at least one for each
    device. The labelled images are the same in the same order with and without them."""
    score: Annotated[Float, Field(ge=0.05, le=1)] = 0.5
    """Detections of the teacher with a lower score are left out. An image without any counts as background."""
    pseudo_labels: Bool = False
    """Also train the student's own losses on these boxes. Otherwise they serve the methods only, such as for masks."""
    weight: NonNegativeFloat = 1.0
    """Only for `pseudo_labels`: of these losses, beside 1 for those of the labelled images."""

    def per_step(self, schedule: Schedule, devices: int) -> int:
        """How many images."""
        each = round(self.ratio * schedule.batch_size * schedule.accumulate / devices)
        return devices * max(1, each)


# --- the job --------------------------------------------------------------------------------------------------


def teacher_pointer(name: str) -> str:
    """JSON pointer of the teacher of that name; "" is that of `teacher`."""
    return f"/teachers/{name}" if name else "/teacher"


class JobSpec(Spec):
    """One training: a student, the data, and the teacher and methods it learns with, if any."""

    name: Name
    teacher: TeacherRef | None
    """The teacher of every method that names none; null exactly when there is no such method (plain training: of a
    teacher, or a control; or all teachers are in `teachers`)."""
    teachers: Annotated[dict[TeacherName, TeacherRef], Field(max_length=8, exclude_if=is_empty)] = {}  # noqa: RUF012
    """Further teachers by names of yours. A method says which one it learns from. Classes are bound by name: each
    teaches the data set's classes that it knows."""
    student: DetectorSpec
    dataset: DatasetRef
    methods: Annotated[tuple[AnyMethod, ...], Field(max_length=16)]
    """Distillation methods, whose losses are added; [] is plain training."""
    schedule: Schedule = Schedule()
    resources: Resources = Resources()
    unlabelled: Unlabelled | None = None
    """Learn from the images of the data set's unlabelled split too; null: they are not used."""
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """Initial weights, data order and augmentation all follow from it."""
    latency_budget_ms: Milliseconds | None = None
    """Milliseconds that the student may take for one image. After the training it is measured, and the event `latency`
    and the manifest say whether the budget holds; the job succeeds either way."""
    latency: LatencyBudget = LatencyBudget()
    """How that is measured; without `latency_budget_ms` it has no effect."""

    @field_validator("student", mode="after")
    @classmethod
    def _norm_fits_weights(cls, student: DetectorSpec) -> DetectorSpec:
        # A rule of trainings: the recipe of a finished network may well have frozen layers and name no weights.
        if student.norm == "frozen" and student.weights == "none":
            raise ValueError('norm "frozen" needs pretrained weights; with weights "none" use "batch" or "group"')
        return student

    @field_validator("resources")
    @classmethod
    def _devices_share_batches_equally(cls, resources: Resources, info: ValidationInfo) -> Resources:
        schedule = info.data.get("schedule")
        if schedule is not None and schedule.batch_size % resources.devices:
            raise ValueError(
                f"schedule.batch_size {schedule.batch_size} cannot be shared equally by {resources.devices} devices; "
                "use a multiple"
            )
        return resources

    @field_validator("resources")
    @classmethod
    def _one_teacher_is_cached(cls, resources: Resources, info: ValidationInfo) -> Resources:
        teachers = len(info.data.get("teachers", ())) + (info.data.get("teacher") is not None)
        if resources.teacher_cache_gib is not None and teachers > 1:
            raise PydanticCustomError(
                "cannot_be_cached",
                "the maps of one teacher can be kept, and the job has {teachers}: leave it out",
                {"at": "teacher_cache_gib", "teachers": teachers},
            )
        return resources

    @field_validator("resources")
    @classmethod
    def _maps_are_enough_if_cached(cls, resources: Resources, info: ValidationInfo) -> Resources:
        for method in info.data.get("methods", ()):
            if resources.teacher_cache_gib is not None and method.takes() & (OF_THE_HEAD | {"proposals"}):
                raise PydanticCustomError(
                    "cannot_be_cached",
                    "only the teacher's maps can be kept, but {method} also needs the output of its head: leave out "
                    "one of the two",
                    {"at": "teacher_cache_gib", "method": method.kind},
                )
        return resources

    @field_validator("resources")
    @classmethod
    def _pixels_come_back_if_cached(cls, resources: Resources, info: ValidationInfo) -> Resources:
        schedule = info.data.get("schedule")
        if resources.teacher_cache_gib is not None and schedule is not None and (why := schedule.never_the_same()):
            raise PydanticCustomError(
                "cannot_be_cached",
                "the teacher's maps can only be kept if the same pixels come back in each epoch, but {why}: leave out "
                "one of the two",
                {"at": "teacher_cache_gib", "why": why},
            )
        return resources

    @field_validator("methods")
    @classmethod
    def _methods_teach_with_a_teacher(
        cls, methods: tuple[AnyMethod, ...], info: ValidationInfo
    ) -> tuple[AnyMethod, ...]:
        titles = [title(method) for method in methods]
        if len(titles) != len(set(titles)):
            of_teacher = " for a teacher" if any(method.teacher for method in methods) else ""
            raise ValueError(f"each method may be given only once{of_teacher}, got {titles}")
        idle = [method.kind for method in methods if not method.teaches()]
        if idle:
            raise ValueError(f"every weight of {idle[0]} is 0, so it has no effect: leave it out")
        if "teacher" in info.data and "teachers" in info.data:  # else a teacher itself is at fault, and told
            teacher, teachers = info.data["teacher"], info.data["teachers"]
            if teacher is None and not teachers and methods:
                raise ValueError("methods need a teacher: name one, or give methods [] for plain training")
            if (teacher is not None or teachers) and not methods:
                raise ValueError("a teacher without methods teaches nothing: add a method, or set teacher to null")
        return methods

    @field_validator("methods")
    @classmethod
    def _methods_name_their_teachers(
        cls, methods: tuple[AnyMethod, ...], info: ValidationInfo
    ) -> tuple[AnyMethod, ...]:
        teachers = info.data.get("teachers", {})
        names = ", ".join(teachers) or "it is empty"
        for place, method in enumerate(methods):
            if method.teacher is not None and method.teacher not in teachers and "teachers" in info.data:
                raise PydanticCustomError(
                    "teacher_unknown",
                    "there is no teacher {name} in /teachers ({names})",
                    {"at": f"{place}/teacher", "name": repr(method.teacher), "names": names},
                )
            if method.teacher is None and teachers and info.data.get("teacher", ...) is None:
                raise PydanticCustomError(
                    "teacher_missing",
                    "it names no teacher, and the job has no `teacher`; name one of /teachers: {names}",
                    {"at": f"{place}/teacher", "names": names},
                )
        return methods

    @model_validator(mode="after")
    def _every_teacher_teaches(self) -> Self:
        for name in self.teacher_refs():
            if not self.methods_of(name):
                raise PydanticCustomError(
                    "teacher_unused",
                    "no method learns from this teacher: let one do so, or leave the teacher out",
                    {"at": teacher_pointer(name)[1:]},
                )
        return self

    @field_validator("methods")
    @classmethod
    def _student_serves_its_methods(cls, methods: tuple[AnyMethod, ...], info: ValidationInfo) -> tuple[AnyMethod, ...]:
        if "student" in info.data:
            for place, method in enumerate(methods):
                if why := unserved(method, info.data["student"]):
                    raise PydanticCustomError("method_not_served", "{why}", {"at": str(place), "why": why})
        return methods

    @field_validator("unlabelled")
    @classmethod
    def _somebody_labels(cls, unlabelled: Unlabelled | None, info: ValidationInfo) -> Unlabelled | None:
        if unlabelled is not None and "methods" in info.data and not info.data["methods"]:
            raise ValueError(
                "images without labels teach through a teacher and methods: name them, or leave this out; plain "
                "training, such as a control, has labels only"
            )
        return unlabelled

    def teacher_refs(self) -> dict[str, TeacherRef]:
        """All teachers by name; that of `teacher` is ""."""
        return ({"": self.teacher} if self.teacher is not None else {}) | self.teachers

    def methods_of(self, teacher: str) -> tuple[AnyMethod, ...]:
        """Those that learn from the teacher of that name."""
        return tuple(method for method in self.methods if (method.teacher or "") == teacher)

    def needs(self, teacher: str | None = None) -> frozenset[Need]:
        """What the methods take of both networks, all together; or those of one teacher."""
        methods = self.methods if teacher is None else self.methods_of(teacher)
        return frozenset(need for method in methods for need in method.takes())

    def refuse_foreign(self, names: Sequence[str], theirs: Sequence[str], teacher: str = "") -> None:
        """Raise SpecError for a teacher that knows none of the data set's classes. Alone, with methods that take maps
        only, it may teach all the same: maps have no classes.

        names: the data set's classes. theirs: the teacher's.
        """
        alone = len(self.teacher_refs()) == 1
        if shared_labels(names, theirs) or (alone and not self.needs(teacher) & OF_CLASSES):
            return
        why = (
            f"{title(next(m for m in self.methods_of(teacher) if m.takes() & OF_CLASSES))} compares class by class"
            if alone
            else "of several teachers each teaches the classes that it knows"
        )
        raise SpecError(
            f"the teacher knows none of the data set's classes by name, and {why}: it knows {some(theirs)}; the data "
            f"set has {some(names)}",
            teacher_pointer(teacher),
        )

    def refuse_pair(self, teacher: DetectorSpec, name: str = "") -> None:
        """Raise SpecError if a method here cannot carry knowledge from `teacher`, which has that name, to the
        student."""
        for place, method in enumerate(self.methods):
            if (method.teacher or "") != name:
                continue
            if why := unserved(method, teacher) or method.refusal(self.student, teacher):
                raise SpecError(why, f"/methods/{place}")
        ours, theirs = ([level.stride for level in each.levels()] for each in (self.student, teacher))
        if not set(ours) & set(theirs):
            raise SpecError(
                f"a teacher of kind {teacher.kind} has no pyramid level in common with this {self.student.kind}: "
                f"student strides {ours}, teacher strides {theirs}",
                teacher_pointer(name),
            )

    def refuse_inherit(self, source: DetectorSpec) -> None:
        """Raise SpecError if neck and head of `source` mean something else in the student."""
        student = self.student
        if (source.kind, source.variant()) != (student.kind, student.variant()):
            raise SpecError(
                f"inherits from a network of kind {source.kind}, version {source.variant()}; this one is "
                f"{student.kind}, version {student.variant()}, which has other levels and heads",
                "/student/inherit",
            )


Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.\-]+$")],
        Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")],
    ],
    Field(max_length=16),
]


Priority = Annotated[Int, Field(ge=-100, le=100)]


class Limits(Spec):
    max_retries: Annotated[Int, Field(ge=0, le=100)] = 3
    """How many times the job is retried after a failure that may go away, such as a lost worker."""
    max_runtime_s: Seconds | None = None
    """Seconds it may run, counting all attempts and their staging; then it is stopped and fails as `preempted`.
    Default: no limit."""
    max_wait_s: Seconds | None = None
    """Seconds it may wait for its first start; then it fails as `preempted`. Default: no limit."""


ONE_TEACHER: JsonDict = {
    "name": "cells",
    "teacher": {"job": "job_01890a5d00007000a000000000000001"},
    "student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64},
    "dataset": "ds_01890a5d00007000a000000000000002",
    "methods": [{"kind": "fgd"}],
}
SEVERAL_TEACHERS: JsonDict = ONE_TEACHER | {
    "teachers": {"wbc": {"model": "mdl_01890a5d00007000a000000000000003"}},
    "methods": [{"kind": "fgd"}, {"kind": "fgd", "teacher": "wbc"}, {"kind": "crosskd", "teacher": "wbc"}],
}


class SubmitJob(JobSpec):
    """The body of POST /v1/jobs: the JobSpec, and what only the service needs."""

    model_config = ConfigDict(json_schema_extra={"examples": [ONE_TEACHER, SEVERAL_TEACHERS]})

    metadata: Metadata = {}  # noqa: RUF012  # pydantic copies it
    """Your own labels; at most 16."""
    priority: Priority = 0
    """Higher runs first."""
    limits: Limits = Limits()

    def spec(self) -> JobSpec:
        """The part that travels with the weights."""
        return JobSpec.model_validate({name: getattr(self, name) for name in JobSpec.model_fields})
