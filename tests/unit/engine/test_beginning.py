"""A training that is started again in the same folder: what it goes on from, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fgd.engine.beginning import CHECKPOINTS, RESULT, last_checkpoint, remember
from fgd.engine.checkpoint import FORMAT
from fgd.errors import SpecError
from fgd.events import Event, Note
from fgd.result_files import WEIGHTS
from fgd.spec import JobSpec

BODY: dict[str, Any] = {
    "name": "n",
    "teacher": None,
    "student": {"backbone": "resnet18", "fpn_channels": 64},
    "dataset": {"path": "cells"},
    "methods": [],
    "schedule": {"epochs": 3, "batch_size": 8},
}


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(BODY | changes)


def saved(out: Path, step: int, content: Any = None) -> Path:
    file = out / CHECKPOINTS / f"step-{step:08d}-{step:08d}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"format": FORMAT} if content is None else content, file)
    return file


def silent(_: Event) -> None:
    raise AssertionError("nothing to say")


def test_an_empty_folder_is_the_beginning(tmp_path: Path) -> None:
    assert last_checkpoint(spec(), tmp_path / "new", silent) is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "other", "dataset": {"path": "elsewhere"}, "resources": {"device": "cpu"}},
        {"schedule": {"epochs": 3, "batch_size": 4, "accumulate": 2}},
    ],
    ids=["the same", "names and machine", "the same images a step"],
)
def test_the_last_checkpoint_of_the_same_training_is_gone_on_from(tmp_path: Path, changes: dict[str, Any]) -> None:
    remember(spec(), tmp_path)
    saved(tmp_path, 100)
    newest = saved(tmp_path, 1000)
    (tmp_path / CHECKPOINTS / "step-00002000.partial").touch()
    assert last_checkpoint(spec(**changes), tmp_path, silent) == newest


def test_another_spec_is_refused_with_what_differs(tmp_path: Path) -> None:
    remember(spec(), tmp_path)
    saved(tmp_path, 100)
    other = spec(schedule={"epochs": 4, "batch_size": 8, "min_size": 320}, seed=7)
    with pytest.raises(SpecError) as refused:
        last_checkpoint(other, tmp_path, silent)
    said = str(refused.value)
    assert said.startswith(
        f"{tmp_path} contains another spec: /schedule/epochs is 3 there, 4 here; /schedule/min_size is"
    )
    assert "/seed is the default there, 7 here" in said
    assert "--overwrite" in said


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    whole = saved(tmp_path, 100)
    broken = saved(tmp_path, 200)
    broken.write_bytes(broken.read_bytes()[:50])
    said: list[Event] = []
    assert last_checkpoint(spec(), tmp_path, said.append) == whole
    (note,) = said
    assert isinstance(note, Note)
    assert (note.code, note.level) == ("checkpoint_corrupt", "warning")
    assert broken.name in note.message


@pytest.mark.parametrize("left", ["only damaged checkpoints", "a format of tomorrow", "only a result"])
def test_what_cannot_be_gone_on_from_is_not_thrown_away_unasked(tmp_path: Path, left: str) -> None:
    if left == "only a result":
        (tmp_path / RESULT).mkdir()
        (tmp_path / RESULT / WEIGHTS).touch()
    elif left == "a format of tomorrow":
        saved(tmp_path, 100, {"format": "fgd-checkpoint/9"})
    else:
        saved(tmp_path, 100).write_bytes(b"")
    with pytest.raises(SpecError, match="--overwrite to start over"):
        last_checkpoint(spec(), tmp_path, lambda _: None)


def test_a_spec_of_a_later_version_beside_the_checkpoints_hides_nothing(tmp_path: Path) -> None:
    newest = saved(tmp_path, 100)
    (tmp_path / "job.json").write_text('{"from": "the future"}')
    assert last_checkpoint(spec(), tmp_path, silent) == newest
