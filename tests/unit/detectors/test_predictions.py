"""What a head says of a batch, as methods see it: by level, by class, decoded, and through its towers."""

# N images, K places, C classes

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.detectors import Detector, build
from fgd.engine.distill import Teacher
from fgd.recipe import Recipe
from fgd.types import Batch, Predictions, Target

CLASSES = ("a", "b", "c")
ONE_STAGE: dict[str, DetectorSpec] = {
    "fcos": FCOS(fpn_channels=64),
    "retinanet": RetinaNet(fpn_channels=24),
    "retinanet_v2": RetinaNet(fpn_channels=64, version=2),
}
TWO_STAGES: dict[str, DetectorSpec] = {
    "faster_rcnn": FasterRCNN(fpn_channels=24),
    "faster_rcnn_v2": FasterRCNN(fpn_channels=24, version=2),
}


def detector_of(spec: DetectorSpec, classes: tuple[str, ...] = CLASSES) -> Detector:
    torch.manual_seed(0)
    return build(Recipe(detector=spec, classes=classes, min_size=128, max_size=128))


def batch_of(sizes: Sequence[tuple[int, int]] = ((100, 120), (128, 128))) -> Batch:
    targets = (
        Target(torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 20.0, 70.0, 55.0]]), torch.tensor([2, 1])),
        Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    )
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(2, 3, 128, 128, generator=generator), tuple(sizes), tuple(sizes), targets, (0, 1))


def predicted(detector: Detector, *, hold: bool = False) -> tuple[dict[str, Tensor], Predictions]:
    batch = batch_of()
    features = detector.features(batch.images_NCHW)
    return features, detector.predict(features, batch, hold=hold)


@pytest.mark.parametrize("spec", (ONE_STAGE | TWO_STAGES).values(), ids=(ONE_STAGE | TWO_STAGES).keys())
def test_rows_are_those_of_the_levels_and_boxes_lie_around_their_anchors(spec: DetectorSpec) -> None:
    detector = detector_of(spec).eval()
    features, made = predicted(detector)
    places = sum(made.rows.values())
    assert made.logits_NKC.shape == (2, places, 1 if made.objectness else len(CLASSES))
    assert made.objectness == isinstance(spec, FasterRCNN)
    assert made.anchors_K4.shape == (places, 4)
    for level in spec.levels():
        span = made.span(level.name)
        height, width = features[level.name].shape[-2:]
        anchors_K4 = made.anchors_K4[span]
        assert made.rows[level.name] % (height * width) == 0
        middle_2 = (anchors_K4[0, :2] + anchors_K4[0, 2:]) / 2
        last_2 = (anchors_K4[-1, :2] + anchors_K4[-1, 2:]) / 2
        assert (last_2 - middle_2).tolist() == [level.stride * (width - 1), level.stride * (height - 1)]
    still_NK4 = torch.zeros_like(made.boxes_NKD)
    decoded_NK4 = made.decode(still_NK4, made.anchors_K4)
    if spec.kind == "fcos":  # no distance from a point: the point itself
        centre_K2 = (made.anchors_K4[:, :2] + made.anchors_K4[:, 2:]) / 2
        assert torch.equal(decoded_NK4, torch.cat([centre_K2, centre_K2], 1).expand_as(decoded_NK4))
    else:
        torch.testing.assert_close(decoded_NK4, made.anchors_K4.expand_as(decoded_NK4))


@pytest.mark.parametrize("spec", ONE_STAGE.values(), ids=ONE_STAGE.keys())
def test_a_detection_is_a_decoded_row(spec: DetectorSpec) -> None:
    """What methods see is what detections are made of: score, class and box are all found among the rows."""
    detector = detector_of(spec).eval()
    with torch.no_grad():
        _, made = predicted(detector)
        detector.module.score_thresh = 0.0
        found = detector.detect(made, batch_of())[1]  # the second image is not padded
    boxes_K4 = made.decode(made.boxes_NKD, made.anchors_K4)[1]
    boxes_K4 = boxes_K4.clamp(min=0).minimum(torch.tensor(128.0))
    scores_KC = made.logits_NKC[1].sigmoid()
    if made.quality_NK is not None:
        scores_KC = (scores_KC * made.quality_NK[1].sigmoid()[:, None]).sqrt()
    assert len(found.boxes_K4) > 10
    of_classes = [n for n, label in enumerate(found.labels_K.tolist()) if label > 0]  # fresh: 0 is found as well
    assert of_classes
    for n in of_classes:
        near_K = (boxes_K4 - found.boxes_K4[n]).abs().amax(1)
        score_K = (scores_KC[:, found.labels_K[n] - 1] - found.scores_K[n]).abs()
        assert float((near_K + score_K).min()) < 1e-4


