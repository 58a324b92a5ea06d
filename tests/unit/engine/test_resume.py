"""Interrupted anywhere, by SIGKILL or SIGTERM, a training ends with the bytes of one that was not: the real trainer as
a process, with everything that has a state. Its steps are the same calls on the same values, on any processor."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgd.engine import checkpoint
from fgd.engine.checkpoint import TrainingState
from fgd.errors import CheckpointUnreadable
from fgd.events import Evaluated, Event, Finished, Saved, Started, Stepped, from_line
from fgd.spec import JobSpec

MakeSpec = Callable[..., JobSpec]
EVERYTHING = {
    "epochs": 3,
    "batch_size": 2,
    "accumulate": 2,
    "scales": [64, 96],
    "augment": {"photometric": {"brightness": 0.3, "hue": 0.05}, "crop": {"keep": "share"}},
    "ema": {"decay": 0.9},
    "early_stop": {"patience": 30},
    "checkpoint_steps": 2,
}


def newest(out: Path) -> list[str]:
    found = sorted((out / "checkpoints").glob("*.pt"))
    return ["--resume", str(found[-1])] if found else []


def attempt(spec: Path, out: Path, kill: signal.Signals | None, after_steps: int) -> tuple[list[Event], int]:
    """The trainer from what is on disk; `kill` it after so many steps of its own."""
    command = [sys.executable, "-m", "fgd.train", str(spec), "--out", str(out), "--events-fd", "1", *newest(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    events: list[Event] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        began = None
        for line in process.stdout:
            if not line.endswith(b"\n"):  # killed in the middle of it
                break
            events.append(from_line(line))
            if isinstance(events[-1], Started):
                began = events[-1].step
            if (
                isinstance(events[-1], Stepped)
                and began is not None
                and events[-1].step - began >= after_steps
                and kill
            ):
                process.send_signal(kill)
                kill = None
    return events, process.returncode


@pytest.mark.long
@pytest.mark.slow
def test_killed_and_told_to_stop_at_random_steps_it_ends_with_the_same_bytes(
    make_spec: MakeSpec, teacher: Path, tmp_path: Path
) -> None:
    reference = {"path": str(teacher), "allow_unfit": True}
    spec = make_spec(teacher=reference, methods=[{"kind": "fgd"}], schedule=EVERYTHING)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    whole, code = attempt(tmp_path / "spec.json", tmp_path / "whole", None, 0)
    assert code == 0
    dice, told = random.Random(7), []
    for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        events, code = attempt(tmp_path / "spec.json", tmp_path / "broken", kill, dice.randint(1, 3))
        assert code == (75 if kill == signal.SIGTERM else -9)
        told += events
    events, code = attempt(tmp_path / "spec.json", tmp_path / "broken", None, 0)
    assert code == 0
    assert next(event for event in events if isinstance(event, Started)).step > 0
    told += events
    for file in ("student.safetensors", "manifest.json", "recipe.json"):
        mine, theirs = (tmp_path / run / "result" / file for run in ("broken", "whole"))
        assert mine.read_bytes() == theirs.read_bytes(), file
    ends = [next(e for e in events if isinstance(e, Finished)) for events in (told, whole)]
    assert ends[0].files == ends[1].files
    assert epochs(told) == epochs(whole)
    assert scores(told) == scores(whole)


def epochs(events: list[Event]) -> dict[int, dict[str, float | None]]:
    """The last told means of each epoch, by step."""
    return {
        e.step: {name: value for name, value in e.values.items() if name.startswith("epoch/")}
        for e in events
        if isinstance(e, Stepped) and "epoch/loss/total" in e.values
    }


def scores(events: list[Event]) -> dict[tuple[str, int], Any]:
    return {(e.split, e.step): e.values for e in events if isinstance(e, Evaluated)}


# --- the file -------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "one.pt"
    checkpoint.save(path, {"model": {"w": torch.arange(5000.0)}}, TrainingState(step=3), {}, "spec")
    return path


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one.pt"
    contents = {"model": {str(n): torch.rand(200, 300) for n in range(20)}}
    digest = checkpoint.save(path, contents, TrainingState(step=3), {}, "spec")
    from api.core.store.names import sha256_file

    assert digest == sha256_file(path)
    assert [each.name for each in path.parent.iterdir()] == ["one.pt"]
    whole, state, _ = checkpoint.load(path, "spec", torch.device("cpu"))
    assert state.step == 3
    assert torch.equal(whole["model"]["7"], contents["model"]["7"])


@pytest.mark.parametrize("harm", ["truncated", "empty", "another spec", "another version", "another state"])
def test_a_file_that_cannot_be_gone_on_from_is_told_as_such(saved: Path, harm: str) -> None:
    if harm == "truncated":
        saved.write_bytes(saved.read_bytes()[:-200])
    elif harm == "empty":
        saved.write_bytes(b"")
    elif harm in ("another version", "another state"):
        whole = torch.load(saved, weights_only=True)
        whole |= {"format": "fgd-checkpoint/9"} if harm == "another version" else {"state": {"future": 1}}
        torch.save(whole, saved)
    with pytest.raises(CheckpointUnreadable) as caught:
        checkpoint.load(saved, "other" if harm == "another spec" else "spec", torch.device("cpu"))
    why = {"why": "another_spec"} if harm == "another spec" else {}
    assert caught.value.data == {"checkpoint": "unreadable", **why}
    assert pickle.loads(pickle.dumps(caught.value)).data == caught.value.data
    assert "one.pt" in str(caught.value)


def test_no_memory_to_read_it_is_not_the_file_s_fault(saved: Path) -> None:
    with pytest.raises(MemoryError), checkpoint.reading(saved):
        raise MemoryError


def test_steps_bound_the_interval_and_the_cost_is_told(train: Any, make_spec: MakeSpec) -> None:
    run = train(make_spec(schedule={"checkpoint_steps": 1, "checkpoint_s": 1000.0}))
    assert [event.step for event in run.of(Saved)] == [1, 2, 3, 4, 5, 6]
    best = [event for event in run.of(Saved) if event.best]
    assert best
    assert {event.step for event in best} <= {3, 6}
    shares = [event.values["checkpoint/share"] for event in run.of(Stepped)]
    assert shares[0] == 0
    assert 0 < shares[-1] < 1
    note = next(event for event in run.events if getattr(event, "code", "") == "checkpoint_cost")
    assert note.data["checkpoints"] == 6
    assert 0 < note.data["share"] < 1
    evaluated = [event.values["evaluate/share"] for event in run.of(Stepped)]
    assert evaluated[0] == 0, "no evaluation was made yet"
    assert 0 < evaluated[-1] < 1
    note = next(event for event in run.events if getattr(event, "code", "") == "evaluation_cost")
    assert note.data["seconds"] > 0
    assert 0 < note.data["share"] < 1


def test_best_weights_that_are_the_present_ones_are_written_once(train: Any, make_spec: MakeSpec) -> None:
    run = train(make_spec(schedule={"checkpoint_steps": 1}))
    sizes = {event.step: (event.size, event.best) for event in run.of(Saved)}
    without, (at_best, best) = sizes[2][0], sizes[3]
    assert best
    assert at_best < 1.02 * without
