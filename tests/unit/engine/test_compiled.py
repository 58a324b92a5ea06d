"""`resources.compile`: the same training within rounding, the same bytes each time, no start without a compiler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fgd.errors import UserError
from fgd.events import Finished, Note, Stepped

METHODS = [{"kind": "fgd"}, {"kind": "mimic"}]


@pytest.fixture(scope="module")
def teacher(train: Any, make_spec: Any) -> str:
    return str(train(make_spec(schedule={"epochs": 1})).result)


@pytest.fixture(scope="module")
def make(make_spec: Any, teacher: str) -> Any:
    def make(compile: bool) -> Any:
        resources = {"device": "cpu", "threads": 1, "compile": compile}
        return make_spec(
            teacher={"path": teacher, "allow_unfit": True}, methods=METHODS, resources=resources, schedule={"epochs": 1}
        )

    return make


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="this host has no C++ compiler")
def test_a_compiled_training_is_the_same_within_rounding_and_repeats_to_the_byte(train: Any, make: Any) -> None:
    eager, *compiled = (train(make(compile)) for compile in (False, True, True))

    first, again = (run.of(Finished)[0].weights_digest for run in compiled)
    assert first == again
    losses = [run.of(Stepped)[0].values["loss/fgd/global"] for run in (compiled[0], eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    manifest = json.loads((compiled[0].result / "manifest.json").read_text())
    assert manifest["machine"]["compiled"] is True
    assert any(note.code == "started_in" and "compiling" in note.data for note in compiled[0].of(Note))


def test_without_a_compiler_a_training_does_not_start(
    train: Any, make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"resources\.compile"):
        train(make(True))
