"""What holds for every method, whatever it computes: edges, gradients, precision, draws, weights of zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fgd
from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.method_specs import FGD, LD, MethodSpec, Mimic, families_for
from fgd.methods import Method, build
from fgd.presets import PRESETS, complete
from fgd.spec_fields import members
from fgd.types import Calibration, View
from tests.unit.methods.made_up import CALIBRATION, SCHEDULE, WIDTH, batch, batch_on, learnt, leaves, moved, pair, view

KINDS = {method.model_fields["kind"].default: method for method in members(MethodSpec)}
VARIANTS: dict[str, MethodSpec] = {
    "fgd unsplit": FGD(split=False),
    "fgd spatial": FGD(attend="spatial"),
    "fgd channel": FGD(attend="channel"),
    "fgd without attention": FGD(attend="none"),
    "fgd absmax": FGD(attention="absmax"),
    "fgd sq": FGD(attention="sq"),
    "fgd non-local": FGD(global_module="non_local"),
    "fgd relation": FGD(global_module="relation"),
    "mimic inside": Mimic(where="inside"),
    "mimic outside": Mimic(where="outside"),
}


def at_a_temperature(spec: MethodSpec) -> MethodSpec:
    """FGD's are found by the calibration otherwise, which these tests have none of."""
    return spec.but(temperature=0.5) if isinstance(spec, FGD) else spec


ASKED: dict[str, MethodSpec] = {kind: method() for kind, method in KINDS.items()} | VARIANTS
SPECS: dict[str, MethodSpec] = {
    name: complete(at_a_temperature(spec), FasterRCNN if "proposals" in spec.takes() else RetinaNet)
    if type(spec) is not LD
    else spec
    for name, spec in ASKED.items()
}
OFFICIAL = {
    name: complete(KINDS[name](compat="official"), RetinaNet) if name != "ld" else LD(compat="official")
    for name, spec in ASKED.items()
    if "compat" in type(spec).model_fields and name in KINDS
}


def made(spec: MethodSpec, student: int = WIDTH, teacher: int = WIDTH) -> Method:
    torch.manual_seed(0)
    return build(spec, pair(student, teacher), CALIBRATION, SCHEDULE)


def views(spec: MethodSpec) -> tuple[View, View]:
    drawn = "proposals" in spec.takes()
    bins = 5 if "distributions" in spec.takes() else 0
    return learnt(view(1, drawn=drawn, bins=bins)), learnt(view(2, drawn=drawn, bins=bins))


