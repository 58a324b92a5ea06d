"""Methods without original code, each against a slow loop written from its formula; in float64."""

# N images, R regions or boxes, C channels or classes

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from fgd.method_specs import TADF, Chen2017, MethodSpec, Mimic, MimicRoI, Relations
from fgd.methods import build
from fgd.types import View
from tests.unit.methods.made_up import BOXES, CALIBRATION, IMAGES, SCHEDULE, SIZES, STRIDES, WIDTH, batch, pair, view

pytestmark = pytest.mark.numeric
SCALES = {level: 0.3 / rms for level, rms in CALIBRATION.teacher_rms.items()}
PIXELS = range(WIDTH)


def double(of: View) -> View:
    assert of.predictions is not None
    regions = of.predictions.regions
    if regions is not None:
        regions = replace(
            regions,
            logits_RC=regions.logits_RC.double(),
            boxes_RC4=regions.boxes_RC4.double(),
            targets_R4=regions.targets_R4.double(),  # type: ignore[union-attr]
        )
    predictions = replace(of.predictions, regions=regions)
    return replace(of, features={level: each.double() for level, each in of.features.items()}, predictions=predictions)


def terms(spec: MethodSpec, student: View, teacher: View) -> dict[str, float]:
    method = build(spec, pair(), CALIBRATION, SCHEDULE).double()
    torch.manual_seed(0)
    return {name: each.item() for name, each in method(student, teacher, batch()).items()}


def cells(level: str, n: int) -> list[tuple[int, int]]:
    """Lines and columns of the level that overlap the image."""
    height, width = IMAGES[n]
    return [(i, j) for i in range(math.ceil(height / STRIDES[level])) for j in range(math.ceil(width / STRIDES[level]))]


def square(student: View, teacher: View, level: str, n: int, i: int, j: int) -> float:
    """Summed over channels, at the common scale."""
    ours, theirs = (each.features[level][n, :, i, j].tolist() for each in (student, teacher))
    return sum((SCALES[level] * (s - t)) ** 2 for s, t in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def both() -> tuple[View, View]:
    return double(view(1, drawn=True)), double(view(2, drawn=True))


def test_tadf(both: tuple[View, View]) -> None:
    expected = 0.0
    for level in SIZES:
        for n, boxes in enumerate(BOXES):
            above = below = 0.0
            for i, j in cells(level, n):
                x, y = (j + 0.5) * STRIDES[level], (i + 0.5) * STRIDES[level]
                mask = 0.0
                for x1, y1, x2, y2 in boxes:
                    if x1 <= x < x2 and y1 <= y < y2:
                        across = (x - (x1 + x2) / 2) ** 2 / (2.0 * (x2 - x1) / 2) ** 2
                        down = (y - (y1 + y2) / 2) ** 2 / (2.0 * (y2 - y1) / 2) ** 2
                        mask = max(mask, math.exp(-across - down))
                above += mask * square(*both, level, n, i, j)
                below += mask
            expected += 256 / WIDTH * (above / (2 * below) if below else 0.0) / len(BOXES)

    assert terms(TADF(weight=1.0), *both)["feature"] == pytest.approx(expected, rel=1e-6)


def test_a_gaussian_is_exp_of_a_quarter_at_the_edge_of_its_box_and_the_largest_counts(
    both: tuple[View, View],
) -> None:
    """Of spread 2."""
    from fgd.methods.tadf import along

    low, high = torch.tensor([[0.0]]), torch.tensor([[10.0]])
    found = along(low, high, torch.tensor([0.0, 5.0, 10.0, -1.0]), 2.0).flatten()
    assert found.tolist() == pytest.approx([math.exp(-0.25), 1.0, 0.0, 0.0])
    del both


def test_chen2017_hint(both: tuple[View, View]) -> None:
    expected = 0.0
    for level in SIZES:
        for n in range(len(BOXES)):
            of_image = [square(*both, level, n, i, j) for i, j in cells(level, n)]
            expected += sum(of_image) / len(of_image) / WIDTH / len(BOXES)

    assert terms(Chen2017(hint=1.0, soft=0.0, bounded=0.0), *both) == {"hint": pytest.approx(expected, rel=1e-9)}


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(each) for each in logits]
    return [each / sum(exponentials) for each in exponentials]


