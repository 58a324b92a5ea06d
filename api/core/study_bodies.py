"""The bodies of studies, and the jobs that they stand for: arms x students x seeds. Knows no HTTP, no SQL, no torch.

Arm        methods, and what else of a job differs from arm to arm
control    an arm without methods; the one that an arm is compared with has the same `inherit` and `epochs`
Run        an arm and a student: one job, but for its seed
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, create_model

from api.core.errors import Fault, Invalid
from fgd import presets
from fgd.detector_specs import DetectorSpec
from fgd.plugins import AnyMethod
from fgd.spec import SubmitJob, Unlabelled
from fgd.spec_fields import INVISIBLE, Bool, Int, Name, Spec, TeacherRef, WeightsRef
from fgd.text.pointers import faults_of_spec

CONTROL = "control"
MAX_NAME = 100
"""Characters of a job's name."""

ArmName = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=rf"^[^{INVISIBLE}]+$")]
Seed = Annotated[Int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], Field(max_length=1000)]

EXAMPLE: dict[str, Any] = {
    "name": "what helps",
    "teacher": {"job": "job_01890a5d00007000a000000000000001"},
    "dataset": "ds_01890a5d00007000a000000000000002",
    "arms": [
        {"name": "fgd", "methods": [{"kind": "fgd"}]},
        {"name": "focal only", "methods": [{"kind": "fgd", "lambda": 0}]},
        {"name": "imitation", "methods": [{"kind": "mimic"}]},
    ],
    "students": [{"kind": "fcos", "backbone": "resnet18", "fpn_channels": 128}],
    "seeds": [0, 1, 2],
    "schedule": {"epochs": 24},
}


class Arm(Spec):
    """One of the things that a study compares: methods under a name. What else it sets replaces what the study says."""

    name: ArmName
    methods: Annotated[tuple[AnyMethod, ...], Field(max_length=16)]
    """As in a job; [] is plain training."""
    teacher: TeacherRef | None = None
    """Its own teacher. Default: the study's."""
    inherit: WeightsRef | None = None
    """`student.inherit` of its jobs; null: they inherit nothing. Left out: as each student says."""
    epochs: Annotated[Int, Field(ge=1, le=10_000)] | None = None
    """`schedule.epochs` of its jobs, as for a control that trains longer. Default: the study's."""
    unlabelled: Unlabelled | None = None
    """How images without labels teach it; null: they do not. Left out: as the study says."""
    against: ArmName | None = None
    """The arm that it is compared with. Default: the arm without methods that has the same `inherit` and `epochs`; an
    arm without methods that has its own is compared with the one that has the study's."""

    def inherits(self) -> bool:
        """Whether it sets `inherit`, null included."""
        return "inherit" in self.model_fields_set

    def setting(self) -> tuple[object, ...]:
        """What a control shares with it."""
        return self.inherits(), self.inherit, self.epochs


PLAIN = Arm(name=CONTROL, methods=()).setting()


OF_ARMS = frozenset({"name", "teacher", "methods", "student", "seed"})
"""Fields of a job that a study says in its own way."""
TAUGHT = frozenset({"teachers", "unlabelled"})
"""Fields that only jobs with methods have a use for; controls are without them."""
Shared = create_model(
    "Shared",
    __base__=Spec,
    **{name: (field.annotation, field) for name, field in SubmitJob.model_fields.items() if name not in OF_ARMS},
)  # type: ignore[call-overload]  # mypy does not follow the fields
"""All other fields of a job, whatever they are: each job of a study gets them as they are."""


class SubmitStudy(Shared):
    """The body of POST /v1/studies: a job's, with arms, students and seeds in place of methods, student and seed."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: Name
    """Its jobs are called "NAME / ARM / seed N"."""
    teacher: TeacherRef | None = None
    """Of all arms with methods."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=64)]
    """What is compared. Each has a name of its own."""
    students: Annotated[tuple[DetectorSpec, ...], Field(min_length=1, max_length=32)]
    """Every arm trains each of them."""
    seeds: Annotated[Seeds, Field(min_length=1)]
    """Each arm and student is trained once with each seed. Jobs of one seed see the same images in the same order and
    begin with the same weights, so they are compared pair by pair. An interval needs at least two."""
    control: Bool = True
    """Add the arms without methods that the others are compared with, where none of `arms` is such a one."""