def terms(method: Method, spec: MethodSpec, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return method(*views(spec), batch())


@pytest.mark.parametrize("name", SPECS)
def test_terms_are_finite_and_the_same_again(name: str) -> None:
    """One image has no box, one a box around all of it, and one is smaller than the padded input."""
    method = made(SPECS[name])
    once, again = terms(method, SPECS[name]), terms(method, SPECS[name])

    assert once
    assert all(each.isfinite() and each > 0 for each in once.values()), once
    assert once == again


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", SPECS)
def test_terms_are_the_same_on_another_device(name: str, device: str) -> None:
    spec = SPECS[name]
    method = made(spec)
    expected = {term: value.item() for term, value in terms(method, spec).items()}
    student, teacher = (moved(each, device) for each in views(spec))
    torch.manual_seed(0)
    found = method.to(device)(student, teacher, batch_on(device))

    assert found.keys() == expected.keys()
    for term, value in found.items():
        assert value.device.type == device
        assert value.item() == pytest.approx(expected[term], rel=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_without_boxes_is_legal(name: str) -> None:
    method, (student, teacher) = made(SPECS[name]), views(SPECS[name])
    assert student.predictions is not None
    nothing = tuple(torch.full_like(each, -1) for each in student.predictions.matches or ())
    student = replace(student, predictions=replace(student.predictions, matches=nothing))
    empty = batch()
    targets = tuple(replace(each, boxes_K4=each.boxes_K4[:0], labels_K=each.labels_K[:0]) for each in empty.targets)

    found = method(student, teacher, replace(empty, targets=targets))
    total = torch.stack(list(found.values())).sum()
    total.backward()
    assert total.isfinite()
    assert all(each.grad is not None for each in method.parameters()), "each process must have all gradients"
    assert all(each.grad is None or each.grad.isfinite().all() for each in (*method.parameters(), *leaves(student)))


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_the_student_and_the_methods_own_parameters_and_not_the_teacher(name: str) -> None:
    method, (student, teacher) = made(SPECS[name]), views(SPECS[name])
    torch.stack(list(method(student, teacher, batch()).values())).sum().backward()

    assert any(each.grad is not None and each.grad.any() for each in leaves(student))
    assert all(each.grad is None for each in leaves(teacher))
    assert all(each.grad is not None for each in method.parameters())
    for each in (*leaves(student), *method.parameters()):
        assert each.grad is None or each.grad.isfinite().all()


@pytest.mark.parametrize("name", SPECS)
def test_terms_are_float32_of_half_precision_maps_under_autocast(name: str) -> None:
    spec = SPECS[name]
    method = made(spec)
    student, teacher = (
        replace(each, features={level: map_NCHW.bfloat16() for level, map_NCHW in each.features.items()})
        for each in views(spec)
    )
    full = [
        replace(each, features={level: map_NCHW.float() for level, map_NCHW in each.features.items()})
        for each in (student, teacher)
    ]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = method(student, teacher, batch())
    torch.manual_seed(0)
    expected = method(*full, batch())

    assert all(each.dtype == torch.float32 for each in found.values())
    assert found == expected, "the same sums of the same values"


@pytest.mark.parametrize("kind", ["mgd", "frs", "defeat", "fgfi", "fkd"])
def test_layers_may_train_in_bf16_and_the_sums_are_float32(kind: str) -> None:
    method, lower = made(SPECS[kind]), made(SPECS[kind])
    lower.train_in_bf16(on=True)
    full, found = terms(method, SPECS[kind]), terms(lower, SPECS[kind])

    assert all(each.dtype == torch.float32 for each in found.values())
    assert found != full, "that was not bf16"
    assert all(found[term].item() == pytest.approx(full[term].item(), rel=0.05) for term in full)
    lower.eval()
    assert terms(lower, SPECS[kind]) == full


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_zero_make_no_term_and_no_parameter(name: str) -> None:
    spec = SPECS[name]
    of_no_term = {"shares": None} if isinstance(spec, FGD) else {}
    zero = spec.but(**dict.fromkeys(weights_of(spec), 0.0), **of_no_term)
    method = build(zero, pair(32, 64), CALIBRATION, SCHEDULE)

    assert not zero.teaches()
    assert not list(method.parameters())
    assert method(*views(spec), batch()) == {}


def weights_of(spec: MethodSpec) -> list[str]:
    """Fields of which 0 switches a term off."""
    told = type(spec).model_fields.items()
    return [name for name, field in told if (field.description or "").startswith("Weight of")]


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"crosskd", "frs", "ld"}))
def test_maps_of_another_width_are_adapted_as_the_spec_says(name: str) -> None:
    spec = SPECS[name]
    method = made(spec, 32, WIDTH)
    student = learnt(view(1, 32, drawn="proposals" in spec.takes()))
    found = method(student, views(spec)[1], batch())

    assert torch.stack(list(found.values())).isfinite().all()
    assert spec.adapter(32, WIDTH) != "none"
    assert spec.adapter(WIDTH, WIDTH) == "none" or list(made(spec).parameters())


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_counts_what_is_padded_and_knows_no_calibration(name: str) -> None:
    method = build(OFFICIAL[name], pair(), Calibration(teacher_rms={}, boxes_per_image=0.0), SCHEDULE)
    torch.manual_seed(0)
    found = method(*views(OFFICIAL[name]), batch())

    assert all(each.isfinite() for each in found.values())


MAPS_ALONE = ("pkd", "cwd", "mimic_roi", "tadf", "gid", "chen2017", "relations")
"""Without layers that look at neighbours, and with nothing that is measured in raw features."""


