"""Two teachers of different blood cells into one student: each teaches the cells that it knows."""

# N images, P cells of a level, M of a map

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fgd.data.formats import open_index
from fgd.data.loader import train_batches
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine import device, weights
from fgd.engine.prepare import Training, prepare
from fgd.engine.teacher import evenly_spaced
from fgd.events import Finished, Note, Stepped
from fgd.methods.geometry import Grid, Layout, cells_apart, scale_masks, tight
from fgd.presets import resolve
from fgd.recipe import Recipe
from fgd.spec import JobSpec
from fgd.types import Batch

pytestmark = [pytest.mark.slow, pytest.mark.long]

Train = Callable[..., Any]
KNOWN = {"wbc": ("WBC",), "cells": ("RBC", "Platelets")}
IMAGES = {"train": 8, "val": 4}


@pytest.fixture(scope="module")
def cells(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the images, with all their labels."""
    source = shared_data / "bccd"
    index, _ = open_index(source)
    folder = tmp_path_factory.mktemp("bccd")
    (folder / "JPEGImages").symlink_to(source / "JPEGImages")
    splits = {name: evenly_spaced(index.splits[name], count) for name, count in IMAGES.items()}
    (folder / "index.json").write_text(index.model_copy(update={"splits": splits}).model_dump_json())
    return folder


@pytest.fixture(scope="module")
def taught(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """A job of two teachers; they have learnt nothing, and are imitated all the same."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, (name, classes) in enumerate(KNOWN.items()):
        torch.manual_seed(seed)
        recipe = Recipe(detector=FCOS(fpn_channels=96), classes=classes, min_size=120, max_size=160)
        weights.export(folder / name, build(recipe), {}, None)
    schedule = {"epochs": 4, "batch_size": 4, "min_size": 120, "max_size": 160, "evaluate_every": 4, "flip": "none"}
    sent = {
        "name": "cells",
        "teacher": None,
        "teachers": {name: {"path": str(folder / name), "allow_unfit": True} for name in KNOWN},
        "student": {"backbone": "resnet18", "fpn_channels": 64},
        "dataset": {"path": str(cells)},
        "methods": [
            {"kind": "mimic", "teacher": "wbc", "rho": 0.0},
            {"kind": "mimic", "teacher": "cells", "rho": 0.0},
            {"kind": "frs", "teacher": "cells", "rho": 0.0},
        ],
        "schedule": schedule | {"optimizer": {"kind": "adamw", "lr": 8e-4}},
        "resources": {"device": "cpu", "threads": 1},
    }
    return JobSpec.model_validate(sent)


def test_each_teacher_has_its_terms_and_its_classes(taught: JobSpec, train: Train) -> None:
    run = train(taught)
    notes = {(note.code, note.data.get("teacher")): note for note in run.of(Note)}
    for name, classes in KNOWN.items():
        assert set(notes["teaches", name].data["classes"]) == set(notes["teacher_checked", name].data["classes"])
        assert set(notes["teaches", name].data["classes"]) == set(classes)
    (first, *_, last) = [step.values for step in run.of(Stepped) if "epoch/loss/total" in step.values]
    for term in ("mimic@wbc/feature", "mimic@cells/feature", "frs@cells/feature"):
        assert last[f"epoch/loss/{term}"] < first[f"epoch/loss/{term}"], "what it shows is learnt"
    assert run.of(Finished)


def test_gradients_come_from_the_cells_of_known_objects_and_none_from_those_of_others(taught: JobSpec) -> None:
    spec = resolve(taught)
    machine = device.choose(spec.resources, spec.schedule.precision)
    parts = prepare(spec, machine, None, lambda _: None, lambda: None, rehearsal_images=4)[0]
    parts.distill.train()
    (batch, *_) = train_batches(parts.train, parts.transform, spec.schedule, 0, 0)
    for name in KNOWN:
        map_NCHW, losses = lost(parts, batch)
        (gradient_NCHW,) = torch.autograd.grad(losses[f"mimic@{name}/feature"], map_NCHW)
        own_NP, apart_NP = cells_of(parts, name, batch, map_NCHW)
        moved_NP = gradient_NCHW.abs().sum(1).flatten(1) > 0
        assert apart_NP.any()
        assert not (moved_NP & apart_NP).any(), "cells of objects alone that it does not know"
        assert (moved_NP | ~own_NP).all(), "all cells of objects that it knows"

    _, losses = lost(parts, batch)
    scores = parts.student.module.head.classification_head.cls_logits.weight
    (gradient,) = torch.autograd.grad(losses["frs@cells/scores"], scores)
    of_classes = {name: bool(gradient[label].any()) for label, name in enumerate(parts.train.classes, start=1)}
    assert of_classes == {"WBC": False, "RBC": True, "Platelets": True}


def lost(parts: Training, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The finest map of the student, and the losses that follow from it."""
    features = parts.student.features(batch.images_NCHW)
    return features["p3"], parts.distill.losses(features, batch, parts.views(batch))


def cells_of(parts: Training, name: str, batch: Batch, map_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Of the finest level: cells of objects that the teacher knows, and those where others alone lie."""
    classes = parts.distill.classes[name]
    assert classes is not None
    _, seen = classes.taught(next(iter(parts.views(batch).values())), batch)
    grid = Grid.of((tuple(map_NCHW.shape[2:]),), map_NCHW.device)
    layout = Layout.of(seen, map_NCHW.device)
    assert layout.apart is not None
    every_NP = torch.ones(len(map_NCHW), len(grid.level_P), dtype=torch.bool)
    own_NP = scale_masks(tight(layout, grid), every_NP, grid)[0] > 0
    return own_NP, cells_apart(layout, layout.apart, grid)
