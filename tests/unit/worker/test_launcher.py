"""The scripted trainer under the launcher: what it says arrives, what it is told happens, nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import fgd
from fgd.detector_specs import FCOS
from fgd.events import Evaluated, Event, Failed, Finished, Saved, Stepped
from fgd.process.lifeline import DEADLINE
from fgd.spec import JobSpec
from fgd.spec_fields import FromPath
from worker import launcher
from worker.launcher import MARK, Trainer, bounded_lines, kill_stale

ROOT = Path(fgd.__path__[0]).parent
SCRIPT = ROOT / "tests" / "scripted_trainer.py"
Start = Callable[..., Trainer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Trainer] = []

    def start(words: str = "", *more: str) -> Trainer:
        folder = tmp_path / "job" / "a1"
        folder.mkdir(parents=True, exist_ok=True)
        spec = JobSpec(name=f"t {words}", teacher=None, methods=(), dataset=FromPath(path="/none"), student=FCOS())
        (folder / "spec.json").write_text(spec.model_dump_json())
        argv = [sys.executable, str(SCRIPT), str(folder / "spec.json"), "--out", str(folder / "out"), *more]
        started.append(Trainer(argv, folder, tmp_path / "run" / "job.a1.json", threads=1))
        return started[-1]

    yield start
    for trainer in started:
        trainer.close()


def read_all(trainer: Trainer, timeout_s: float = 10.0) -> tuple[list[Event], bytes]:
    events: list[Event] = []
    log = b""
    until = time.monotonic() + timeout_s
    while not trainer.over() and time.monotonic() < until:
        more, bytes_ = trainer.read(0.1)
        events, log = events + more, log + bytes_
    assert trainer.over(), "the trainer did not end"
    return events, log


def read_until_step(trainer: Trainer, step: int) -> None:
    for _ in range(100):
        if any(isinstance(event, Stepped) and event.step >= step for event in trainer.read(0.05)[0]):
            return
    raise AssertionError(f"step {step} never came")


def wait_until(true: Callable[[], bool], timeout_s: float = 5.0) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_events_and_log_of_a_good_run_arrive_whole(start: Start, tmp_path: Path) -> None:
    trainer = start("steps=30 ms=1")
    events, log = read_all(trainer)
    assert trainer.returncode() == 0
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 31))
    assert [event.step for event in events if isinstance(event, Saved)] == [10, 20, 30]
    assert isinstance(events[-1], Finished)
    assert b"training from step 0" in log
    assert trainer.close()
    assert not (tmp_path / "run" / "job.a1.json").exists()


def test_terminated_trainer_saves_and_exits_75(start: Start) -> None:
    trainer = start("steps=10000 ms=5 save=100000")
    read_until_step(trainer, 5)
    trainer.terminate()
    events, _ = read_all(trainer)
    assert trainer.returncode() == 75
    assert isinstance(events[-1], Saved)


def test_trainer_that_ignores_sigterm_is_killed(start: Start) -> None:
    trainer = start("steps=10000 ms=5 fault=ignore-term at=3")
    read_until_step(trainer, 6)
    trainer.terminate()
    read_until_step(trainer, 20)
    trainer.kill()
    read_all(trainer)
    assert trainer.returncode() == -signal.SIGKILL


def test_frozen_trainer_makes_no_steps_until_thawed(start: Start) -> None:
    trainer = start("steps=10000 ms=5")
    read_until_step(trainer, 3)
    trainer.freeze()
    trainer.read(0.2)
    assert trainer.read(0.3) == ([], b"")
    trainer.thaw()
    read_until_step(trainer, 4)


def test_killing_reaches_a_frozen_trainer(start: Start) -> None:
    trainer = start("steps=10000 ms=5")
    read_until_step(trainer, 3)
    trainer.freeze()
    trainer.kill()
    read_all(trainer)
    assert trainer.returncode() == -signal.SIGKILL


def test_bad_lines_are_logged_and_never_fatal(start: Start) -> None:
    trainer = start("steps=6 ms=1 fault=bad-lines at=3")
    events, log = read_all(trainer)
    assert trainer.returncode() == 0
    assert isinstance(events[-1], Finished)
    assert log.count(b"[worker] not an event line") == 3 * 4


def test_a_stream_of_bad_lines_is_a_warning_once_and_what_the_log_leaves_out_is_counted(tmp_path: Path) -> None:
    script = "import os, sys; os.write(int(sys.argv[sys.argv.index('--events-fd') + 1]), b'noise\\n' * 150)"
    argv = [sys.executable, "-c", script, "--out", str(tmp_path)]
    with Trainer(argv, tmp_path, tmp_path / "run" / "x.json") as trainer:
        events, log = read_all(trainer)

    assert events == [launcher.NOT_UNDERSTOOD]
    assert log.count(b"[worker] not an event line") == launcher.MAX_COMPLAINTS
    assert b"[worker] 50 more lines were not event lines" in log


def test_each_ap_of_ten_thousand_classes_arrives(start: Start) -> None:
    events, log = read_all(start("steps=2 ms=1 classes=10000"))
    told = [event.values for event in events if isinstance(event, Evaluated)]

    assert b"not an event line" not in log
    assert told[0] == {"ap": 40.0, "ap50": 70.0}
    assert sum(map(len, told[1:])) == 10_000
    assert {name: value for values in told[1:] for name, value in values.items()} == {
        f"ap/class {n}": float(n % 100) for n in range(10_000)
    }


def test_longer_log_than_allowed_is_cut_and_training_goes_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "MAX_LOG", 1_000_000)
    trainer = start("steps=20 ms=1 fault=flood at=1")
    events, log = read_all(trainer)
    assert isinstance(events[-1], Finished)
    assert len(log) < 1_100_000
    assert b"the rest is not kept" in log


def test_daemon_that_left_the_group_dies_with_the_run(start: Start) -> None:
    trainer = start("steps=10 ms=1 fault=daemon at=3")
    mark = trainer.mark
    read_all(trainer)
    strays = list(launcher._marked(mark))
    assert trainer.close()
    assert len(strays) == 1
    assert not any(alive(stray.pid) for stray in strays)


def test_closed_pipe_of_a_living_trainer_is_not_its_end(start: Start) -> None:
    trainer = start("steps=10 ms=1 fault=close-pipe at=3")
    for _ in range(8):
        trainer.read(0.1)
    assert trainer.returncode() is None
    assert not trainer.over()
    assert trainer.close()


def test_failed_event_of_a_diverged_run_is_its_last(start: Start) -> None:
    events, _ = read_all(start("fault=nan at=3 ms=1"))
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "loss_non_finite"


def test_resumed_run_ends_with_the_same_weights(start: Start, tmp_path: Path) -> None:
    whole, _ = read_all(start("steps=30 ms=1 save=10"))
    saved = next(event for event in whole if isinstance(event, Saved) and event.step == 20)
    rest, _ = read_all(start("steps=30 ms=1 save=10", "--resume", saved.path))
    assert isinstance(whole[-1], Finished)
    assert isinstance(rest[-1], Finished)
    assert whole[-1].weights_digest == rest[-1].weights_digest


def test_environment_of_a_trainer_holds_no_secret(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGD_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("FGD_API_KEY", "k" * 40)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("TORCH_HOME", "weights")
    environment = psutil.Process(start("steps=10000").pid).environ()
    allowed = {
        *launcher.PASSED_ON,
        *launcher.FOLDERS_PASSED_ON,
        MARK,
        DEADLINE,
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
    }
    assert environment.keys() <= allowed | {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "LC_CTYPE"}
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["TORCH_HOME"] == str(Path.cwd() / "weights")  # the trainer runs elsewhere


def test_a_trainer_is_told_where_pretrained_weights_lie_and_where_it_remembers_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = launcher.scrubbed_env("mark", 1, None, weights=Path("weights"), teachers=Path("home/cache/teachers"))
    assert told["FGD_WEIGHTS_DIR"] == str(tmp_path / "weights")  # the trainer runs elsewhere
    assert told["FGD_TEACHER_CACHE"] == str(tmp_path / "home" / "cache" / "teachers")
    assert not {"FGD_WEIGHTS_DIR", "FGD_TEACHER_CACHE"} & launcher.scrubbed_env("mark", 1, None).keys()


def test_program_that_does_not_exist_raises_and_leaks_nothing(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(FileNotFoundError):
        Trainer(["/nowhere/trainer"], tmp_path, tmp_path / "run.json")
    assert psutil.Process().num_fds() == before


def test_trainer_whose_run_file_cannot_be_written_is_not_left_running(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        Trainer(["sh", "-c", "sleep 3600"], tmp_path, tmp_path / "file" / "run.json")
    assert not [child for child in psutil.Process().children() if child.name() == "sh"]


def test_pipes_of_an_ended_run_are_given_back(start: Start) -> None:
    read_all(start("steps=1 ms=1"))
    before = psutil.Process().num_fds()
    trainer = start("steps=1 ms=1")
    read_all(trainer)
    trainer.close()
    assert psutil.Process().num_fds() <= before


SUPERVISOR = """
import sys, time
from pathlib import Path
from worker.launcher import Trainer
trainer = Trainer(sys.argv[3:], Path(sys.argv[1]), Path(sys.argv[2]))
print(trainer.pid, flush=True)
time.sleep(3600)
"""


def orphan(tmp_path: Path, argv: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A supervisor in a process of its own, and its trainer's number."""
    run = tmp_path / "run" / "x.json"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), str(run), *argv],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    supervisor.stdout.close()
    return supervisor, pid


