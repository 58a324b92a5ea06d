"""All that stands before the first step: data, networks, the teacher's fitness and calibration."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fgd.data.formats import open_index
from fgd.data.index import Index
from fgd.data.loader import Dataset, train_batches, unlabelled_batches, unlabelled_parts
from fgd.data.transforms import Transform
from fgd.data.tree import Split
from fgd.detector_specs import DetectorSpec
from fgd.detectors import Detector, anchors, build, family_of
from fgd.engine import balance, checkpoint, device, pretrained, weights
from fgd.engine.checkpoint import KEEP_CHECKPOINTS, TrainingState
from fgd.engine.device import Machine, seeded, to_device
from fgd.engine.distill import Distill, Lesson, Teacher
from fgd.engine.distributed import ALONE, Ranks
from fgd.engine.identity import APART, checkpoint_digest, digest_of_file, digest_of_json
from fgd.engine.laps import Laps
from fgd.engine.teacher import (
    CALIBRATION_IMAGES,
    Fitness,
    box_count,
    calibrate,
    check_teacher,
    checked_images,
    evenly_spaced,
    in_words,
    peaked,
    refuse_unfit,
)
from fgd.engine.teacher_answers import Question, TeacherAnswers, content_of
from fgd.engine.teacher_cache import KEEP_FREE, TeacherCache
from fgd.engine.unlabelled import FoundBoxes, Looked
from fgd.engine.warm_start import start_from
from fgd.errors import DatasetError, SpecError
from fgd.events import Emit, Note, Phase
from fgd.method_fields import Attention
from fgd.method_specs import title
from fgd.methods import build as build_method
from fgd.methods.base import Method, Pair
from fgd.outline import (
    idle_resources,
    idle_unlabelled,
    refuse_single_values,
    refuse_unlabelled,
    unfound_classes,
    unlabelled_per_step,
    whole_steps,
    without_effect,
)
from fgd.recipe import Recipe
from fgd.result_files import WEIGHTS
from fgd.spec import JobSpec, Schedule
from fgd.spec_fields import FromPath, TeacherFromPath
from fgd.text.cut import some
from fgd.types import Batch, Calibration, View

NO_ANSWERS = TeacherAnswers(None)


@dataclasses.dataclass(frozen=True)
class Training:
    """All that stands before the first step."""

    spec: JobSpec
    machine: Machine
    train: Dataset
    val: Dataset
    test: Dataset | None
    transform: Transform
    distill: Distill
    teachers: Mapping[str, Teacher]
    """By name, as `JobSpec.teacher_refs` has them."""
    calibrations: Mapping[str, Calibration]
    """Of each teacher."""
    identity: dict[str, Any]
    """What a checkpoint belongs to: the spec without its paths, and digests of data, teachers and inherited weights."""
    ranks: Ranks
    model: nn.Module
    """`distill`, wrapped where several processes train it."""
    cache: TeacherCache | None = None
    """Of the maps of the only teacher."""
    balance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """<method>/<term> -> what it is multiplied by, of methods with `rho`, once that is measured."""
    unlabelled: Dataset | None = None
    """If the spec uses it."""
    found: FoundBoxes | None = None
    """What the teachers found in it."""

    @property
    def balanced_methods(self) -> frozenset[str]:
        """The titles of the methods with `rho`."""
        return frozenset(title(method) for method in self.spec.methods if method.rho)

    @property
    def student(self) -> Detector:
        return self.distill.student

    def counted(self, looked: Looked) -> Looked:
        """The same; its boxes are counted."""
        if self.found is not None:
            self.found.add(looked.batch)
        return looked

    @property
    def teacher(self) -> Teacher | None:
        """The only one, or that without a name; None if there is neither."""
        return next(iter(self.teachers.values())) if len(self.teachers) == 1 else self.teachers.get("")

    def views(self, batch: Batch) -> dict[str, View]:
        """What each teacher shows of a batch."""
        if self.cache is not None:
            return {name: self.cache.view(batch) for name in self.teachers}
        return {name: teacher.view(batch) for name, teacher in self.teachers.items()}

    @property
    def digest(self) -> str:
        return checkpoint_digest(self.spec, self.identity)


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
) -> tuple[Training, TrainingState, dict[str, Any] | None]:
    """Data, networks, teacher's fitness and calibration; and what the checkpoint holds, if one is given.

    rehearsal_images: the teacher is not checked, and calibrated on so many images only: enough to see how fast it is.
    """
    emit(Phase(phase="loading"))
    laps = laps or Laps()
    schedule = spec.schedule
    assert isinstance(spec.dataset, FromPath)
    index, root = open_index(Path(spec.dataset.path))
    train, val, test = open_split(index, root, "train"), open_split(index, root, "val"), open_split(index, root, "test")
    if train is None or val is None:
        raise DatasetError(f"{root}: training needs images in train and val; found {sorted(index.splits)}")
    per_epoch = whole_steps(len(train), schedule.batch_size, schedule.accumulate)
    sides = [sorted((image.width, image.height)) for image in index.splits["train"]]
    refuse_single_values(spec, min(longer / shorter for shorter, longer in sides))
    for warned in (*without_effect(schedule, per_epoch), *idle_resources(spec), *idle_unlabelled(spec)):
        message = f"{warned.pointer}: {warned.message}"
        emit(Note(code="no_effect", message=message, data={"pointer": warned.pointer}, level="warning"))
    unlabelled = open_unlabelled(spec, index, root, emit)
    recipe = Recipe(
        detector=network_alone(spec.student),
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
        "spec": spec.model_dump(mode="json", exclude=APART)
        | {"student": network_alone(spec.student).model_dump(mode="json", exclude={"inherit"})},
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
    teachers: dict[str, Teacher] = {}
    digests: dict[str, str] = {}
    for name in spec.teacher_refs():
        teachers[name], digests[name] = load_teacher(spec, name, student, machine)
        pair_up(spec, name, teachers[name], emit)
        laps.end("teacher")
    warn_of_classes(spec, index.classes, teachers.values(), emit)
    if "" in teachers:
        identity["teacher"] = digests[""]
    if named_ones := {name: digest for name, digest in digests.items() if name}:
        identity["teachers"] = named_ones

    state, contents, calibrations = TrainingState(), None, dict[str, Calibration]()
    if resume is not None:
        own = {checkpoint_digest(spec, identity, by_batches=by_batches) for by_batches in (False, True)}
        contents, state, calibrations = checkpoint.load(resume, own, machine.device)
        emit(Note(code="resumed", message=f"continuing from step {state.step}", data={"step": state.step}))
    for name, teacher in teachers.items() if resume is None else ():
        if rehearsal_images is not None:
            few = train.with_images(train.images[:rehearsal_images], train.classes)
            calibrations[name] = measure(teacher, spec, name, few, transform, machine, emit, check_stop)
            continue
        about = {
            "teacher": [digests[name], teacher.detector.recipe.model_dump(mode="json")],
            "student": [
                recipe.min_size,
                recipe.max_size,
                recipe.image_mean,
                recipe.image_std,
                {level.name: level.stride for level in student.recipe.detector.levels()},
            ],
            "machine": [machine.device_name, machine.threads, schedule.batch_size, ranks.size, device.versions()],
        }
        known = TeacherAnswers.from_environment()
        examine(teacher, spec, name, val, transform, machine, emit, check_stop, ranks, known, about)
        laps.end("teacher check")
        of_first = partial(measure, teacher, spec, name, train, transform, machine, emit, check_stop, known, about)
        calibrations[name] = ranks.of_first(of_first)
        laps.end("calibration")
    if machine.bf16:  # only now: what is checked and measured of them is float32
        for teacher in teachers.values():
            teacher.quicken()
    distill = Distill(student, lessons(spec, student, teachers, calibrations, machine), spec.needs())
    distill.to(machine.device)
    model = ranks.wrap(distill)
    parts = Training(
        spec, machine, train, val, test, transform, distill, teachers, calibrations, identity, ranks, model
    )
    if spec.unlabelled is not None:
        parts = dataclasses.replace(parts, unlabelled=unlabelled, found=FoundBoxes(spec.unlabelled.score))
    return dataclasses.replace(parts, balance=state.balance), state, contents


def lessons(
    spec: JobSpec,
    student: Detector,
    teachers: Mapping[str, Teacher],
    calibrations: Mapping[str, Calibration],
    machine: Machine,
) -> dict[str, Lesson]:
    """The methods of each teacher, freshly initialised in the spec's order."""
    pairs = {
        name: Pair.of(student.recipe.detector, teacher.detector.recipe.detector) for name, teacher in teachers.items()
    }
    methods: dict[str, dict[str, Method]] = {name: {} for name in teachers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(spec.seed, 1))
        for each in spec.methods:
            name = each.teacher or ""
            method = build_method(each, pairs[name], calibrations[name], spec.schedule)
            method.train_in_bf16(on=machine.bf16)
            methods[name][title(each)] = method
    return {name: Lesson(methods[name], teacher.classes) for name, teacher in teachers.items()}


