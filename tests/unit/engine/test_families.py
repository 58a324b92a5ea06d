"""Trainings of the anchor families, alone and in pairs of two families: same bytes, resumable, anchors that travel.

The same bytes and the same boxes are those of the same calls on the same values, on any processor.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgd.detectors import anchors
from fgd.engine import weights
from fgd.errors import SpecError, Stopped
from fgd.events import Finished, Note, Saved, Stepped
from fgd.spec import JobSpec

pytestmark = pytest.mark.slow
Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]

RETINANET = {"kind": "retinanet", "backbone": "mobilenet_v3_small", "fpn_channels": 32}
FASTER_RCNN = {"kind": "faster_rcnn", "backbone": "mobilenet_v3_small", "fpn_channels": 32}
ONE_EPOCH = {"epochs": 1}


def digest(run: Any) -> str:
    (finished,) = run.of(Finished)
    return str(finished.weights_digest)


def note(run: Any, code: str) -> Note:
    (found,) = [each for each in run.of(Note) if each.code == code]
    assert isinstance(found, Note)
    return found


def spec_of(make_spec: MakeSpec, student: dict[str, Any], teacher: Path | None = None) -> JobSpec:
    if teacher is None:
        return make_spec(student=student, schedule=ONE_EPOCH)
    ref = {"path": str(teacher), "allow_unfit": True}
    return make_spec(student=student, teacher=ref, methods=[{"kind": "fgd"}, {"kind": "mimic"}], schedule=ONE_EPOCH)


@pytest.fixture(scope="module")
def retinanet(train: Train, make_spec: MakeSpec) -> Any:
    return train(spec_of(make_spec, RETINANET))


@pytest.fixture(scope="module")
def pair(train: Train, make_spec: MakeSpec, teacher: Path) -> Any:
    """Faster R-CNN that learns from FCOS."""
    return train(spec_of(make_spec, FASTER_RCNN, teacher))


@pytest.mark.numeric
def test_retinanet_trains_to_the_same_bytes(retinanet: Any, train: Train, make_spec: MakeSpec) -> None:
    assert digest(train(spec_of(make_spec, RETINANET))) == digest(retinanet)


@pytest.mark.numeric
def test_two_stages_that_learn_from_one_go_on_from_a_checkpoint_to_the_same_bytes(
    pair: Any, train: Train, make_spec: MakeSpec, teacher: Path
) -> None:
    spec = spec_of(make_spec, FASTER_RCNN, teacher).but(schedule=make_spec().schedule.but(epochs=1, checkpoint_s=1e-9))
    first: list[Any] = []

    def stop(run: Any) -> bool:
        first[:] = [run]
        return len(run.of(Saved)) >= 2

    with pytest.raises(Stopped):
        train(spec, stop=stop)
    saved = first[0].of(Saved)[-1]
    assert 0 < saved.step < 3
    assert digest(train(spec, resume=Path(saved.path))) == digest(pair)


def test_only_the_levels_of_both_are_distilled_and_the_rest_is_named(pair: Any) -> None:
    told = note(pair, "levels_left_out")
    assert told.level == "warning"
    assert told.data == {"distilled": ["p3", "p4", "p5"], "left_out": ["p2"]}
    assert "p2 (stride 4)" in told.message
    assert set(note(pair, "calibration").data["teacher_rms"]) == {"p3", "p4", "p5"}
    values = pair.of(Stepped)[-1].values
    assert {"loss/fgd/fg", "loss/fgd/global", "loss/mimic/feature", "loss/detection/loss_objectness"} <= values.keys()


def test_anchors_follow_the_boxes_travel_with_the_weights_and_are_told(retinanet: Any) -> None:
    told = note(retinanet, "anchors")
    base = told.data["base"]
    assert base == anchors.best_base(told.data["recall"])
    assert f"anchors from {base} px" in told.message
    sizes = anchors.THREE_FROM_P3.sizes(base)
    assert weights.read_recipe(retinanet.result).anchor_sizes == sizes
    assert json.loads((retinanet.result / "manifest.json").read_text())["anchor_sizes"] == [list(s) for s in sizes]
    model = runpy.run_path(str(retinanet.result / "model.py"))["load"]()
    assert model.anchor_generator.sizes == sizes


@pytest.mark.numeric
@pytest.mark.parametrize("made", ["retinanet", "pair"])
def test_the_result_is_read_back_and_finds_what_plain_torchvision_finds(
    made: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(made).result
    ours = weights.load_detector(folder).eval()
    plain = runpy.run_path(str(folder / "model.py"))["load"]()
    plain.score_thresh = ours.module.score_thresh = 0.0  # three steps teach nothing; compare whatever is found
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, theirs = ours.module([image])[0], plain([image])[0]
    assert len(theirs["boxes"]) > 0
    assert all(torch.equal(mine[key], theirs[key]) for key in ("boxes", "scores", "labels"))


def test_an_inherited_head_brings_its_anchors(
    retinanet: Any, train: Train, make_spec: MakeSpec, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in retinanet.result.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    recipe = json.loads((source / "recipe.json").read_text())
    given = [list(each) for each in anchors.THREE_FROM_P3.sizes(24)]
    (source / "recipe.json").write_text(json.dumps(recipe | {"anchor_sizes": given}))
    run = train(spec_of(make_spec, RETINANET | {"inherit": {"path": str(source)}}))
    assert weights.read_recipe(run.result).anchor_sizes == anchors.THREE_FROM_P3.sizes(24)
    assert note(run, "inherited").data["copied"]


def test_heads_of_another_family_are_not_inherited(train: Train, make_spec: MakeSpec, teacher: Path) -> None:
    with pytest.raises(SpecError, match=r"/student/inherit: inherits from a network of kind fcos"):
        train(spec_of(make_spec, RETINANET | {"inherit": {"path": str(teacher)}}))
