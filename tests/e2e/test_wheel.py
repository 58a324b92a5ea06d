"""The wheel in an environment of its own, used in a folder that holds packages of the same names as ours."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import wheel
from tests.e2e.parts import PATIENT_S, processes_of, until

pytestmark = pytest.mark.e2e
OURS = ("api", "worker", "fgd", "deploy")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python = wheel.environment(folder / "venv")
    wheel.install(python, "--no-deps", "--no-index", str(wheel.build(folder)))
    wheel.lend_packages(python)
    return python


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """A folder with packages and modules of our names; whoever imports one is written down."""
    folder = tmp_path / "a project of somebody's"
    caught = tmp_path / "caught"
    trap = f"import sys\nopen({str(caught)!r}, 'a').write(__name__ + ' ' + repr(sys.orig_argv) + chr(10))\n"
    for name in OURS:
        (folder / name).mkdir(parents=True)
        for module in ("__init__", "__main__", "main", "cli", "train", "local"):
            (folder / name / f"{module}.py").write_text(trap)
    for name in ("celeryconfig", "torch", "uvicorn", "alembic", "sitecustomize"):
        (folder / f"{name}.py").write_text(trap)
    yield folder
    assert not caught.exists(), caught.read_text()


def environment(**more: str) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"OMP_NUM_THREADS": "1"} | more


def runs(home: Path, *words: str) -> bool:
    """Every one of these is in the command line of a process of that home."""
    commands = processes_of(home).values()
    return all(any(word in command for command in commands) for word in words)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_folder_would_be_in_the_way(python: Path, hostile: Path, tmp_path: Path) -> None:
    """What the others avoid: the trap works, and the environment has our code from the wheel."""
    said = subprocess.run([python, "-m", "worker"], cwd=hostile, env=environment(), capture_output=True, check=False)
    assert said.returncode == 0
    caught = tmp_path / "caught"
    assert caught.read_text().startswith("worker ")
    caught.unlink()
    where = [
        python,
        "-P",
        "-c",
        "import fgd, api, worker, deploy; print(*(m.__file__ for m in (fgd, api, worker, deploy)))",
    ]
    files = subprocess.run(where, cwd=hostile, env=environment(), capture_output=True, text=True, check=True).stdout
    assert files.count(str(python.parents[1])) == len(OURS), files


def test_serve_comes_up_and_its_worker_beats(python: Path, hostile: Path, tmp_path: Path) -> None:
    port, home = free_port(), tmp_path / "home"
    fgd = python.with_name("fgd")
    with (tmp_path / "serve.out").open("wb") as out:
        service = subprocess.Popen(
            [fgd, "serve", "--port", str(port), "--home", str(home)],
            cwd=hostile, env=environment(FGD_BEAT_S="0.5"), stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: "is ready at" in (tmp_path / "serve.out").read_text() or service.poll() is not None)
        assert service.poll() is None, (tmp_path / "serve.out").read_text()
        ready = httpx.get(f"http://127.0.0.1:{port}/readyz").json()
        assert ready["ready"], ready
        assert ready["broker"]["detail"] == "reachable"
        assert httpx.get(f"http://127.0.0.1:{port}/version").json()["version"] != "unknown"
        assert runs(home, "deploy.api", "-m worker ", "valkey-server")
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=PATIENT_S) == 0, (tmp_path / "serve.out").read_text()


def test_one_more_worker_comes_up(python: Path, hostile: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    told = environment(FGD_HOME=str(home))
    subprocess.run([python, "-P", "-m", "deploy.migrate"], cwd=hostile, env=told, check=True, capture_output=True)
    with (tmp_path / "worker.out").open("wb") as out:
        worker = subprocess.Popen([python.with_name("fgd"), "worker"], cwd=hostile, env=told, stdout=out, stderr=out)
    try:
        until(lambda: "looks for jobs every" in (tmp_path / "worker.out").read_text(), what="the worker's first words")
    finally:
        worker.terminate()
        assert worker.wait(timeout=PATIENT_S) == 0, (tmp_path / "worker.out").read_text()


def test_training_runs(python: Path, hostile: Path, pictures: Path, tmp_path: Path) -> None:
    spec = {
        "name": "from the wheel", "teacher": None, "methods": [], "dataset": {"path": str(pictures)},
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 64},
        "schedule": {"epochs": 1, "batch_size": 4, "min_size": 64, "max_size": 64},
    }  # fmt: skip
    (hostile / "spec.json").write_text(json.dumps(spec))
    command = [python.with_name("fgd"), "train", "spec.json", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=hostile, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("student.safetensors"))


def test_demo_starts_its_service(python: Path, hostile: Path, pictures: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [python.with_name("fgd"), "demo", "--home", str(home), "--data", str(pictures)]
    with (tmp_path / "demo.out").open("wb") as out:
        demo = subprocess.Popen(command, cwd=hostile, env=environment(), stdout=out, stderr=out, start_new_session=True)
    try:
        until(lambda: demo.poll() is not None or runs(home, "deploy.api", "-m worker "), what="the demo's service")
        assert demo.poll() is None, (tmp_path / "demo.out").read_text()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(timeout=PATIENT_S)
    until(lambda: not processes_of(home), what="the end of every process")
