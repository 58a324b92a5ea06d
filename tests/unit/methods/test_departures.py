"""The default and the authors' numbers: the same where nothing of what sets them apart matters, else as documented."""

# N images, K places, C classes

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fgd.detector_specs import RetinaNet
from fgd.method_specs import CWD, FGFI, FKD, FRS, GID, MGD, PKD, CrossKD, DeFeat, MethodSpec
from fgd.methods import build
from fgd.methods.defeat import levels_by_cells, official_levels
from fgd.methods.fgfi import anchors_of, near
from fgd.methods.geometry import Layout
from fgd.methods.paired import finest, per_size, per_width
from fgd.presets import complete
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Target, View
from tests.unit.methods.made_up import CALIBRATION, SCHEDULE, SIZES, STRIDES, batch, pair, view

pytestmark = pytest.mark.numeric
REFERENCE = Schedule(min_size=800, max_size=1344)
WIDE = 256
UNSCALED = Calibration(teacher_rms=dict.fromkeys(STRIDES, 0.3), boxes_per_image=7.3)


def whole() -> Batch:
    """One image without padding."""
    size = (64, 96)
    boxes = torch.tensor([[4.0, 8.0, 30.0, 41.0], [20.0, 20.0, 62.0, 47.0]])
    target = Target(boxes, torch.ones(2, dtype=torch.int64))
    return Batch(torch.zeros(1, 3, *size), (size,), (size,), (target,), (0,))


def first(of: View) -> View:
    """What is said of the first image."""
    assert of.predictions is not None
    made = of.predictions
    predictions = replace(
        made,
        logits_NKC=made.logits_NKC[:1],
        boxes_NKD=made.boxes_NKD[:1],
        matches=made.matches[1:2],  # type: ignore[index]
        held={
            name: {level: tuple(each[:1] for each in maps) for level, maps in levels.items()}
            for name, levels in made.held.items()
        },
    )
    return replace(of, features={level: each[:1] for level, each in of.features.items()}, predictions=predictions)


def terms(spec: MethodSpec) -> dict[str, float]:
    torch.manual_seed(0)
    method = build(complete(spec, RetinaNet), pair(WIDE, WIDE), UNSCALED, REFERENCE)
    torch.manual_seed(0)
    found = method(first(view(1, WIDE)), first(view(2, WIDE)), whole())
    return {name: each.item() for name, each in found.items()}


@pytest.mark.parametrize(
    ("kind", "apart"), [(CWD, 1e-5), (MGD, 1e-5), (FRS, 1e-5), (FKD, 1e-5), (PKD, 0.03), (CrossKD, 1e-5)]
)
def test_at_the_reference_geometry_and_scale_both_are_the_same(kind: type[MethodSpec], apart: float) -> None:
    """Of one unpadded image. PKD's divisor is M - 1 officially, of 24 cells and more."""
    default, official = terms(kind()), terms(kind(compat="official"))  # type: ignore[operator]

    assert default == {name: pytest.approx(value, rel=apart) for name, value in official.items()}


def test_gid_differs_in_the_boxes_alone() -> None:
    default, official = terms(GID()), terms(GID(compat="official"))

    assert default.keys() == official.keys() == {"feature", "relation", "scores", "boxes"}
    for name in ("feature", "relation", "scores"):
        assert default[name] == pytest.approx(official[name], rel=1e-5)
    assert default["boxes"] != pytest.approx(official["boxes"], rel=0.1)


def test_factors_are_the_reference_by_the_jobs() -> None:
    assert per_width(64) == 4.0
    assert per_size(Schedule(min_size=400, max_size=672)) == 4.0


def test_pkd_leaves_out_the_coarsest_levels() -> None:
    assert list(finest(pair(), 1).levels) == ["p3"]
    assert list(finest(pair(), 4).levels) == list(finest(pair(), None).levels) == ["p3", "p4"]
    method = build(PKD(weight=1.0, levels=1), pair(), CALIBRATION, SCHEDULE)
    student, teacher = view(1), view(2)
    before = method(student, teacher, batch())["feature"]
    student.features["p4"][:] = 0
    assert method(student, teacher, batch())["feature"] == before


def test_an_almost_constant_channel_is_not_blown_up() -> None:
    """Officially its gradient is a million times the others'."""
    largest = {}
    for compat in ("default", "official"):
        student = view(1).features["p3"].clone()
        student[:, 0] = 1.0
        student.requires_grad_()
        method = build(PKD(weight=1.0, levels=1, compat=compat), pair(), CALIBRATION, SCHEDULE)
        method(View({"p3": student}), view(2), batch())["feature"].backward()
        assert student.grad is not None
        largest[compat] = float(student.grad[:, 0].abs().max() / student.grad[:, 1:].abs().max())

    assert largest["official"] > 1e4
    assert largest["default"] < 100


def test_defeat_gives_each_box_to_one_level() -> None:
    """Officially by 56 pixels, by default by 14 cells: the same for a pyramid that begins at stride 4."""
    sides = [10, 56, 57, 112, 113, 300, 1000]
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in sides])
    size = (1000, 1000)
    made = Batch(
        torch.zeros(1, 3, *size), (size,), (size,), (Target(boxes, torch.ones(len(sides), dtype=torch.int64)),), (0,)
    )
    layout = Layout.of(made, torch.device("cpu"))

    assert official_levels(layout, 4).tolist() == [[0, 0, 0, 1, 1, 2, 3]]
    assert levels_by_cells(layout, [4, 8, 16, 32]).tolist() == [[0, 0, 0, 1, 1, 2, 3]]
    assert levels_by_cells(layout, [8, 16, 32]).tolist() == [[0, 0, 0, 0, 0, 1, 2]]