@pytest.mark.parametrize("name", [*MAPS_ALONE, *VARIANTS])
def test_padding_does_not_count(name: str) -> None:
    spec = SPECS[name].but(scores=0.0, boxes=0.0) if name == "gid" else SPECS[name]
    method, (student, teacher) = made(spec), (view(1, drawn=True), view(2, drawn=True))
    torch.manual_seed(0)
    before = method(student, teacher, batch())
    for each, value in ((student, 100.0), (teacher, -100.0)):
        each.features["p3"][2, :, 6:] = value
        each.features["p4"][2, :, :, 4:] = value
    torch.manual_seed(0)
    after = method(student, teacher, batch())

    for term, each in before.items():
        # Pooled maps are interpolated between centres of cells: half a cell of the padding is seen.
        if name in ("mimic_roi", "gid", "relations", "fgd relation") and term != "unsplit":
            assert after[term].isfinite()
        else:
            assert after[term].item() == pytest.approx(each.item(), rel=1e-5), term


WITH_A_SCALE = [*MAPS_ALONE[:-1], "fgd", *(name for name in VARIANTS if name.startswith("fgd"))]
"""Cosines have none, and plain imitation is of maps as they are."""


@pytest.mark.parametrize("name", WITH_A_SCALE)
def test_the_default_does_not_feel_the_scale_of_the_features(name: str) -> None:
    spec = SPECS[name]
    students, teachers = view(1, drawn=True), view(2, drawn=True)
    scaled = [
        replace(each, features={level: 7 * map_NCHW for level, map_NCHW in each.features.items()})
        for each in (students, teachers)
    ]
    calibration = Calibration({level: 7 * rms for level, rms in CALIBRATION.teacher_rms.items()}, 1.0)
    torch.manual_seed(0)
    plain = build(spec, pair(), CALIBRATION, SCHEDULE)
    torch.manual_seed(0)
    other = build(spec, pair(), calibration, SCHEDULE)
    torch.manual_seed(0)
    before = plain(students, teachers, batch())
    torch.manual_seed(0)
    after = other(*scaled, batch())

    for term, each in before.items():
        assert after[term].item() == pytest.approx(each.item(), rel=1e-4), term


@pytest.mark.parametrize("kind", ["mgd", "mimic_roi"])
def test_what_is_drawn_follows_the_steps_seed(kind: str) -> None:
    method = made(SPECS[kind])
    first, again, other = (terms(method, SPECS[kind], seed)["feature"] for seed in (1, 1, 2))

    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("fgd", "mimic")])
def test_a_pair_that_official_cannot_serve_is_refused(kind: str) -> None:
    """Those without adapters say which width to take."""
    spec = KINDS[kind](compat="official") if "compat" in KINDS[kind].model_fields else KINDS[kind]()
    student: DetectorSpec = FCOS(fpn_channels=64)
    why = spec.refusal(student, FCOS(fpn_channels=96))
    if kind in ("pkd", "cwd", "fkd", "defeat", "gid", "crosskd"):
        assert why is not None
        assert "p3" in why
        assert "fpn_channels 96" in why
    else:
        assert why is None
    assert spec.refusal(student, FCOS(fpn_channels=64)) is None


@pytest.mark.parametrize("kind", ["frs", "crosskd", "gid", "ld"])
def test_what_compares_heads_refuses_another_family(kind: str) -> None:
    why = KINDS[kind]().refusal(FCOS(), RetinaNet())

    assert why == (
        f"{kind} compares what the heads say place by place, so both networks must be of one family; the student is "
        "fcos, the teacher retinanet"
    )


def test_every_method_names_its_source() -> None:
    for kind, method in KINDS.items():
        assert method.source, kind
        assert not method.golden or "@" in method.source, "and the commit that was run"
    assert {kind for kind, method in KINDS.items() if not method.golden} == {
        "mimic", "chen2017", "mimic_roi", "tadf", "relations"
    }  # fmt: skip


def test_the_docs_have_a_line_for_every_method_with_the_families_that_serve_it() -> None:
    text = (Path(fgd.__path__[0]).parent / "docs/methods.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    told = {cells[0].strip("`"): cells[-1] for cells in lines if cells[0].strip("`") in KINDS}

    assert told == {kind: ", ".join(families_for(method)) or "none yet" for kind, method in KINDS.items()}


def test_presets_are_complete() -> None:
    for family, numbers in PRESETS.items():
        for kind, preset in numbers.items():
            assert type(preset) is kind
            missing = {name for name, value in complete(preset, family) if value is None}
            assert missing <= {"perplexity", "shares", "teacher"}, "for auto, for rho, for several teachers"
            assert preset.teaches()
