"""What methods see of a teacher that knows some of the student's classes: these alone, and the other objects apart."""

# N images, K places or boxes, C classes, H x W cells

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fgd.detector_specs import FCOS, FasterRCNN
from fgd.engine.shared_classes import SharedClasses, SharedTower
from fgd.method_specs import MethodSpec
from fgd.methods import build
from fgd.methods.geometry import Grid, Layout, valid_cells
from fgd.presets import PUBLISHED
from fgd.spec_fields import members
from fgd.types import Batch, Target, View
from tests.unit.methods.made_up import CALIBRATION, SCHEDULE, batch, learnt, pair, view

OURS = ("cat", "dog", "cow")
CPU = torch.device("cpu")
KINDS = {each.model_fields["kind"].default: each for each in members(MethodSpec)}


def labelled(*labels: list[int]) -> Batch:
    """The batch of `made_up`, its boxes of these classes: none, one around the whole image, and two."""
    made = batch()
    targets = [
        replace(target, labels_K=torch.tensor(each, dtype=torch.int64))
        for target, each in zip(made.targets, labels, strict=True)
    ]
    return replace(made, targets=tuple(targets))


def test_columns_are_those_of_the_shared_classes_in_the_students_order() -> None:
    shared = SharedClasses.of(OURS, ("cow", "horse", "Cat"))
    assert shared.names == ("cat", "cow")
    rows_1C = torch.tensor([[1.0, 2.0, 3.0]])
    assert shared.ours.of_logits(rows_1C).tolist() == [[1.0, 3.0]]
    assert shared.theirs.of_logits(rows_1C).tolist() == [[3.0, 1.0]]
    assert SharedClasses.of(OURS, OURS).ours.of_logits(rows_1C) is rows_1C


def test_of_two_stages_other_classes_are_background_to_who_does_not_know_them() -> None:
    answers = view(0, drawn=True).regions
    assert answers is not None
    regions = answers([])
    seen = SharedClasses.of(OURS, ("cow", "horse", "cat")).theirs.of_regions(regions)
    before_RC, after_RC = regions.logits_RC.softmax(1), seen.logits_RC.softmax(1)
    assert torch.allclose(after_RC[:, 0], before_RC[:, 0] + before_RC[:, 2])
    assert torch.allclose(after_RC[:, 1:], before_RC[:, [3, 1]])
    assert torch.equal(seen.boxes_RC4, regions.boxes_RC4[:, [0, 3, 1]])


def test_boxes_and_labels_are_those_of_the_shared_classes_and_the_others_are_apart() -> None:
    whole = labelled([], [2], [1, 3])
    _, seen = SharedClasses.of(OURS, ("cow", "dog")).taught(view(0), whole)
    assert [each.labels_K.tolist() for each in seen.targets] == [[], [1], [2]]
    assert [each.tolist() for each in seen.apart] == [[], [], [whole.targets[2].boxes_K4[0].tolist()]]
    assert torch.equal(seen.targets[2].boxes_K4, whole.targets[2].boxes_K4[1:])


def test_a_place_that_shall_find_an_object_apart_does_not_count() -> None:
    shown = view(0)
    assert shown.predictions is not None
    matches = tuple(map(torch.tensor, ([-2, -1, -1, -1], [-2, 0, 0, -1], [-2, -1, 0, 1])))
    seen, _ = SharedClasses.of(OURS, ("cow",)).taught(
        replace(shown, predictions=replace(shown.predictions, matches=matches)), labelled([], [2], [1, 3])
    )
    assert seen.predictions is not None
    assert seen.predictions.matches is not None
    assert [each.tolist() for each in seen.predictions.matches] == [[-2, -1, -1, -1], [-2, -2, -2, -1], [-2, -1, -2, 0]]


def test_regions_drawn_for_an_object_apart_are_left_out() -> None:
    seen, _ = SharedClasses.of(OURS, ("cow", "dog")).taught(view(0, drawn=True), labelled([], [2], [1, 3]))
    assert seen.predictions is not None
    regions = seen.predictions.regions
    assert regions is not None
    assert regions.labels_R is not None
    assert regions.labels_R.tolist() == [2, 0, 2, 1], "of 3, 1, 1, 0, 3, 2"
    assert [len(each) for each in regions.proposals] == [1, 1, 2]
    assert len(regions.logits_RC) == len(regions.boxes_RC4) == 4


@pytest.mark.parametrize("theirs", [OURS, ("dog", "cat", "cow", "horse"), ("horse",)])
def test_a_teacher_of_all_classes_or_of_none_leaves_all_as_it_is(theirs: tuple[str, ...]) -> None:
    whole, shown = labelled([], [2], [1, 3]), view(0)
    seen, of_classes = SharedClasses.of(OURS, theirs).taught(shown, whole)
    assert seen is shown
    assert of_classes is whole