def balanced(parts: Training, emit: Emit, check_stop: Callable[[], None]) -> dict[str, float]:
    """The factors of the methods' terms, from the first batches of the training."""
    emit(Phase(phase="balancing"))
    schedule, seed = parts.spec.schedule, parts.spec.seed
    rhos: dict[str, float] = {title(method): method.rho or 0.0 for method in parts.spec.methods}
    batches = train_batches(parts.train, parts.transform, schedule, seed, epoch=0, shard=parts.ranks.shard)
    try:
        first = (to_device(batch, parts.machine.device) for batch in itertools.islice(batches, balance.BATCHES))
        found = balance.measure(parts.distill, first, parts.views, rhos, seed=seeded(seed, 3), check_stop=check_stop)
    finally:
        batches.close()  # type: ignore[attr-defined]  # a generator: ends its reader thread
    methods = parts.distill.methods.items()
    shares = {kind: each.shares for kind, each in methods if isinstance(each, Method) and each.shares is not None}
    emit(balance.note(found, rhos, shares))
    return found


def cache_of(parts: Training, out: Path, emit: Emit) -> TeacherCache | None:
    """Each process of a job has its own, with its share of the bytes."""
    gib = parts.spec.resources.teacher_cache_gib
    if gib is None or parts.teacher is None or len(parts.teachers) > 1:
        return None
    trained = sum(parameter.nbytes for parameter in parts.distill.parameters())
    # Here and in the store: checkpoints of weights, two moments and the best weights.
    checkpoints = 2 * (KEEP_CHECKPOINTS + 1) * 4 * trained
    max_bytes = int(gib * 2**30) // parts.ranks.size
    try:
        return TeacherCache(parts.teacher, out, max_bytes=max_bytes, keep_free=max(KEEP_FREE, checkpoints), emit=emit)
    except OSError as error:
        message = f"the cache of the teacher's maps cannot be used: {error.strerror}"
        emit(Note(code="teacher_cache_stopped", message=message, level="warning"))
        return None


