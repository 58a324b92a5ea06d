"""The command line of the trainer: exit codes, event lines, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fgd.data.digits import compose
from fgd.errors import Diverged
from fgd.events import Event, Failed, Finished, Note, Saved, Stepped, from_line, to_lines
from fgd.train import report


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "fgd.train", *arguments], capture_output=True, timeout=200, check=False, **options
    )


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "n",
        "teacher": None,
        "student": {"backbone": "resnet18", "fpn_channels": 64},
        "dataset": {"path": "nowhere"},
        "methods": [],
        "resources": {"device": "cpu", "threads": 1},
    } | changes


def failed(tmp_path: Path, body: str) -> Failed:
    path = tmp_path / "spec.json"
    path.write_text(body)
    done = run(str(path), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    event = from_line(done.stdout.splitlines()[-1])
    assert isinstance(event, Failed)
    return event


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not JSON"),
        (json.dumps(spec())[:-1] + ', "seed": 1, "seed": 2}', "the key 'seed' stands twice in one object"),
        (json.dumps(spec())[:-1] + ', "schedule": {"epochs": 1, "epochs": 2}}', "the key 'epochs' stands twice"),
        (json.dumps(spec(shedule={})), "/shedule"),
        (json.dumps(spec(dataset="ds_" + "0" * 32)), 'the library knows only {"path": folder}'),
        (json.dumps(spec(methods=[{"kind": "fgd"}])), "methods need a teacher"),
        (json.dumps(spec(student={"norm": "frozen"})), "needs pretrained weights"),
        (json.dumps(spec(schedule={"epochs": "3"})), "/schedule/epochs: a whole number is expected here"),
        (json.dumps(spec(resources={"compile": False})), "/resources/compile: the field 'compile' was removed: leave"),
        (json.dumps(spec(teacher={"path": "t"}, methods=[{"kind": "fgd", "alfa": 1}])), "/methods/0/alfa: there is no"),
    ],
)
def test_a_bad_spec_fails_at_once_and_names_the_field(tmp_path: Path, body: str, says: str) -> None:
    event = failed(tmp_path, body)
    assert event.code == "user_error"
    assert says in event.message


@pytest.mark.slow
@pytest.mark.parametrize("module", ["fgd.train", "fgd.plan"])
def test_a_spec_that_a_worker_of_an_earlier_version_staged_is_read(tmp_path: Path, module: str) -> None:
    path, (ours, theirs) = tmp_path / "spec.json", os.pipe()
    path.write_text(json.dumps(spec(resources={"device": "cpu", "threads": 1, "compile": True})))
    command = [sys.executable, "-m", module, str(path), "--out", str(tmp_path / "out"), "--parent-fd", str(ours)]
    done = subprocess.run(command, capture_output=True, timeout=200, check=False, pass_fds=[ours])
    os.close(ours)
    os.close(theirs)
    told = done.stderr + ((tmp_path / "out").read_bytes() if module == "fgd.plan" else b"")
    assert done.returncode == 1
    assert b"compile" not in told
    assert b"nowhere" in told


def test_a_folder_that_is_not_there_is_named_before_torch_is_loaded(tmp_path: Path) -> None:
    event = failed(tmp_path, json.dumps(spec()))
    assert event.code == "user_error"
    assert event.message == f"/dataset/path: {tmp_path}/spec.json: nowhere: no such folder"


def test_an_out_that_cannot_be_a_folder_is_a_wrong_command(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(spec(dataset={"path": str(tmp_path)})))
    (tmp_path / "out").touch()
    done = run(str(tmp_path / "spec.json"), "--out", str(tmp_path / "out"))
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    assert f"--out: {tmp_path}/out: File exists" in done.stderr.decode()


def test_a_diverged_training_tells_step_and_term_in_its_last_event() -> None:
    said: list[Event] = []
    assert report(Diverged(7, "fgd/global", float("nan")), said.append) == 1
    (event,) = [from_line(to_lines(event)) for event in said]
    assert isinstance(event, Failed)
    assert (event.code, event.data) == ("loss_non_finite", {"step": 7, "term": "fgd/global"})


def test_a_bad_spec_is_told_without_loading_torch(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    script = "import sys; from fgd.train import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", script, str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.long
@pytest.mark.slow
def test_sigterm_ends_with_a_checkpoint_that_the_next_run_goes_on_from(tmp_path: Path) -> None:
    compose(tmp_path / "data", counts={"train": 8, "val": 2, "test": 2}, size=64, box_px=(16, 40), per_image=(1, 2))
    schedule = {"epochs": 4, "batch_size": 4, "min_size": 64, "max_size": 64, "evaluate_every": 4}
    path, out = tmp_path / "spec.json", tmp_path / "out"
    path.write_text(json.dumps(spec(dataset={"path": str(tmp_path / "data")}, schedule=schedule)))
    read, write = os.pipe()
    command = [sys.executable, "-m", "fgd.train", str(path), "--out", str(out), "--events-fd", str(write)]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(command, pass_fds=[write], stderr=log) as trainer:
        os.close(write)
        with os.fdopen(read, "rb") as lines:
            events = []
            for line in lines:
                events.append(from_line(line))
                if isinstance(events[-1], Stepped):
                    trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(60) == 75
    assert "training from step 0 of 8, 4 epochs" in (tmp_path / "log").read_text()
    (saved,) = [event for event in events if isinstance(event, Saved)]
    done = run(str(path), "--out", str(out))
    assert done.returncode == 0, done.stderr.decode()
    events = [from_line(line) for line in done.stdout.splitlines()]
    (resumed,) = [event for event in events if isinstance(event, Note) and event.code == "resumed"]
    assert resumed.data["step"] == saved.step
    assert isinstance(events[-1], Finished)
    assert len(list((out / "checkpoints").iterdir())) == 2, "those of the first run go as newer ones come"
    for index in (tmp_path / "data").rglob("*.json"):
        index.write_text(index.read_text().replace('"name": "', '"name": "other '))
    refused = run(str(path), "--out", str(out))
    assert refused.returncode == 2, "the same spec, and other data at the same path"
    assert b"to other data" in refused.stderr
    assert b"--overwrite" in refused.stderr