# --- cells ----------------------------------------------------------------------------------------------------


def cells(known: list[list[float]], apart: list[list[float]], *, padding: bool = False) -> Tensor:
    """Which of 4 x 4 cells of 8 pixels count, of an image that leaves the last column to padding."""
    made = Batch(
        torch.zeros(1, 3, 32, 32),
        ((32, 24),),
        ((32, 24),),
        (Target(torch.tensor(known).view(-1, 4), torch.ones(len(known), dtype=torch.int64)),),
        (0,),
        apart=(torch.tensor(apart).view(-1, 4),),
    )
    valid_NP, counts_NL = valid_cells(Layout.of(made, CPU), Grid.of(((4, 4),), CPU), padding=padding)
    assert counts_NL.tolist() == [[int(valid_NP.sum())]]
    return valid_NP.view(4, 4).int()


def test_cells_where_only_unknown_objects_lie_do_not_count() -> None:
    assert cells([], [[0, 0, 16, 8]]).tolist() == [[0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert cells([[8, 0, 16, 8]], [[0, 0, 16, 8]]).tolist()[0] == [0, 1, 1, 0], "a known one lies there too"
    assert cells([], [[1, 1, 3, 3]]).tolist()[0] == [1, 1, 1, 0], "it covers no cell's middle"
    assert cells([], [[0, 0, 16, 8]], padding=True).tolist()[0] == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("known", [("dog",), ("cow",), ("cat",)])
def test_terms_are_finite_whatever_a_teacher_knows(kind: str, known: tuple[str, ...]) -> None:
    """Also of an image that an unknown object fills, where no cell is left."""
    terms, ours = taught_by(kind, known, [[], [2], [1, 3]])
    for name, term in terms.items():
        assert torch.isfinite(term), name
    torch.stack(list(terms.values())).sum().backward()
    for level, each in ours.features.items():
        assert each.grad is None or torch.isfinite(each.grad).all(), level


@pytest.mark.parametrize("kind", ["mimic", "tadf", "mimic_roi", "relations"])
def test_an_image_of_unknown_objects_alone_is_left_out_of_imitation(kind: str) -> None:
    """The second image is filled by a dog, which the teacher does not know."""
    terms, ours = taught_by(kind, ("cat",), [[], [2], [1, 1]])
    torch.stack(list(terms.values())).sum().backward()
    gradients = [each.grad for each in ours.features.values() if each.grad is not None]
    assert gradients
    assert all(bool((each[1] == 0).all()) for each in gradients)
    assert any(bool(each[2].any()) for each in gradients)


def test_class_scores_of_unknown_classes_get_no_gradient() -> None:
    for kind in ("frs", "gid"):
        terms, ours = taught_by(kind, ("cat", "cow"), [[], [2], [1, 3]])
        torch.stack([term for name, term in terms.items() if name == "scores"]).sum().backward()
        assert ours.predictions is not None
        gradient = ours.predictions.logits_NKC.grad
        assert gradient is not None
        assert not gradient[..., 1].any()
        assert gradient[..., [0, 2]].any()


def taught_by(kind: str, known: tuple[str, ...], labels: list[list[int]]) -> tuple[dict[str, Tensor], View]:
    """The terms of a method whose teacher knows these classes, and the student's view with its leaves."""
    torch.manual_seed(0)
    spec = KINDS[kind]() if kind == "ld" else PUBLISHED[FasterRCNN if kind == "chen2017" else FCOS][KINDS[kind]]
    method = build(spec, pair(), CALIBRATION, SCHEDULE)
    bins = 8 if kind == "ld" else 0
    ours, theirs = learnt(view(0, drawn=kind == "chen2017", bins=bins)), view(1, drawn=kind == "chen2017", bins=bins)
    shared = SharedClasses.of(OURS, known)
    seen, of_classes = shared.taught(ours, labelled(*labels))
    made, answers, towers = theirs.predictions, theirs.regions, theirs.towers
    assert made is not None
    assert answers is not None
    columns = shared.ours  # the made up teacher has the student's classes
    rows = len(seen.predictions.regions.labels_R) if kind == "chen2017" else 0  # type: ignore[union-attr,arg-type]
    teacher = replace(
        theirs,
        predictions=columns.of_predictions(made),
        regions=lambda proposals: columns.of_regions(
            replace((whole := answers(proposals)), logits_RC=whole.logits_RC[:rows], boxes_RC4=whole.boxes_RC4[:rows])
        ),
        towers={name: SharedTower(tower, columns) for name, tower in towers.items()},
    )
    return method(seen, teacher, of_classes), ours