def open_split(index: Index, root: Path, name: Split) -> Dataset | None:
    return Dataset(index, name, root) if index.splits.get(name) else None


def open_unlabelled(spec: JobSpec, index: Index, root: Path, emit: Emit) -> Dataset | None:
    """The unlabelled images, if the job uses them. Raises SpecError where there are none."""
    images = len(index.splits.get("unlabelled", ()))
    refuse_unlabelled(spec, images)
    if (per_step := unlabelled_per_step(spec)) == 0:
        return None
    labelled = spec.schedule.batch_size * spec.schedule.accumulate
    message = (
        f"each step has {per_step} of {images} images without labels beside {labelled} labelled ones: a pass over them "
        f"takes {images / per_step:.3g} steps"
    )
    emit(Note(code="unlabelled", message=message, data={"images": images, "per_step": per_step}))
    return open_split(index, root, "unlabelled")


def unlabelled_of(parts: Training, schedule: Schedule, steps: range, per_epoch: int) -> tuple[Iterator[Batch], int]:
    """The batches of unlabelled images for these steps, and how many each step has; none if the job uses none."""
    per_step, devices = unlabelled_per_step(parts.spec), parts.spec.resources.devices
    if parts.unlabelled is None:
        none: tuple[Batch, ...] = ()
        return (batch for batch in none), 0
    batches = unlabelled_batches(
        parts.unlabelled,
        parts.transform,
        schedule,
        parts.spec.seed,
        per_step,
        steps=steps,
        per_epoch=per_epoch,
        shard=(parts.ranks.rank, devices),
    )
    return batches, len(unlabelled_parts(per_step // devices, schedule.accumulate))


def warn_of_classes(spec: JobSpec, classes: Sequence[str], teachers: Iterable[Teacher], emit: Emit) -> None:
    """Refuse teachers that can find nothing in unlabelled images; say what they cannot find."""
    theirs = [name for teacher in teachers for name in teacher.detector.recipe.classes]
    refuse_unlabelled(spec, 1, classes, theirs)
    for warned in unfound_classes(spec, classes, theirs):
        message = f"{warned.pointer}: {warned.message}"
        emit(Note(code="classes_unfound", message=message, data={"pointer": warned.pointer}, level="warning"))


def network_alone(student: DetectorSpec) -> DetectorSpec:
    """The network without the folders that its training began from: those are nobody's business later."""
    weights = student.weights if isinstance(student.weights, str) else "none"
    return student.but(inherit=None, weights=weights, norm=student.trunk_norm())


def warm_start(source: FromPath, student: Detector, emit: Emit) -> str:
    folder = Path(source.path)
    begun = start_from(student, folder)
    message = f"starts with {len(begun.copied)} tensors of the given weights; {len(begun.left)} start from scratch"
    data = {"copied": len(begun.copied), "afresh": list(begun.left)}
    emit(Note(code="warm_started", message=message, data=data))
    return digest_of_file(folder / WEIGHTS)


def with_anchors(recipe: Recipe, student: DetectorSpec, train: Dataset, transform: Transform, emit: Emit) -> Recipe:
    """The recipe with anchors that fit the training boxes, or the network's whose heads are inherited."""
    family = family_of(student)
    if family.anchors is None:
        return recipe
    layout = family.anchors.layout
    if student.weights == "COCO_V1":
        base = anchors.BASES[0]
        emit(
            Note(code="anchors", message=f"anchors from {base} px, those COCO_V1 was trained with", data={"base": base})
        )
        return recipe.but(anchor_sizes=layout.sizes(base))
    for begun_from in (student.inherit, student.weights):  # regression heads were trained for their anchors
        if not isinstance(begun_from, FromPath):
            continue
        source = weights.read_recipe(Path(begun_from.path))
        if type(source.detector) is type(student):
            sizes = source.anchor_sizes or layout.sizes(anchors.BASES[0])
            message = f"anchors from {sizes[0][0]} px, those of the network it starts from"
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
        f"{len(loaded.afresh)} start from scratch: {some(loaded.afresh) or 'none'}"
    )
    data = {"weights": source.name, "file": source.file, "sha256": loaded.sha256, "afresh": loaded.afresh}
    emit(Note(code="pretrained", message=message, data=data))
    return {"weights": source.name, "file": source.file, "sha256": loaded.sha256}


def called(name: str) -> str:
    """A teacher, for people."""
    return f"the teacher {name}" if name else "the teacher"


def whose(name: str) -> dict[str, Any]:
    """What is added to an event's data about a teacher with a name."""
    return {"teacher": name} if name else {}


def pair_up(spec: JobSpec, name: str, teacher: Teacher, emit: Emit) -> None:
    """Refuse a pair without a common level, or class; say which levels are left out of a pair that lacks some, and
    which classes a teacher teaches that knows some, or is one of several."""
    spec.refuse_pair(teacher.detector.recipe.detector, name)
    classes, ours = teacher.classes, teacher.student_classes
    spec.refuse_foreign(ours, teacher.detector.recipe.classes, name)
    if classes.some or len(spec.teacher_refs()) > 1:
        others = [each for each in ours if each not in classes.names]
        message = f"{called(name)} teaches {len(classes.names)} of {len(ours)} classes: {some(classes.names)}"
        message += f"; cells of {some(others)} alone are left out of its methods" if others else ""
        data = whose(name) | {"classes": list(classes.names), "others": others}
        emit(Note(code="teaches", message=message, data=data))
    left_out = {level.name: level.stride for level in spec.student.levels() if level.name not in teacher.shared}
    if left_out:
        message = (
            f"levels are matched by stride: {', '.join(teacher.shared)} are distilled; "
            f"{called(name)} has no level for {', '.join(f'{level} (stride {s})' for level, s in left_out.items())}"
        )
        data = whose(name) | {"distilled": list(teacher.shared), "left_out": list(left_out)}
        emit(Note(code="levels_left_out", message=message, data=data, level="warning"))


def inherit_from(spec: JobSpec, student: Detector, emit: Emit) -> str:
    assert isinstance(spec.student.inherit, FromPath)
    folder, classes = Path(spec.student.inherit.path), student.recipe.classes
    detector = weights.load_detector(folder)
    spec.refuse_inherit(detector.recipe.detector)
    if detector.recipe.classes != classes:  # the head's rows are classes, by place
        message = f"inherits from a model with classes {detector.recipe.classes}, but the data set has {classes}"
        raise SpecError(message, "/student/inherit")
    copied, kept = weights.inherit(student, detector)
    message = f"copied {len(copied)} neck and head tensors; {len(kept)} of another shape start from scratch"
    emit(Note(code="inherited", message=message, data={"copied": copied, "kept": kept}))
    return digest_of_file(folder / WEIGHTS)


def load_teacher(spec: JobSpec, name: str, student: Detector, machine: Machine) -> tuple[Teacher, str]:
    ref = spec.teacher_refs()[name]
    assert isinstance(ref, TeacherFromPath)
    folder = Path(ref.path)
    detector = weights.load_detector(folder)
    teacher = Teacher(detector.to(machine.device), student.recipe, spec.needs(name))
    return teacher, digest_of_file(folder / WEIGHTS)


def examine(
    teacher: Teacher,
    spec: JobSpec,
    name: str,
    val: Dataset,
    transform: Transform,
    machine: Machine,
    emit: Emit,
    check_stop: Callable[[], None],
    ranks: Ranks,
    known: TeacherAnswers,
    about: Question,
) -> None:
    """The teacher is checked before it teaches, unless an earlier training did on the same images."""
    emit(Phase(phase="checking_teacher"))
    images = checked_images(val, teacher.detector.recipe.classes)
    question = about | {"check": [content_of(images, val.root), val.classes]} if known.folder else {}
    answer = ranks.of_first(lambda: known.answer(question))
    if answer is not None:
        found = Fitness.from_json(answer)
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
    message, cached = as_known(f"{found.told(called(name))}{own}", known=answer is not None)
    emit(Note(code="teacher_checked", message=message, data=whose(name) | found.data | cached))
    refuse_unfit(found, name, allow_unfit=spec.teacher_refs()[name].allow_unfit)


def measure(
    teacher: Teacher,
    spec: JobSpec,
    name: str,
    train: Dataset,
    transform: Transform,
    machine: Machine,
    emit: Emit,
    check_stop: Callable[[], None],
    known: TeacherAnswers = NO_ANSWERS,
    about: Question | None = None,
) -> Calibration:
    """The calibration, or what an earlier training made of the same images and the same count of boxes."""
    emit(Phase(phase="calibrating"))
    images = evenly_spaced(train.images, CALIBRATION_IMAGES)
    counts = [len(train), box_count(train.images, teacher.known_labels)]
    attentions: dict[str, Attention] = {}
    for method in spec.methods_of(name):
        if (attention := method.teacher_attention()) is not None:
            attentions[method.kind] = attention
    question = (about or {}) | {"calibration": [content_of(images, train.root), counts]} if known.folder else {}
    if attentions:
        question |= {"attentions": {kind: dataclasses.asdict(each) for kind, each in attentions.items()}}
    answer = known.answer(question)
    if answer is not None:
        calibration = Calibration(**answer)
    else:
        calibration = calibrate(
            teacher,
            train,
            transform,
            attentions,
            batch_size=spec.schedule.batch_size,
            device=machine.device,
            check_stop=check_stop,
        )
        known.keep(question, dataclasses.asdict(calibration))
    message, cached = as_known(in_words(calibration, called(name)), known=answer is not None)
    emit(Note(code="calibration", message=message, data=whose(name) | dataclasses.asdict(calibration) | cached))
    for warning in peaked(calibration, name):
        emit(warning)
    return calibration


def as_known(message: str, *, known: bool) -> tuple[str, dict[str, Any]]:
    """The message, and what is added to its data, where an earlier training has found it out."""
    return (f"{message} (from an earlier training on this host)", {"cached": True}) if known else (message, {})