class ExtendStudy(Spec):
    """The body of POST /v1/studies/{id}/extend. What the study has already is left as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"seeds": [3, 4]}]})

    seeds: Seeds = ()
    """For all arms and students."""
    arms: Annotated[tuple[Arm, ...], Field(max_length=64)] = ()
    """For all students and seeds."""


@dataclass(frozen=True)
class Planned:
    """An arm of a study, and what it is compared with."""

    arm: Arm
    against: str | None
    place: int
    """In the body's list, of the arm whose settings these are: an added control has those of the arm it is for."""


@dataclass(frozen=True)
class Run:
    """One arm and one student: a job for each seed."""

    arm: str
    student: str
    job: SubmitJob
    """Resolved; its name and seed are still to be filled in."""
    pointer: Callable[[str], str]
    """A pointer into the job's spec -> the place in the body that it comes from."""


def planned(body: SubmitStudy) -> list[Planned]:
    """The arms of a study, controls first. Raises Invalid for names that are taken, or that no arm has."""
    names = [arm.name for arm in body.arms]
    faults = [
        Fault(f"/arms/{place}/name", "name_taken", f"another arm is called {name!r}; each needs a name of its own")
        for place, name in enumerate(names)
        if name in names[:place]
    ]
    faults += [
        Fault(f"/arms/{place}/name", "name_taken", f"{CONTROL!r} is the name of an arm without methods; take another")
        for place, arm in enumerate(body.arms)
        if arm.name == CONTROL and (arm.methods or arm.setting() != PLAIN)
    ]
    added = _added_controls(body.arms) if body.control and not faults else []
    faults += [
        Fault(
            f"/arms/{names.index(arm.name)}/name",
            "name_taken",
            f"{arm.name!r} is the name of the control that is added for {names[place]!r}; take another",
        )
        for arm, place in added
        if arm.name in names
    ]
    arms = [*added, *((arm, place) for place, arm in enumerate(body.arms))]
    faults += [
        Fault(f"/arms/{place}/against", "arm_not_found", _no_arm(arm, [other.name for other, _ in arms]))
        for arm, place in arms
        if arm.against is not None and (arm.against == arm.name or arm.against not in {other.name for other, _ in arms})
    ]
    if faults:
        raise Invalid(*faults)
    return [Planned(arm, arm.against or _control_of(arm, [other for other, _ in arms]), place) for arm, place in arms]


def runs(body: SubmitStudy, arms: Sequence[Planned]) -> list[Run]:
    """Every arm with every student. Raises Invalid with all faults of all of them."""
    faults = list(_faults_of_the_whole(body, arms))
    found = list[Run]()
    for each, (place, label) in itertools.product(arms, enumerate(labels(body.students))):
        if not _needs_teacher(body, each.arm):  # that is reported once
            pointer = _Pointers(each, place)
            sent = _job(body, each.arm, place)
            try:
                found.append(Run(each.arm.name, label, presets.resolve(SubmitJob.model_validate(sent)), pointer))
            except ValidationError as error:
                faults += [
                    Fault(pointer(fault.pointer), fault.code, f"{fault.detail} ({each.arm.name}, {label})")
                    for fault in faults_of_spec(error.errors(), sent)
                ]
    if faults:
        raise Invalid(*dict.fromkeys(faults))
    return found


def labels(students: Sequence[DetectorSpec]) -> list[str]:
    """What students are called: their titles, and where these are alike whatever else differs."""
    students = _with_norms(students)
    titles = [student.title() for student in students]
    alike = [[other for other, title in zip(students, titles, strict=True) if title == each] for each in titles]
    return [
        ", ".join([title, *_differing(student, others)])
        for student, title, others in zip(students, titles, alike, strict=True)
    ]


def job_name(study: str, arm: str, student: str | None, seed: int) -> str:
    """ "STUDY / ARM / STUDENT / seed N"; what is too long is cut. student: None where there is but one."""
    rest = f" / {arm}" + (f" / {student}"[:30] if student is not None else "") + f" / seed {seed}"
    return study[: MAX_NAME - len(rest)] + rest