def test_defeat_masks_hold_the_cells_of_their_own_boxes_alone() -> None:
    method = build(DeFeat(foreground=1.0, background=1.0), pair(), CALIBRATION, SCHEDULE)
    masks = method.masks(batch(), view(1).features)  # type: ignore[operator]

    assert masks["p3"][1].all(), "a box around the whole image is smaller than 14 cells of stride 16"
    assert not masks["p4"].any()
    assert not masks["p3"][0].any()


def test_points_have_squares_of_eight_strides() -> None:
    made = view(1).predictions
    assert made is not None
    centre = (made.anchors_K4[:, :2] + made.anchors_K4[:, 2:]) / 2
    reach = torch.cat([torch.full((n,), STRIDES[level] / 2) for level, n in made.rows.items()])[:, None]
    points = replace(made, anchors_K4=torch.cat([centre - reach, centre + reach], 1))

    for level, stride in STRIDES.items():
        sides = anchors_of(points, level, stride)[:, 2:] - anchors_of(points, level, stride)[:, :2]
        assert (sides == 8 * stride).all()
        assert torch.equal(anchors_of(made, level, stride), made.anchors_K4[made.span(level)]), "anchors stay"


def test_fgfi_takes_the_best_anchor_over_all_levels() -> None:
    """By default a box is imitated where its anchors lie: a small one not on the coarse level."""
    spec = complete(FGFI(), RetinaNet)
    default, official = (
        build(each, pair(), CALIBRATION, SCHEDULE) for each in (spec, complete(FGFI(compat="official"), RetinaNet))
    )
    made = view(1).predictions
    assert made is not None
    anchors = {level: anchors_of(made, level, stride) for level, stride in STRIDES.items()}
    boxes = [torch.tensor([[8.0, 8.0, 28.0, 28.0]])]
    chosen = [method.chosen(anchors, SIZES, boxes) for method in (default, official)]  # type: ignore[operator]

    assert chosen[0]["p3"].any()
    assert not chosen[0]["p4"].any()
    assert chosen[1]["p4"].any()


def test_near_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors = view(1).predictions.anchors_K4  # type: ignore[union-attr]
    boxes = 60 * torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    boxes[:, 2:] += boxes[:, :2] + 1
    together = near(anchors, boxes, 0.5, 0.0)
    monkeypatch.setattr("fgd.methods.fgfi.TOGETHER", 3 * len(anchors))

    assert torch.equal(near(anchors, boxes, 0.5, 0.0), together)
    assert torch.equal(torch.stack([near(anchors, each[None], 0.5, 0.0) for each in boxes]).any(0), together)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def rescaled_slowly(ours: Tensor, theirs: Tensor) -> Tensor:
    made = ours.clone()
    for c in range(ours.shape[1]):
        s, t = ours[:, c], theirs[:, c]
        made[:, c] = (s - s.mean()) / (s.std() + 1e-6) * t.std() + t.mean()
    return made.relu()


def test_crosskd_of_a_head_with_anchors_is_a_loop_over_its_places() -> None:
    """Officially: all places, those apart that the detector leaves out."""
    spec = CrossKD(scores=1.0, boxes=1.0, first=1, compat="official")
    student, teacher = view(1), view(2)
    ours, theirs = student.predictions, teacher.predictions
    assert ours is not None
    assert theirs is not None
    found = build(spec, pair(), CALIBRATION, SCHEDULE)(student, teacher, batch())

    scores = boxes = 0.0
    matches = [each.tolist() for each in ours.matches or ()]
    divisor = sum(max(1, sum(match >= 0 for match in of_image)) for of_image in matches)
    for level in SIZES:
        rows = {}
        for name, columns in (("cls", 3), ("reg", 4)):
            map_NCHW = rescaled_slowly(ours.held[name][level][1], theirs.held[name][level][1])
            rows[name] = map_NCHW[:, :columns].flatten(2).mT
        at = theirs.span(level)
        anchors = theirs.anchors_K4[at]
        our_boxes, their_boxes = (
            theirs.decode(each, anchors).tolist() for each in (rows["reg"], theirs.boxes_NKD[:, at])
        )
        for n in range(3):
            for k in range(ours.rows[level]):
                if matches[n][at.start + k] == -2:
                    continue
                s, t = rows["cls"][n, k].tolist(), theirs.logits_NKC[n, at.start + k].tolist()
                for a, b in zip(s, t, strict=True):
                    q, p = sigmoid(a), sigmoid(b)
                    scores -= (p * math.log(q) + (1 - p) * math.log(1 - q)) * abs(q - p)
                boxes += max(map(sigmoid, t)) * (1 - giou(our_boxes[n][k], their_boxes[n][k]))

    assert found["scores"].item() == pytest.approx(scores / divisor, rel=1e-4)
    assert found["boxes"].item() == pytest.approx(boxes / divisor, rel=1e-4)


def giou(a: list[float], b: list[float]) -> float:
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    outer = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union - (outer - union) / outer
