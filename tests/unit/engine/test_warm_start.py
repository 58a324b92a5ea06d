from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fgd.detector_specs import FCOS
from fgd.detectors import Detector, build
from fgd.engine import weights
from fgd.engine.warm_start import start_from
from fgd.errors import SpecError
from fgd.events import Note
from fgd.recipe import Recipe
from fgd.result_files import RECIPE as RECIPE_FILE
from fgd.result_files import WEIGHTS
from tests.unit.engine.conftest import MakeSpec

RECIPE = Recipe(detector=FCOS(fpn_channels=64), classes=("cat", "dog"), min_size=64, max_size=64)
LOGITS = {"head.classification_head.cls_logits.bias", "head.classification_head.cls_logits.weight"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    weights.export(folder, build(RECIPE), {}, best=None)
    return folder


def values(detector: Detector) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in detector.module.state_dict().items()}


def test_the_same_network_is_copied_whole(source: Path) -> None:
    student = build(RECIPE)
    begun = start_from(student, source)

    theirs = weights.read_tensors(source / WEIGHTS)
    assert all(torch.equal(value, theirs[key]) for key, value in values(student).items())
    assert (len(begun.copied), begun.left) == (len(theirs), [])


@pytest.mark.parametrize("classes", [("cat", "cow"), ("dog", "cat"), ("cat", "dog", "cow")])
def test_rows_of_other_classes_start_afresh_and_are_named(source: Path, classes: tuple[str, ...]) -> None:
    student = build(RECIPE.but(classes=classes))
    before = values(student)

    begun = start_from(student, source)

    assert set(begun.left) == LOGITS == weights.rows_of_classes(student.recipe).keys()
    after = values(student)
    assert all(torch.equal(after[key], before[key]) for key in LOGITS)
    assert not torch.equal(after["backbone.body.conv1.weight"], before["backbone.body.conv1.weight"])


def test_a_source_that_lends_nothing_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / RECIPE_FILE).write_bytes((source / RECIPE_FILE).read_bytes())
    weights.write_tensors(tmp_path / WEIGHTS, {"foreign": torch.zeros(1)})
    with pytest.raises(SpecError, match="has no tensor that fits"):
        start_from(build(RECIPE), tmp_path)


@pytest.mark.slow
def test_a_training_begins_with_the_weights_it_names(make_spec: MakeSpec, train: object, teacher: Path) -> None:
    student = {"backbone": "resnet18", "fpn_channels": 96, "norm": "frozen", "weights": {"path": str(teacher)}}
    run = train(make_spec(student=student, schedule={"epochs": 1}))  # type: ignore[operator]

    (note,) = [note for note in run.of(Note) if note.code == "warm_started"]
    assert note.data["afresh"] == []
    assert "num_batches_tracked" not in str(note.data)
    recipe = (run.result / "recipe.json").read_text()
    assert str(teacher) not in recipe + (run.result / "manifest.json").read_text()
    assert weights.load_detector(run.result).recipe.detector.norm == "frozen"