@pytest.mark.parametrize("spec", ONE_STAGE.values(), ids=ONE_STAGE.keys())
@pytest.mark.parametrize("bf16", [False, True])
def test_a_tower_goes_on_from_any_held_map_to_the_same_rows(spec: DetectorSpec, bf16: bool) -> None:
    detector = detector_of(spec).train()
    detector.bf16 = bf16
    features, made = predicted(detector, hold=True)
    _, plain = predicted(detector_of(spec).train())
    if not bf16:
        assert torch.equal(made.logits_NKC, plain.logits_NKC), "holding the maps changes nothing"
    assert list(detector.towers()) == ["cls", "reg"]
    for name, tower in detector.towers().items():
        for level, map_NCHW in features.items():
            held = made.held[name][level]
            assert len(held) == tower.depth + 1
            assert held[0] is map_NCHW
            assert {each.dtype for each in held} == {torch.float32}
            for first in (0, 2, tower.depth):
                rows = tower(level, held[first], first)
                whole = {"logits": made.logits_NKC, "boxes": made.boxes_NKD, "quality": made.quality_NK}
                assert set(rows) == ({"logits"} if name == "cls" else {"boxes", "quality"} & set(rows))
                for output, each in rows.items():
                    expected = whole[output]
                    assert expected is not None
                    assert torch.equal(each, expected[:, made.span(level)])
    assert detector.towers()["cls"].channels("p4") == spec.fpn_channels


def test_maps_are_not_held_unless_asked_for() -> None:
    assert predicted(detector_of(ONE_STAGE["fcos"]).train())[1].held == {}


@pytest.mark.parametrize("spec", ONE_STAGE.values(), ids=ONE_STAGE.keys())
def test_in_training_each_place_has_the_box_that_it_shall_find(spec: DetectorSpec) -> None:
    _, made = predicted(detector_of(spec).train())
    assert made.matches is not None
    first_K, second_K = made.matches
    assert {0, 1} <= set(first_K.tolist())
    assert set(second_K.tolist()) == {-1}, "an image without boxes"
    centre_K2 = (made.anchors_K4[:, :2] + made.anchors_K4[:, 2:]) / 2
    for place, box_4 in enumerate(batch_of().targets[0].boxes_K4):
        mine_K2 = centre_K2[first_K == place]
        assert ((mine_K2 > box_4[:2] - 16) & (mine_K2 < box_4[2:] + 16)).all()
    assert predicted(detector_of(spec).eval())[1].matches is None


@pytest.mark.parametrize("spec", TWO_STAGES.values(), ids=TWO_STAGES.keys())
def test_a_second_stage_answers_to_any_proposals(spec: DetectorSpec) -> None:
    detector = detector_of(spec).eval()
    with torch.no_grad():
        features, made = predicted(detector)
        own = made.regions
        assert own is not None
        again = detector.regions(features, batch_of(), own.proposals)
        few = detector.regions(features, batch_of(), [each[:3] for each in own.proposals])
    count = sum(map(len, own.proposals))
    assert own.logits_RC.shape == (count, 1 + len(CLASSES))
    assert own.boxes_RC4.shape == (count, 1 + len(CLASSES), 4)
    assert torch.equal(again.logits_RC, own.logits_RC)
    assert torch.equal(again.boxes_RC4, own.boxes_RC4)
    first = len(own.proposals[0])
    torch.testing.assert_close(few.logits_RC, own.logits_RC[[0, 1, 2, first, first + 1, first + 2]])
    with pytest.raises(NotImplementedError, match="fcos has no second stage"):
        detector_of(ONE_STAGE["fcos"]).regions({}, batch_of(), [])


def test_regions_of_a_training_are_those_drawn_for_the_losses() -> None:
    detector = detector_of(TWO_STAGES["faster_rcnn"]).train()
    _, made = predicted(detector)
    drawn = made.regions
    assert drawn is not None
    assert drawn.labels_R is not None
    assert drawn.targets_R4 is not None
    assert len(drawn.labels_R) == len(drawn.targets_R4) == len(drawn.logits_RC)
    boxes_K4 = batch_of().targets[0].boxes_K4
    assert (drawn.proposals[0][-2:] == boxes_K4).all(), "the boxes themselves are proposed too"
    assert drawn.labels_R[: len(drawn.proposals[0])].tolist()[-2:] == [2, 1]
    loss = torch.nn.functional.cross_entropy(drawn.logits_RC, drawn.labels_R)
    assert torch.equal(detector.losses(made, batch_of())["loss_classifier"], loss)