def test_trainer_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    spec = JobSpec(name="t steps=100000", teacher=None, methods=(), dataset=FromPath(path="/none"), student=FCOS())
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    argv = [sys.executable, str(SCRIPT), str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]
    supervisor, pid = orphan(tmp_path, argv)
    time.sleep(0.5)
    assert alive(pid)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not alive(pid), timeout_s=2.0)


def test_stale_group_is_ended_only_after_its_supervisor_died(tmp_path: Path) -> None:
    careless = [sys.executable, "-c", "import time; time.sleep(3600)"]  # knows no lifeline
    supervisor, pid = orphan(tmp_path, careless)
    try:
        assert kill_stale(tmp_path / "run") == []
        assert alive(pid)
        supervisor.kill()
        supervisor.wait()
        assert kill_stale(tmp_path / "run") == [pid]
        wait_until(lambda: not alive(pid))
        assert not list((tmp_path / "run").iterdir())
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.mark.parametrize("change", [{"created": 1.0}, {"boot_id": "another boot"}])
def test_process_with_a_reused_number_is_left_alone(tmp_path: Path, change: dict[str, object]) -> None:
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    try:
        run = {
            "boot_id": launcher.boot_id(),
            "pid": innocent.pid,
            "created": launcher._created(innocent.pid),
            "mark": "nobody's",
            "supervisor_pid": 2**22 + 1,
            "supervisor_created": 0.0,
        }
        (tmp_path / "x.json").write_text(json.dumps(run | change))
        assert kill_stale(tmp_path) == []
        assert alive(innocent.pid)
    finally:
        innocent.kill()
        innocent.wait()


def test_torn_run_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"pid": 12')
    assert kill_stale(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_lines_without_end_do_not_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"a\n" + b"x" * 10_000_000 + b"\nb\n")
    with open(tmp_path / "lines", "rb") as stream:
        lines = list(bounded_lines(stream))
    assert lines[0] == b"a\n"
    assert lines[2] == b"b\n"
    assert len(lines[1]) == launcher.MAX_LINE + 1