def test_chen2017_of_regions(both: tuple[View, View]) -> None:
    student, teacher = both
    assert student.predictions is not None
    assert teacher.regions is not None
    drawn = student.predictions.regions
    assert drawn is not None
    asked = teacher.regions(drawn.proposals)
    soft = bounded = 0.0
    for r, label in enumerate(drawn.labels_R.tolist()):  # type: ignore[union-attr]
        p, q = softmax(asked.logits_RC[r].tolist()), softmax(drawn.logits_RC[r].tolist())
        soft -= sum((1.5 if c == 0 else 1.0) * p[c] * math.log(q[c]) for c in range(len(p)))
        if label > 0:
            wanted = drawn.targets_R4[r].tolist()  # type: ignore[index]
            ours, theirs = drawn.boxes_RC4[r, label].tolist(), asked.boxes_RC4[r, label].tolist()
            error = sum((a - b) ** 2 for a, b in zip(ours, wanted, strict=True))
            bound = sum((a - b) ** 2 for a, b in zip(theirs, wanted, strict=True))
            bounded += error if error + 0.5 > bound else 0.0
    count = len(drawn.logits_RC)

    found = terms(Chen2017(hint=0.0, soft=1.0, bounded=1.0, margin=0.5), student, teacher)
    assert found == {"soft": pytest.approx(soft / count, rel=1e-6), "bounded": pytest.approx(bounded / count, rel=1e-6)}
    assert bounded


def pooled_slowly(of: View, box: Tensor, n: int, size: int) -> Tensor:
    """From the level of the box's size: P4 is that of 224 pixels."""
    side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
    power = min(max(math.floor(4 + math.log2(side / 224)), 3), 4)
    level = f"p{power}"
    map_1CHW = SCALES[level] * of.features[level][n : n + 1]
    region_15 = torch.cat([torch.zeros(1), box])[None].double()
    pooled: Tensor = roi_align(map_1CHW, region_15, size, 1 / 2**power, sampling_ratio=2, aligned=True)
    return pooled[0]


def test_mimic_roi(both: tuple[View, View]) -> None:
    student, teacher = both
    assert student.predictions is not None
    assert student.predictions.regions is not None
    expected = 0.0
    for n, proposals in enumerate(student.predictions.regions.proposals):
        of_image = [
            float((pooled_slowly(teacher, box, n, 7) - pooled_slowly(student, box, n, 7)).square().mean())
            for box in proposals
        ]
        expected += sum(of_image) / (2 * len(of_image)) / len(BOXES)

    assert terms(MimicRoI(weight=1.0), *both)["feature"] == pytest.approx(expected, rel=1e-9)


def test_regions_around_objects_stand_in_for_proposals(both: tuple[View, View]) -> None:
    from fgd.methods.mimic_roi import around

    torch.manual_seed(3)
    regions = around(batch())
    assert [len(each) for each in regions] == [16 * len(boxes) for boxes in BOXES]
    assert torch.equal(regions[2][:2], torch.tensor(BOXES[2]))
    moved = (regions[2][2:].view(15, 2, 4) - torch.tensor(BOXES[2])).abs()
    sides = torch.tensor([[26.0, 33.0] * 2, [42.0, 27.0] * 2])
    assert (moved <= 0.25 * sides + 1e-4).all()
    assert moved.any(dim=2).all(), "none of them is the object's own"
    without = [replace(each, predictions=replace(each.predictions, regions=None)) for each in both]  # type: ignore[type-var]
    assert terms(MimicRoI(weight=1.0), *without)["feature"] > 0


def test_relations(both: tuple[View, View]) -> None:
    total = 0.0
    for n, boxes in enumerate(BOXES):
        matrices = []
        for each in both:
            vectors = [pooled_slowly(each, torch.tensor(box), n, 3).flatten() for box in boxes]
            matrices.append([[float(a @ b) / float(a.norm() * b.norm()) for a in vectors] for b in vectors])
        if len(boxes) > 1:
            pairs = [(a, b) for a in range(len(boxes)) for b in range(len(boxes))]
            total += sum(abs(matrices[0][a][b] - matrices[1][a][b]) for a, b in pairs) / len(boxes) ** 2

    assert terms(Relations(weight=1.0), *both)["cosines"] == pytest.approx(total / len(BOXES), rel=1e-6)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_imitation_inside_or_outside_boxes(both: tuple[View, View], where: str) -> None:
    student, teacher = both
    expected = 0.0
    for level in SIZES:
        for n, boxes in enumerate(BOXES):
            chosen = []
            for i, j in cells(level, n):
                x, y = (j + 0.5) * STRIDES[level], (i + 0.5) * STRIDES[level]
                inside = any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes)
                if inside == (where == "inside"):
                    chosen.append(square(student, teacher, level, n, i, j) / SCALES[level] ** 2)
            expected += sum(chosen) / max(1, len(chosen)) / len(BOXES)

    found = terms(Mimic(weight=1.0, where=where), student, teacher)["feature"]
    assert found == pytest.approx(expected, rel=1e-9)
