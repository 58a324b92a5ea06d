"""What is known of a job without trying it."""

from __future__ import annotations

from typing import Any

import pytest

from fgd.cli.plan_lines import outline_lines
from fgd.detector_specs import FCOS, DetectorSpec
from fgd.errors import SpecError
from fgd.outline import Outline, outline, refuse_single_values, squarest_of
from fgd.recipe import Recipe
from fgd.spec import JobSpec, Schedule

IMAGES = {"train": 25, "val": 5, "test": 3}


def spec(schedule: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    plain = {"name": "x", "teacher": None, "methods": [], "student": {"fpn_channels": 64}, "dataset": {"path": "/x"}}
    return JobSpec.model_validate(plain | {"schedule": schedule or {}} | changes)


def distilled(teacher: DetectorSpec, **schedule: Any) -> Outline:
    methods = [{"kind": "fgd"}, {"kind": "mimic"}]
    return outline(spec(schedule, teacher={"path": "/t"}, methods=methods), IMAGES, {"": recipe(teacher)})


def recipe(network: DetectorSpec, *classes: str) -> Recipe:
    return Recipe(detector=network, classes=classes or ("cell",), min_size=64, max_size=64)


def test_steps_are_counted_in_updates_and_what_is_left_over_is_told() -> None:
    known = outline(spec({"epochs": 7, "batch_size": 4, "accumulate": 2, "evaluate_every": 3}), IMAGES)
    assert (known.images_per_step, known.steps_per_epoch, known.left_over, known.total_steps) == (8, 3, 1, 21)
    assert known.evaluations == 3, "after epochs 3, 6 and the last"
    assert known.images == IMAGES


def test_unlabelled_images_are_counted_and_settings_without_effect_are_told() -> None:
    def made(images: dict[str, int] = IMAGES | {"unlabelled": 5}, **unlabelled: Any) -> Outline:
        methods = [{"kind": "mimic"}]
        job = spec({"batch_size": 4}, teacher={"path": "/t"}, methods=methods, unlabelled=unlabelled)
        return outline(job, images, {"": recipe(FCOS(), "a", "b")}, ("a", "b"))

    assert (made(ratio=1.5).unlabelled_per_step, outline(spec(), IMAGES).unlabelled_per_step) == (6, 0)
    assert made(ratio=1.5).warnings == ()
    for settings, pointer in (
        ({"weight": 0.5}, "/unlabelled/weight"),
        ({"weight": 0.0, "pseudo_labels": True}, "/unlabelled/pseudo_labels"),
    ):
        assert [warned.pointer for warned in made(**settings).warnings] == [pointer]
    with pytest.raises(SpecError, match="no unlabelled split") as refused:
        made(IMAGES)
    assert refused.value.pointer == "/unlabelled"


def test_levels_and_adapters_of_a_pair_of_different_widths() -> None:
    known = distilled(FCOS(fpn_channels=96))
    assert [(each.name, each.stride) for each in known.levels] == [
        ("p3", 8), ("p4", 16), ("p5", 32), ("p6", 64), ("p7", 128)
    ]  # fmt: skip
    assert {(each.student_channels, each.teacher_channels) for each in known.levels} == {(64, 96)}
    assert [(each.method, each.level) for each in known.adapters] == [
        (method, level) for method in ("fgd", "mimic") for level in ("p3", "p4", "p5", "p6", "p7")
    ]
    assert {(each.layer, each.from_channels, each.to_channels) for each in known.adapters} == {
        ("1x1 convolution", 64, 96)
    }


def test_equal_widths_need_no_adapter_and_a_plain_training_has_none() -> None:
    assert {each.layer for each in distilled(FCOS(fpn_channels=64)).adapters} == {"none"}
    plain = outline(spec(), IMAGES)
    assert plain.adapters == ()
    assert {each.teacher_channels for each in plain.levels} == {None}


def test_sizes_are_those_of_the_scales() -> None:
    known = outline(spec({"min_size": 240, "max_size": 320, "scales": [120, 240, 480]}), IMAGES)
    assert [(each.min_size, each.max_size) for each in known.sizes] == [(120, 160), (240, 320), (480, 640)]
    assert [(each.min_size, each.max_size) for each in outline(spec(), IMAGES).sizes] == [(240, 320)]


@pytest.mark.parametrize(
    ("schedule", "pointer"),
    [
        ({"batch_size": 26}, "/schedule/batch_size"),
        ({"batch_size": 13, "accumulate": 2}, "/schedule/accumulate"),
    ],
)
def test_a_step_larger_than_the_set_is_refused(schedule: dict[str, Any], pointer: str) -> None:
    with pytest.raises(SpecError) as refused:
        outline(spec(schedule), IMAGES)
    assert refused.value.pointer == pointer


NO_EFFECT: list[tuple[dict[str, Any], str]] = [
    ({"scales": [240]}, "scales"),
    ({"augment": {"photometric": {}}}, "augment/photometric"),
    ({"augment": {"crop": {"probability": 0}}}, "augment/crop"),
    ({"augment": {"crop": {"min_area": 1, "max_aspect_change": 1}}}, "augment/crop"),
    ({"augment": {"crop": {"min_share": 0.9}}}, "augment/crop/min_share"),
    ({"early_stop": {"patience": 11}}, "early_stop/patience"),
    ({"evaluate_every": 20}, "evaluate_every"),
    ({"lr_schedule": {"kind": "cosine", "warmup_steps": 500}}, "lr_schedule/warmup_steps"),
    ({"lr_schedule": {"kind": "step", "warmup_steps": 0, "milestones": [8, 12]}}, "lr_schedule/milestones"),
]


@pytest.mark.parametrize(("schedule", "field"), NO_EFFECT)
def test_a_setting_without_effect_is_named(schedule: dict[str, Any], field: str) -> None:
    known = outline(spec(schedule), IMAGES)
    assert [warned.pointer for warned in known.warnings] == [f"/schedule/{field}"]


def test_settings_with_an_effect_are_not_warned_of() -> None:
    schedule = Schedule.model_validate(
        {
            "scales": [240, 320], "ema": {}, "early_stop": {"patience": 3}, "accumulate": 2, "evaluate_every": 2,
            "augment": {"photometric": {"hue": 0.1}, "crop": {"keep": "share", "min_share": 0.9}},
            "lr_schedule": {"kind": "step", "warmup_steps": 5, "milestones": [8]},
        }
    )  # fmt: skip
    assert outline(spec().but(schedule=schedule), IMAGES).warnings == ()
    assert outline(spec(), IMAGES).warnings == ()


def test_a_teachers_cache_that_nothing_is_read_from_is_told() -> None:
    kept, taught = {"teacher_cache_gib": 1.0}, {"teacher": {"path": "/t"}, "methods": [{"kind": "fgd"}]}
    for idle, why in (
        (spec(resources=kept), "no teacher"),
        (spec({"epochs": 1}, resources=kept, **taught), "one epoch"),
    ):
        (warned,) = outline(idle, IMAGES).warnings
        assert warned.pointer == "/resources/teacher_cache_gib"
        assert why in warned.message
    assert outline(spec(resources=kept, **taught), IMAGES).warnings == ()


def test_a_plans_lines_name_the_levels_of_each_width() -> None:
    known = distilled(FCOS(fpn_channels=96))
    (first, *others) = (each for each in known.adapters if each.method == "fgd")
    wider = first.model_copy(update={"to_channels": 128})
    lines = [line for line in outline_lines(known.model_copy(update={"adapters": (wider, *others)})) if "adapt" in line]
    assert lines == [
        "adapters   fgd: 1x1 convolution on p3, 64 -> 128 channels",
        "adapters   fgd: 1x1 convolution on p4, p5, p6, p7, 64 -> 96 channels",
    ]


# --- what torch would refuse ----------------------------------------------------------------------------------

ONE = {"batch_size": 1, "min_size": 32, "max_size": 64}
UNLABELLED = {"teacher": {"path": "/t"}, "methods": [{"kind": "mimic"}]}
LARGER = {"batch_size": 1, "min_size": 64, "max_size": 96}


@pytest.mark.parametrize(
    ("schedule", "changes", "squarest", "pointer"),
    [
        (ONE, {}, 1.0, "/schedule/batch_size"),
        (ONE, {}, 1.03, "/schedule/batch_size"),
        (ONE | {"max_size": 32}, {}, 4.0, "/schedule/batch_size"),
        (ONE | {"accumulate": 4}, {}, 1.0, "/schedule/batch_size"),
        (LARGER | {"scales": (32, 64)}, {}, 1.0, "/schedule/scales/0"),
        (ONE | {"batch_size": 2}, {"resources": {"devices": 2}}, 1.0, "/resources/devices"),
        (ONE | {"augment": {"crop": {"max_aspect_change": 1.5}}}, {}, 1.4, "/schedule/batch_size"),
        (
            ONE,
            {"student": {"kind": "retinanet", "weights": "IMAGENET1K_V1", "norm": "batch"}},
            1.0,
            "/schedule/batch_size",
        ),
        (ONE, {"student": {"kind": "faster_rcnn", "version": 2, "norm": "group"}}, 1.0, "/schedule/batch_size"),
        (ONE | {"batch_size": 4}, UNLABELLED | {"unlabelled": {"ratio": 0.25}}, 1.0, "/unlabelled/ratio"),
        (
            ONE | {"batch_size": 2, "accumulate": 2},
            UNLABELLED | {"unlabelled": {"ratio": 0.75}},
            1.0,
            "/unlabelled/ratio",
        ),
    ],
)
def test_a_batch_norm_of_one_value_a_channel_is_refused(
    schedule: dict[str, Any], changes: dict[str, Any], squarest: float, pointer: str
) -> None:
    with pytest.raises(SpecError, match="one value a channel") as refused:
        refuse_single_values(spec(schedule, **changes), squarest)
    assert refused.value.pointer == pointer


@pytest.mark.parametrize(
    ("schedule", "changes", "squarest"),
    [
        (ONE, {}, 1.04),
        (ONE | {"batch_size": 2}, {}, 1.0),
        (ONE | {"batch_size": 2}, UNLABELLED | {"unlabelled": {"ratio": 1.0}}, 1.0),
        (ONE | {"batch_size": 4}, {"resources": {"devices": 2}}, 1.0),
        (LARGER, {}, 1.0),
        (LARGER | {"min_size": 33}, {}, 1.0),
        (ONE | {"augment": {"crop": {"max_aspect_change": 1.5}}}, {}, 2.0),
        (ONE | {"augment": {"crop": {"probability": 0.0}}}, {}, 1.4),
        (ONE, {"student": {"norm": "group"}}, 1.0),
        (ONE, {"student": {"weights": "IMAGENET1K_V1"}}, 1.0),
    ],
)
def test_a_batch_norm_of_two_values_a_channel_is_not(
    schedule: dict[str, Any], changes: dict[str, Any], squarest: float
) -> None:
    refuse_single_values(spec(schedule, **changes), squarest)


@pytest.mark.parametrize(
    ("widths", "heights", "squarest"),
    [((64, 64), (48, 48), 4 / 3), ((40, 60), (120, 200), 2.0), ((40, 60), (60, 90), 1.0), ((9, 500), (9, 500), 1.0)],
)
def test_of_ranges_the_image_nearest_to_a_square_counts(
    widths: tuple[int, int], heights: tuple[int, int], squarest: float
) -> None:
    assert squarest_of(widths, heights) == squarest
