"""FGD: the reference's numbers, a slow loop written from the equations, its edges, its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fgd import parity
from fgd.errors import TeacherUnfit
from fgd.method_specs import FGD
from fgd.methods.base import Pair, SharedLevel
from fgd.methods.context import ContextBlock
from fgd.methods.fgd import FGDLoss, TermWeights, weights
from fgd.methods.paired import scales_of
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View

MakeBatch = Callable[[tuple[int, int], Sequence[tuple[int, int]], Sequence[Sequence[Sequence[float]]]], Batch]
Box = tuple[float, float, float, float]
Cell = tuple[int, int]

pytestmark = pytest.mark.numeric
GOLDEN = Path(__file__).parents[2] / "parity"
STRIDES = {"p3": 8, "p4": 16}
CALIBRATION = Calibration(teacher_rms={"p3": 2.0, "p4": 0.5}, boxes_per_image=2.5)
SCHEDULE = Schedule(min_size=32, max_size=48)
SPEC = FGD(alpha=0.3, beta=0.2, gamma=0.07, temperature=0.5, box_cells="tight").but(lambda_=0.01)
STUDENT_CHANNELS, TEACHER_CHANNELS = 3, 8


# --- the slow loop --------------------------------------------------------------------------------------------
# One image, one level, in Python floats: F[c][i][j] over the valid cells only.


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [each / sum(exponentials) for each in exponentials]


def slow_attentions(
    feature_CHW: Tensor, cells: list[Cell], temperature: float
) -> tuple[dict[Cell, float], list[float]]:
    """Equations 4-7."""
    channels = feature_CHW.shape[0]
    spatial = [sum(abs(float(feature_CHW[c, i, j])) for c in range(channels)) / channels for i, j in cells]
    channel = [sum(abs(float(feature_CHW[c, i, j])) for i, j in cells) / len(cells) for c in range(channels)]
    spatial = [len(cells) * share for share in softmax([each / temperature for each in spatial])]
    channel = [channels * share for share in softmax([each / temperature for each in channel])]
    return dict(zip(cells, spatial, strict=True)), channel


def slow_masks(boxes: Sequence[Box], cells: list[Cell], stride: int, how: str | None) -> tuple[dict[Cell, float], ...]:
    """Equations 2 and 3 with the cells of METHODS.md 8, rule 5; cells are squares of `stride` pixels."""
    rows, columns = max(i for i, _ in cells), max(j for _, j in cells)
    foreground = dict.fromkeys(cells, 0.0)
    for x1, y1, x2, y2 in boxes:
        if how == "tight":
            claimed = [(i, j) for i, j in cells if x1 <= (j + 0.5) * stride < x2 and y1 <= (i + 0.5) * stride < y2] or [
                (min(int((y1 + y2) / 2 / stride), rows), min(int((x1 + x2) / 2 / stride), columns))
            ]
        else:
            claimed = [
                (i, j)
                for i, j in cells
                if math.floor(x1 / stride) <= j <= math.ceil(x2 / stride)
                and math.floor(y1 / stride) <= i <= math.ceil(y2 / stride)
            ]
        for cell in claimed:
            foreground[cell] = max(foreground[cell], 1 / len(claimed))
    outside = [cell for cell in cells if foreground[cell] == 0]
    return foreground, {cell: 1 / len(outside) if cell in outside else 0.0 for cell in cells}


def slow_related(feature_CHW: Tensor, cells: list[Cell], block: ContextBlock) -> dict[tuple[int, int, int], float]:
    """Equation 11, R(F)."""
    p = {name: parameter.detach().double() for name, parameter in block.named_parameters()}
    channels = feature_CHW.shape[0]
    logits = [float(sum(p["attend.weight"][0, :, 0, 0] * feature_CHW[:, i, j]) + p["attend.bias"]) for i, j in cells]
    shares = softmax(logits)
    context_C = sum(share * feature_CHW[:, i, j] for share, (i, j) in zip(shares, cells, strict=True))
    hidden = p["transform.0.weight"][:, :, 0, 0] @ context_C + p["transform.0.bias"]
    normal = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
    normal = normal * p["transform.1.weight"].flatten() + p["transform.1.bias"].flatten()
    added_C = p["transform.3.weight"][:, :, 0, 0] @ normal.clamp(min=0) + p["transform.3.bias"]
    return {(c, i, j): float(feature_CHW[c, i, j] + added_C[c]) for c in range(channels) for i, j in cells}


def slow_fgd(
    method: FGDLoss,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    batch: Batch,
    spec: FGD,
    weight: TermWeights,
) -> dict[str, float]:
    """Equations 8, 9 and 12, summed over levels, divided by N."""
    assert spec.temperature is not None
    terms = dict.fromkeys(("fg", "bg", "attention", "global"), 0.0)
    images = len(batch.targets)
    for level, stride in STRIDES.items():
        with torch.no_grad():
            adapted_NCHW = method.align[level](student[level])
        for n, (height, width) in enumerate(batch.image_sizes):
            s = 0.3 / CALIBRATION.teacher_rms[level] * adapted_NCHW[n].double()
            t = 0.3 / CALIBRATION.teacher_rms[level] * teacher[level][n].double()
            cells = [(i, j) for i in range(math.ceil(height / stride)) for j in range(math.ceil(width / stride))]
            triples = [(c, i, j) for c in range(TEACHER_CHANNELS) for i, j in cells]

            spatial_t, channel_t = slow_attentions(t, cells, spec.temperature)
            spatial_s, channel_s = slow_attentions(s, cells, spec.temperature)
            visible = batch.targets[n].boxes_K4.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
            boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in visible.tolist()]
            inside, outside = slow_masks(boxes, cells, stride, spec.box_cells)
            error = {
                (c, i, j): spatial_t[i, j] * channel_t[c] * float(t[c, i, j] - s[c, i, j]) ** 2 for c, i, j in triples
            }
            terms["fg"] += weight.foreground * sum(inside[i, j] * error[c, i, j] for c, i, j in triples) / images
            terms["bg"] += weight.background * sum(outside[i, j] * error[c, i, j] for c, i, j in triples) / images

            spatial = sum(abs(spatial_t[cell] - spatial_s[cell]) for cell in cells)
            channel = sum(abs(a - b) for a, b in zip(channel_t, channel_s, strict=True))
            terms["attention"] += (weight.spatial * spatial + weight.channel * channel) / images

            blocks = (method.teacher_context[level], method.student_context[level])
            related_t, related_s = (slow_related(f, cells, b) for f, b in zip((t, s), blocks, strict=True))  # type: ignore[arg-type]
            terms["global"] += weight.global_ * sum((related_t[k] - related_s[k]) ** 2 for k in triples) / images
    return terms


# --- scenes ---------------------------------------------------------------------------------------------------


def build(spec: FGD = SPEC, student_channels: int = STUDENT_CHANNELS) -> FGDLoss:
    """A method whose context blocks look trained: at their start they add nothing."""
    torch.manual_seed(0)
    method = FGDLoss(spec, Pair.alike(dict(STRIDES), student_channels, TEACHER_CHANNELS), CALIBRATION, SCHEDULE)
    with torch.no_grad():
        for block in (*method.student_context.values(), *method.teacher_context.values()):
            for parameter in block.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    return method


def maps(channels: int, seed: int, images: int = 2, padded: tuple[int, int] = (32, 48)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        level: torch.randn(images, channels, padded[0] // stride, padded[1] // stride, generator=generator)
        for level, stride in STRIDES.items()
    }


@pytest.fixture
def student() -> dict[str, Tensor]:
    return maps(STUDENT_CHANNELS, seed=1)


@pytest.fixture
def teacher() -> dict[str, Tensor]:
    return maps(TEACHER_CHANNELS, seed=2)


@pytest.fixture
def batch(make_batch: MakeBatch) -> Batch:
    """One padded image with nested boxes and a tiny one, beside one that fills the input and holds one box."""
    return make_batch(
        (32, 48),
        [(20, 30), (32, 48)],
        [[(2, 2, 29, 18), (5, 5, 15.5, 14), (17, 9, 18, 10)], [(10, 3, 40, 30)]],
    )


SCENES: dict[str, list[list[Box]]] = {
    "one box each": [[(4, 4, 20, 12)], [(10, 3, 40, 30)]],
    "nested and overlapping": [[(2, 2, 29, 18), (5, 5, 15, 14), (10, 1, 22, 13)], [(0, 0, 30, 20), (16, 8, 48, 32)]],
    "no boxes": [[], []],
    "no boxes beside some": [[], [(10, 3, 40, 30), (1, 1, 9, 9)]],
    "whole image": [[(0, 0, 30, 20)], [(0, 0, 48, 32)]],
    "tiny without a centre": [[(5, 5, 7, 7), (29, 19, 30, 20)], [(17, 17, 18, 18)]],
    "beyond the edges": [[(-10, -7, 9, 9), (20, 10, 60, 40)], [(-3, 5, 60, 70)]],
}


@pytest.mark.parametrize("how", ["tight", "inclusive"])
@pytest.mark.parametrize("boxes", SCENES.values(), ids=SCENES)
def test_equals_a_slow_loop(
    make_batch: MakeBatch, student: dict[str, Tensor], teacher: dict[str, Tensor], boxes: list[list[Box]], how: str
) -> None:
    """In float64. Shares of boxes and scales of levels are float32 all the same: a few roundings of 2^-24, 6e-8."""
    spec = SPEC.but(box_cells=how)
    batch = make_batch((32, 48), [(20, 30), (32, 48)], boxes)
    method = build(spec).double()
    student, teacher = ({level: each.double() for level, each in maps_.items()} for maps_ in (student, teacher))

    expected = slow_fgd(method, student, teacher, batch, spec, method.weights)
    terms = {name: term.item() for name, term in method(View(student), View(teacher), batch).items()}
    assert terms == pytest.approx(expected, rel=1e-6, abs=1e-9)


# --- the reference's numbers ----------------------------------------------------------------------------------


GOLDEN_CASES = ("retinanet_p3_few", "align_and_trained", "fcos_crowd", "no_objects", "whole_image")


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_official_equals_the_reference(name: str) -> None:
    """Within the 1e-5 that is promised: 168 roundings of 2^-24. Kernels take sums in blocks on every processor, so that
    a figure goes through a few dozen; under the limits of `make test-isa` 16 to 19 are seen."""
    cases = parity.load(GOLDEN / "fgd_reference.npz", GOLDEN / "fgd_reference.json")
    figures = next(parity.check(case, arrays) for case, arrays in cases if case.name == name)

    assert [figure for figure in figures if not figure.good] == []
    assert {"raw/fg", "raw/bg", "raw/attention", "raw/global", "total", "grad_student"} < {f.quantity for f in figures}


# --- weights and scales -----------------------------------------------------------------------------------------


def test_default_weights_are_brought_to_the_jobs_geometry() -> None:
    spec = FGD(alpha=1, beta=10, gamma=100, temperature=0.5).but(lambda_=1000)
    pair = Pair.alike({"p3": 8}, 96, 128)
    calibration = Calibration(teacher_rms={"p3": 1.0}, boxes_per_image=3.65)

    scaled = weights(spec, pair, calibration, Schedule(min_size=400, max_size=672))
    assert astuple(scaled) == pytest.approx((1 * 2 * 2, 10 * 2, 100 * 4, 100 * 2, 1000 * 2 * 4))


def test_at_the_reference_geometry_both_weights_are_the_published_ones() -> None:
    pair = Pair.alike({"p3": 8}, 256, 256)
    calibration = Calibration(teacher_rms={"p3": 0.3}, boxes_per_image=7.3)
    schedule = Schedule(min_size=800, max_size=1344)
    official = SPEC.but(compat="official", box_cells=None)

    assert weights(SPEC, pair, calibration, schedule) == weights(official, pair, calibration, schedule)
    by_default, officially = (scales_of(pair, calibration, official=each) for each in (False, True))
    assert by_default == officially == {"p3": 1.0}


def test_a_data_set_without_boxes_has_finite_weights() -> None:
    calibration = Calibration(teacher_rms={}, boxes_per_image=0.0)

    assert math.isfinite(weights(SPEC, Pair.alike({"p3": 8}, 4, 4), calibration, SCHEDULE).foreground)


@pytest.mark.parametrize("compat", ["default", "official"])
def test_levels_of_other_widths_count_as_if_each_were_alone(batch: Batch, compat: str) -> None:
    """Adapters, context blocks and the weights' 256/C are each level's own."""
    spec = SPEC.but(compat=compat, box_cells=None)
    widths = {"p3": (3, 8), "p4": (6, 12)}
    levels = {level: SharedLevel(STRIDES[level], *of_level) for level, of_level in widths.items()}
    student, teacher = ({level: maps(widths[level][place], 1 + place)[level] for level in widths} for place in (0, 1))
    torch.manual_seed(0)
    together = FGDLoss(spec, Pair(levels), CALIBRATION, SCHEDULE)
    with torch.no_grad():
        for parameter in together.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    summed: dict[str, float] = {}
    for level, of_level in levels.items():
        alone = FGDLoss(spec, Pair({level: of_level}), CALIBRATION, SCHEDULE)
        alone.load_state_dict({key: value for key, value in together.state_dict().items() if f".{level}." in key})
        for name, term in alone(View(student), View(teacher), batch).items():
            summed[name] = summed.get(name, 0.0) + term.item()
    found = {name: term.item() for name, term in together(View(student), View(teacher), batch).items()}
    assert found == pytest.approx(summed, rel=1e-5)
    assert len(found) == 4
    assert all(found.values())


@pytest.mark.parametrize("rms", [0.0, math.inf, math.nan])
def test_a_teacher_that_says_nothing_at_a_level_is_unfit(rms: float) -> None:
    calibration = Calibration(teacher_rms={"p3": 1.0, "p4": rms}, boxes_per_image=2.0)

    with pytest.raises(TeacherUnfit, match="p4"):
        FGDLoss(SPEC, Pair.alike(dict(STRIDES), TEACHER_CHANNELS, TEACHER_CHANNELS), calibration, SCHEDULE)


def test_the_magnitude_of_the_teachers_maps_does_not_matter(batch: Batch) -> None:
    pair = Pair.alike(dict(STRIDES), TEACHER_CHANNELS, TEACHER_CHANNELS)
    student, teacher = maps(TEACHER_CHANNELS, seed=1), maps(TEACHER_CHANNELS, seed=2)
    loud = Calibration({level: 8 * rms for level, rms in CALIBRATION.teacher_rms.items()}, CALIBRATION.boxes_per_image)

    before = FGDLoss(SPEC, pair, CALIBRATION, SCHEDULE)(View(student), View(teacher), batch)
    louder = [{level: 8 * feature for level, feature in features.items()} for features in (student, teacher)]
    assert FGDLoss(SPEC, pair, loud, SCHEDULE)(*map(View, louder), batch) == before, (
        "a power of two changes no rounding"
    )


# --- the edges --------------------------------------------------------------------------------------------------


def test_equal_maps_cost_nothing(batch: Batch) -> None:
    features = maps(TEACHER_CHANNELS, seed=1)
    method = FGDLoss(SPEC, Pair.alike(dict(STRIDES), TEACHER_CHANNELS, TEACHER_CHANNELS), CALIBRATION, SCHEDULE)

    assert not any(method(View(features), View(features), batch).values())


def test_context_blocks_start_as_the_identity() -> None:
    block = ContextBlock(8)
    parameters = dict(block.named_parameters())

    assert not block(torch.randn(2, 8)).any()
    zero = {name for name, parameter in parameters.items() if not parameter.any()}
    assert zero == {"attend.bias", "transform.1.bias", "transform.3.weight", "transform.3.bias"}


def test_without_boxes_there_is_no_foreground(
    make_batch: MakeBatch, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> None:
    terms = build()(View(student), View(teacher), make_batch((32, 48), [(20, 30), (32, 48)], [[], []]))

    assert terms["fg"] == 0
    assert terms["bg"] > 0


def test_a_box_over_the_whole_image_leaves_no_background(
    make_batch: MakeBatch, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> None:
    whole = [[(0, 0, 48, 32)], [(0, 0, 48, 32)]]
    terms = build()(View(student), View(teacher), make_batch((32, 48), [(32, 48), (32, 48)], whole))

    assert terms["fg"] > 0
    assert terms["bg"] == 0


def test_padding_does_not_count(batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
    method = build()
    before = method(View(student), View(teacher), batch)

    student["p3"][0, :, 3:], student["p4"][0, :, :, 2:] = 100, -100
    teacher["p3"][0, :, :, 4:], teacher["p4"][0, :, :, 2:] = -100, 100
    assert method(View(student), View(teacher), batch) == before, "times 0 it adds 0, in any order"


def test_constant_maps_give_finite_terms_and_gradients(batch: Batch) -> None:
    method = build()
    student = {
        level: torch.zeros_like(feature).requires_grad_() for level, feature in maps(STUDENT_CHANNELS, seed=0).items()
    }
    teacher = {level: torch.zeros_like(feature) for level, feature in maps(TEACHER_CHANNELS, seed=0).items()}
    sum(method(View(student), View(teacher), batch).values()).backward()

    assert all(feature.grad is not None and feature.grad.isfinite().all() for feature in student.values())
    assert all(value.grad is not None and value.grad.isfinite().all() for value in method.parameters())


@pytest.mark.parametrize("compat", ["default", "official"])
def test_a_crowd_on_a_large_map_stays_finite(make_batch: MakeBatch, compat: str) -> None:
    corners = torch.rand(300, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([700.0, 700, 100, 100])
    batch = make_batch((800, 800), [(800, 800)], [[(x, y, x + w, y + h) for x, y, w, h in corners.tolist()]])
    method = build(SPEC.but(compat=compat, box_cells=None))
    terms = method(
        View(maps(STUDENT_CHANNELS, 1, images=1, padded=(800, 800))),
        View(maps(TEACHER_CHANNELS, 2, images=1, padded=(800, 800))),
        batch,
    )

    assert all(term.isfinite() and term > 0 for term in terms.values())


def test_half_precision_maps_are_summed_in_float32(
    batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> None:
    method = build()
    half = [
        {level: (50 * feature).bfloat16() for level, feature in features.items()} for features in (student, teacher)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        terms = method(*map(View, half), batch)

    upcast = [{level: feature.float() for level, feature in features.items()} for features in half]
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms == method(*map(View, upcast), batch), "the same sums of the same values"


def test_maps_of_different_sizes_are_refused(
    batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> None:
    teacher["p4"] = teacher["p4"][:, :, :1]

    with pytest.raises(AssertionError, match="p4"):
        build()(View(student), View(teacher), batch)


# --- gradients and switches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compat", ["default", "official"])
def test_gradients_reach_student_adapters_and_context_and_not_the_teacher(
    batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor], compat: str
) -> None:
    method = build(SPEC.but(compat=compat, box_cells=None))
    for feature in (*student.values(), *teacher.values()):
        feature.requires_grad_()
    sum(method(View(student), View(teacher), batch).values()).backward()

    assert all(feature.grad is not None and feature.grad.any() for feature in student.values())
    assert all(feature.grad is None for feature in teacher.values())
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        # A constant under a softmax changes nothing.
        assert parameter.grad.any() or name.endswith("attend.bias"), name


def test_each_term_alone_reaches_the_student(
    batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> None:
    feature_NCHW = student["p3"].requires_grad_()
    for name, term in build()(View(student), View(teacher), batch).items():
        (gradient_NCHW,) = torch.autograd.grad(term, feature_NCHW, retain_graph=True)
        assert gradient_NCHW.any(), name


VARIANTS = {
    "focal only": ({"lambda_": 0}, {"fg", "bg", "attention"}),
    "global only": ({"alpha": 0, "beta": 0, "gamma": 0}, {"global"}),
    "foreground only": ({"beta": 0}, {"fg", "attention", "global"}),
    "background only": ({"alpha": 0}, {"bg", "attention", "global"}),
    "attention only": ({"alpha": 0, "beta": 0, "lambda_": 0}, {"attention"}),
    "imitation only": ({"gamma": 0, "lambda_": 0}, {"fg", "bg"}),
    "nothing": ({"alpha": 0, "beta": 0, "gamma": 0, "lambda_": 0}, set()),
}


@pytest.mark.parametrize(("changes", "present"), VARIANTS.values(), ids=VARIANTS)
def test_a_term_switched_off_leaves_the_others_as_they_were(
    batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor], changes: dict[str, float], present: set[str]
) -> None:
    whole, part = build(), build(SPEC.but(**changes))
    part.load_state_dict({name: value for name, value in whole.state_dict().items() if name in part.state_dict()})

    terms = whole(View(student), View(teacher), batch)
    kept = {name: term for name, term in terms.items() if name in present}
    assert part(View(student), View(teacher), batch) == kept, "by the same calls"


@pytest.mark.parametrize(("changes", "present"), VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_of_a_variant_gets_a_gradient(
    batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor], changes: dict[str, float], present: set[str]
) -> None:
    method = build(SPEC.but(**changes))
    if present:
        sum(method(View(student), View(teacher), batch).values()).backward()

    modules = {name.split(".")[0] for name, _ in method.named_parameters()}
    contexts = {"student_context", "teacher_context"} if "global" in present else set()
    assert modules == ({"align"} if present else set()) | contexts
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_equal_widths_make_no_adapter() -> None:
    method = build(SPEC.but(lambda_=0), student_channels=TEACHER_CHANNELS)

    assert list(method.parameters()) == []


def test_a_frozen_teacher_context_is_not_trained(
    batch: Batch, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> None:
    method = build(SPEC.but(freeze_teacher_gc=True))
    sum(method(View(student), View(teacher), batch).values()).backward()

    assert all(parameter.grad is None for parameter in method.teacher_context.parameters())
    assert all(parameter.grad is not None for parameter in method.student_context.parameters())