def _added_controls(arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    added: list[tuple[Arm, int]] = []
    for place, arm in enumerate(arms):
        wanted = arm.setting() if arm.methods else PLAIN
        there = any(not other.methods and other.setting() == wanted for other in (*arms, *(each for each, _ in added)))
        if arm.against is None and not there:
            name = CONTROL if wanted == PLAIN else f"{CONTROL} of {arm.name}"[:40]
            sent = {"name": name, "methods": (), **({} if wanted == PLAIN else _own(arm))}
            added.append((Arm.model_validate(sent), place))
    return added


def _own(arm: Arm) -> dict[str, Any]:
    own = {"epochs": arm.epochs} if arm.epochs is not None else {}
    return own | ({"inherit": arm.inherit} if arm.inherits() else {})


def _control_of(arm: Arm, arms: Sequence[Arm]) -> str | None:
    wanted = arm.setting() if arm.methods else PLAIN
    return next(
        (other.name for other in arms if not other.methods and other.setting() == wanted and other != arm), None
    )


def _no_arm(arm: Arm, names: Sequence[str]) -> str:
    others = ", ".join(repr(name) for name in names if name != arm.name)
    what = "is this arm itself" if arm.against == arm.name else "is no arm of this study"
    return f"{arm.against!r} {what}; name one of {others or 'several: add another arm'}"


def _faults_of_the_whole(body: SubmitStudy, arms: Sequence[Planned]) -> Iterator[Fault]:
    if without := [each.arm.name for each in arms if _needs_teacher(body, each.arm)]:
        detail = f"methods need a teacher, and {without[0]!r} has methods: name one here, or in that arm"
        yield Fault("/teacher", "teacher_missing", detail)
    if body.teacher is not None and not any(_learns_from_teacher(each.arm) and not each.arm.teacher for each in arms):
        yield Fault("/teacher", "teacher_without_methods", "no arm learns from this teacher: leave it out")
    for each in arms:
        if each.arm.teacher is not None and not each.arm.methods:
            detail = "a teacher without methods teaches nothing: add a method, or leave it out"
            yield Fault(f"/arms/{each.place}/teacher", "teacher_without_methods", detail)
    for name, values in (("students", _with_norms(body.students)), ("seeds", body.seeds)):
        for place, value in enumerate(values):
            if value in values[:place]:
                yield Fault(f"/{name}/{place}", "given_twice", f"it stands in {name} already: leave it out")


def _learns_from_teacher(arm: Arm) -> bool:
    """From `teacher`; a method may name one of `teachers` instead."""
    return any(getattr(method, "teacher", None) is None for method in arm.methods)


def _needs_teacher(body: SubmitStudy, arm: Arm) -> bool:
    return _learns_from_teacher(arm) and arm.teacher is None and body.teacher is None


def _job(body: SubmitStudy, arm: Arm, student: int) -> dict[str, Any]:
    """The body of a job, as it would have been sent."""
    sent = body.model_dump(mode="json", exclude_unset=True)
    theirs = arm.model_dump(mode="json", exclude_unset=True)
    network = sent["students"][student] | ({"inherit": theirs["inherit"]} if arm.inherits() else {})
    schedule = sent.get("schedule", {}) | ({"epochs": arm.epochs} if arm.epochs is not None else {})
    shared = {name: value for name, value in sent.items() if name in Shared.model_fields}
    if not arm.methods:
        shared = {name: value for name, value in shared.items() if name not in TAUGHT}
    elif "teachers" in shared:
        named = {getattr(method, "teacher", None) for method in arm.methods}
        shared["teachers"] = {name: teacher for name, teacher in shared["teachers"].items() if name in named}
    teacher = theirs.get("teacher") or sent.get("teacher")
    return {
        **shared,
        **{name: theirs[name] for name in ("unlabelled",) if name in theirs},
        "name": body.name,
        "teacher": teacher if _learns_from_teacher(arm) else None,
        "student": network,
        "methods": theirs["methods"],
        "schedule": schedule,
    }


@dataclass(frozen=True)
class _Pointers:
    """Of one arm's and one student's jobs."""

    planned: Planned
    student: int

    def __call__(self, pointer: str) -> str:
        arm, own = self.planned.arm, f"/arms/{self.planned.place}"
        if pointer.startswith("/methods"):
            return own + pointer
        if pointer.startswith("/student/inherit") and arm.inherits():
            return own + pointer.removeprefix("/student")
        if pointer.startswith("/student"):
            return f"/students/{self.student}" + pointer.removeprefix("/student")
        if pointer.startswith("/teacher") and arm.teacher is not None:
            return own + pointer
        if pointer.startswith("/unlabelled") and "unlabelled" in arm.model_fields_set:
            return own + pointer
        if pointer.startswith("/schedule/epochs") and arm.epochs is not None:
            return f"{own}/epochs"
        return pointer


def _differing(student: DetectorSpec, alike: Sequence[DetectorSpec]) -> list[str]:
    return [
        f"{name} {_word(value)}" for name, value in student if any(getattr(other, name) != value for other in alike)
    ]


def _with_norms(students: Sequence[DetectorSpec]) -> list[DetectorSpec]:
    return [student.but(norm=student.trunk_norm()) for student in students]


def _word(value: object) -> object:
    """Of a reference the id or path alone."""
    return next(iter(value))[1] if isinstance(value, Spec) else value
