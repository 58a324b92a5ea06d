"""Several teachers in one job: what is asked, what is refused and where, and what of it is known before it runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fgd.cli.plan_lines import outline_lines
from fgd.detector_specs import FCOS, FasterRCNN
from fgd.engine.identity import checkpoint_digest, lean_spec
from fgd.errors import SpecError
from fgd.method_specs import MethodSpec, title
from fgd.methods import build
from fgd.methods.base import Pair
from fgd.outline import outline
from fgd.presets import resolve
from fgd.recipe import Recipe
from fgd.references import named_weights
from fgd.spec import JobSpec, Schedule, SubmitJob
from fgd.spec_fields import members
from fgd.text.pointers import faults_of_spec
from fgd.types import Calibration

IMAGES = {"train": 25, "val": 5}
PLAIN = {"name": "x", "teacher": None, "methods": [], "student": {"fpn_channels": 64}, "dataset": {"path": "/x"}}
CLASSES = ("WBC", "RBC", "Platelets")


def body(teacher: str | None, names: str, *methods: tuple[str, str | None], **changes: Any) -> dict[str, Any]:
    return PLAIN | {
        "teacher": {"path": teacher} if teacher else None,
        "teachers": {name: {"path": f"/{name}"} for name in names.split()},
        "methods": [{"kind": kind, "teacher": name} for kind, name in methods],
        **changes,
    }


def spec(*asked: Any, **changes: Any) -> JobSpec:
    return JobSpec.model_validate(body(*asked, **changes))


def recipe(*classes: str, detector: FCOS | FasterRCNN | None = None) -> Recipe:
    return Recipe(detector=detector or FCOS(fpn_channels=96), classes=classes, min_size=64, max_size=64)


def test_each_method_names_its_teacher() -> None:
    job = spec("/t", "cells big", ("fgd", None), ("fgd", "cells"), ("pkd", "cells"), ("mimic", "big"))
    assert list(job.teacher_refs()) == ["", "cells", "big"]
    assert [title(method) for method in job.methods] == ["fgd", "fgd@cells", "pkd@cells", "mimic@big"]
    assert [method.kind for method in job.methods_of("cells")] == ["fgd", "pkd"]
    assert job.needs("big") == {"features"}
    assert spec("/t", "cells", ("fgd", None), ("crosskd", "cells")).needs("") == {"features"}


def test_all_teachers_may_have_names() -> None:
    assert list(spec(None, "a b", ("fgd", "a"), ("fgd", "b")).teacher_refs()) == ["a", "b"]


FAULTY: list[tuple[tuple[Any, ...], str, str]] = [
    (("/t", "cells", ("fgd", None), ("mimic", "cell")), "/methods/1/teacher", "there is no teacher 'cell' in"),
    (("/t", "", ("fgd", "cells")), "/methods/0/teacher", "it is empty"),
    ((None, "cells", ("fgd", "cells"), ("mimic", None)), "/methods/1/teacher", "name one of /teachers: cells"),
    (("/t", "cells", ("fgd", None)), "/teachers/cells", "no method learns from this teacher"),
    (("/t", "cells", ("fgd", "cells")), "/teacher", "no method learns from this teacher"),
    (("/t", "cells"), "/methods", "teaches nothing"),
    ((None, "cells"), "/methods", "teaches nothing"),
    ((None, "", ("fgd", None)), "/methods", "methods need a teacher"),
    ((None, "a", ("fgd", "a"), ("fgd", "a")), "/methods", "only once for a teacher, got ['fgd@a', 'fgd@a']"),
    (("/t", "", ("fgd", None), ("fgd", None)), "/methods", "only once, got ['fgd', 'fgd']"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "pointer", "words"), FAULTY)
@pytest.mark.parametrize("kind", [JobSpec, SubmitJob])
def test_what_does_not_fit_is_refused_where_it_stands(
    kind: type[JobSpec], asked: tuple[Any, ...], pointer: str, words: str
) -> None:
    sent = body(*asked)
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(sent)
    (fault,) = faults_of_spec(refused.value.errors(), sent)
    assert fault.pointer == pointer
    assert words in fault.detail


@pytest.mark.parametrize("name", ["", "Cells", "a/b", "a.b", "a@b", "a b", "-a", "x" * 33])
def test_a_name_is_part_of_names_of_terms(name: str) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate(PLAIN | {"teachers": {name: {"path": "/t"}}, "methods": [{"kind": "fgd"}]})


def test_only_the_maps_of_one_teacher_can_be_kept() -> None:
    kept = {"resources": {"teacher_cache_gib": 1.0}}
    assert spec(None, "a", ("fgd", "a"), **kept).resources.teacher_cache_gib == 1.0
    sent = body("/t", "a", ("fgd", None), ("fgd", "a"), **kept)
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(sent)
    (fault,) = faults_of_spec(refused.value.errors(), sent)
    assert (fault.pointer, "the job has 2" in fault.detail) == ("/resources/teacher_cache_gib", True)


def test_a_spec_of_one_teacher_says_nothing_of_others() -> None:
    """What is stored, shown, and hashed is what it was before a job could have several."""
    for sent in (PLAIN, PLAIN | {"teacher": {"path": "/t"}, "methods": [{"kind": "fgd"}]}):
        told = resolve(JobSpec.model_validate(sent)).model_dump(mode="json")
        assert "teachers" not in told
        assert all("teacher" not in method for method in told["methods"])
        with_none = sent | {"teachers": {}, "methods": [each | {"teacher": None} for each in sent["methods"]]}
        assert JobSpec.model_validate(with_none) == JobSpec.model_validate(sent)


def test_a_checkpoint_knows_which_teacher_a_method_has_and_not_where_it_lies() -> None:
    job = spec("/t", "a b", ("fgd", None), ("mimic", "a"), ("pkd", "b"))
    elsewhere = {name: ref.but(path="/elsewhere") for name, ref in job.teachers.items()}
    swapped = spec("/t", "a b", ("fgd", None), ("mimic", "b"), ("pkd", "a"))
    of_digests = {"teacher": "1", "teachers": {"a": "2", "b": "3"}}
    assert checkpoint_digest(job.but(teachers=elsewhere), of_digests) == checkpoint_digest(job, of_digests)
    assert checkpoint_digest(swapped, of_digests) != checkpoint_digest(job, of_digests)
    assert "teachers" not in lean_spec(job)


def test_each_teachers_weights_have_a_role_of_their_own() -> None:
    named = named_weights(spec("/t", "cells", ("fgd", None), ("fgd", "cells")))
    assert [(each.role, each.noun, each.pointer) for each in named] == [
        ("teacher", "teacher", "/teacher"),
        ("teachers/cells", "teacher", "/teachers/cells"),
    ]


# --- classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "theirs", "words"),
    [
        (("/t", "", ("crosskd", None)), ("person",), "crosskd compares class by class"),
        (("/t", "a", ("fgd", None), ("fgd", "a")), ("person",), "of several teachers each teaches the classes"),
    ],
)
def test_a_teacher_without_a_class_in_common_is_refused(asked: tuple[Any, ...], theirs: Any, words: str) -> None:
    with pytest.raises(SpecError, match="it knows person; the data set has WBC, RBC, Platelets") as refused:
        spec(*asked).refuse_foreign(CLASSES, theirs)
    assert words in str(refused.value)
    assert refused.value.pointer == "/teacher"


def test_maps_of_a_lone_teacher_have_no_classes() -> None:
    spec("/t", "", ("fgd", None)).refuse_foreign(CLASSES, ("person",))
    spec("/t", "", ("crosskd", None)).refuse_foreign(CLASSES, ("person", "rbc"))


def test_the_outline_says_what_each_teaches_and_which_head_runs() -> None:
    job = spec("/t", "wbc", ("crosskd", None), ("pkd", "wbc"))
    teachers = {"": recipe("RBC", "platelets", detector=FCOS(fpn_channels=64)), "wbc": recipe("WBC", "x")}
    known = outline(job, IMAGES, teachers, CLASSES)
    first, second = known.teachers
    assert (first.teacher, first.head_for, first.classes) == (None, ("crosskd",), ("RBC", "Platelets"))
    assert (second.teacher, second.head_for, second.classes) == ("wbc", (), ("WBC",))
    assert second.channels == dict.fromkeys(("p3", "p4", "p5", "p6", "p7"), 96)
    assert [(warned.pointer, warned.message[:25]) for warned in known.warnings] == [
        ("/teacher", "the teacher knows 2 of th"),
        ("/teachers/wbc", "the teacher knows 1 of th"),
    ]
    lines = [line for line in outline_lines(known) if line.startswith("teacher")]
    assert lines == [
        "teacher    FCOS R18, FPN 64: crosskd; trunk, neck, and head for crosskd; teaches RBC, Platelets",
        "teacher    wbc, FCOS R18, FPN 96: pkd; trunk and neck; teaches WBC",
    ]


def test_a_pair_that_does_not_fit_is_refused_at_the_method_or_the_teacher() -> None:
    job = spec("/t", "two", ("fgd", None), ("crosskd", "two"))
    with pytest.raises(SpecError) as refused:
        job.refuse_pair(FasterRCNN(), "two")
    assert refused.value.pointer == "/methods/1"
    job.refuse_pair(FasterRCNN())


# --- what a method trains ---------------------------------------------------------------------------------------

KINDS = {each.model_fields["kind"].default: each for each in members(MethodSpec)}
PARTLY: list[dict[str, Any]] = [
    *({"kind": kind} for kind in sorted(KINDS)),
    {"kind": "pkd", "levels": 2},
    {"kind": "fkd", "levels": 1, "non_local": 0},
    {"kind": "fkd", "feature": 0, "channel": 0, "spatial": 0},
    {"kind": "frs", "feature": 0},
    {"kind": "gid", "feature": 0, "relation": 0},
    {"kind": "chen2017", "hint": 0},
    {"kind": "defeat", "foreground": 0, "background": 0, "head_foreground": 1},
]


@pytest.mark.parametrize("method", PARTLY, ids=str)
@pytest.mark.parametrize("width", [64, 96])
def test_the_outline_names_an_adapter_where_a_method_has_one(method: dict[str, Any], width: int) -> None:
    """Of each method, in each of its forms, the layers that are built."""
    family = FasterRCNN if method["kind"] in ("chen2017", "defeat") else FCOS
    student, teacher = family(fpn_channels=64), family(fpn_channels=width)
    if method["kind"] in ("ld", "crosskd"):  # no family serves the one; the other trains nothing
        return
    job = resolve(
        JobSpec.model_validate(
            PLAIN | {"teacher": {"path": "/t"}, "methods": [method], "student": student.model_dump()}
        )
    )
    known = outline(job, IMAGES, {"": recipe("x", detector=teacher)})
    pair = Pair.of(student, teacher)
    spec = job.methods[0].but(temperature=0.5, perplexity=None) if method["kind"] == "fgd" else job.methods[0]
    built = build(spec, pair, Calibration(dict.fromkeys(pair.levels, 1.0), 1.0), Schedule())
    trains = {name.split(".")[1] for name, _ in built.named_parameters() if "context" not in name}
    assert {each.level for each in known.adapters if each.layer != "none"} == trains