# --- the teacher's side ---------------------------------------------------------------------------------------


def taught(spec: DetectorSpec, *needs: str, classes: tuple[str, ...] = CLASSES, student: DetectorSpec) -> Teacher:
    recipe = Recipe(detector=student, classes=CLASSES, min_size=128, max_size=128)
    return Teacher(detector_of(spec, classes), recipe, needs)  # type: ignore[arg-type]


def test_a_teacher_shows_what_is_needed_and_no_more() -> None:
    fcos = ONE_STAGE["fcos"]
    bare = taught(fcos, "features", student=fcos).view(batch_of())
    assert bare.predictions is None
    assert bare.regions is None
    seen = taught(fcos, "features", "logits", student=fcos).view(batch_of()).predictions
    assert seen is not None
    assert seen.held == {}
    held = taught(fcos, "logits", "towers", student=fcos).view(batch_of()).predictions
    assert held is not None
    assert set(held.held) == {"cls", "reg"}
    two = TWO_STAGES["faster_rcnn"]
    first_stage = taught(two, "logits", student=two).view(batch_of()).predictions
    assert first_stage is not None
    assert first_stage.regions is None
    asked = taught(two, "proposals", student=two).view(batch_of())
    assert asked.predictions is None, "the student's proposals need none of the teacher's own"
    assert asked.regions is not None


@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn"])
def test_a_teachers_classes_come_in_the_students_order(kind: str) -> None:
    spec = (ONE_STAGE | TWO_STAGES)[kind]
    needs = ("logits", "towers", "proposals")
    straight = taught(spec, *needs, student=spec).view(batch_of())
    turned = taught(spec, *needs, classes=("c", "a", "b"), student=spec).view(batch_of())
    assert straight.predictions is not None
    assert turned.predictions is not None
    if kind == "fcos":
        order = [1, 2, 0]  # its columns of a, b and c
        assert torch.equal(turned.predictions.logits_NKC, straight.predictions.logits_NKC[..., order])
        for view in (straight, turned):
            assert view.predictions is not None
            rows = view.towers["cls"]("p4", view.features["p4"])["logits"]
            assert torch.equal(rows, view.predictions.logits_NKC[:, view.predictions.span("p4")])
    else:
        assert torch.equal(turned.predictions.logits_NKC, straight.predictions.logits_NKC), "it names no class"
        ours, theirs = straight.predictions.regions, turned.predictions.regions
        assert ours is not None
        assert theirs is not None
        assert torch.equal(theirs.logits_RC, ours.logits_RC[:, [0, 2, 3, 1]])
        assert torch.equal(theirs.boxes_RC4, ours.boxes_RC4[:, [0, 2, 3, 1]])


def test_a_teachers_levels_have_the_students_names() -> None:
    student = FasterRCNN(fpn_channels=24)
    seen = taught(RetinaNet(fpn_channels=24), "logits", "towers", student=student).view(batch_of()).predictions
    assert seen is not None
    assert list(seen.rows) == ["p3", "p4", "p5", "the teacher's p6", "the teacher's p7"]
    assert list(seen.held["cls"]) == ["p3", "p4", "p5"]


def test_a_students_map_goes_through_the_teachers_tower_and_its_gradient_comes_back() -> None:
    spec = ONE_STAGE["fcos"]
    teacher = taught(spec, "logits", "towers", student=spec)
    student = detector_of(spec).train()
    _, made = predicted(student, hold=True)
    tower = teacher.view(batch_of()).towers["cls"]
    rows = tower("p4", made.held["cls"]["p4"][2], 2)["logits"]
    rows.square().sum().backward()  # type: ignore[no-untyped-call]
    head = student.module.get_submodule("head.classification_head.conv")
    with_gradient = [name for name, each in head.named_parameters() if each.grad is not None and each.grad.any()]
    assert {name.partition(".")[0] for name in with_gradient} == {"0", "1", "3", "4"}, "two convolutions, two norms"
    assert all(each.grad is None for each in teacher.detector.parameters())
