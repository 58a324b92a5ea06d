"""Dockerfile.api carried out without Docker: its COPY and RUN lines, in a folder that stands for the image.

It installs every package of the image anew, which takes minutes: `make images`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import compose
from tests.e2e.parts import ROOT, until

pytestmark = [pytest.mark.images, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; its interpreter is `venv/bin/python`, which began with nothing but pip."""
    root = tmp_path_factory.mktemp("image")
    sees = root / "context"
    for path in compose.context():
        (sees / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, sees / path)
    told: dict[str, str] = {}
    at = root
    for instruction, words in compose.dockerfile(ROOT / "deploy" / "Dockerfile.api"):
        if instruction == "FROM":
            # Stages share one file tree here, but each begins with packages of its own.
            shutil.rmtree(root / "venv", ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
            told, at = {}, root
        elif instruction == "ENV":
            told |= dict(re.findall(r"(\w+)=(\S+)", words))
        elif instruction == "WORKDIR":
            at = root / words.lstrip("/")
            at.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            copy(root, sees, at, words)
        elif instruction == "RUN" and not words.startswith("useradd"):
            run(root, told, at, words)
    return root


def copy(root: Path, context: Path, at: Path, words: str) -> None:
    *sources, target = words.removeprefix("--from=wheel ").split()
    into = root / target.lstrip("/") if target.startswith("/") else at / target
    into.mkdir(parents=True, exist_ok=True)
    for source in sources:
        found = root / source.lstrip("/") if words.startswith("--from") else context / source
        if found.is_dir():
            if found != into:
                shutil.copytree(found, into, dirs_exist_ok=True)
        else:
            shutil.copy(found, into)


def run(root: Path, told: dict[str, str], at: Path, words: str) -> None:
    words = re.sub(r"(?<=[ =])/(opt|wheels)\b", rf"{root}/\1", words)
    environment = {**told, "PATH": f"{root}/venv/bin:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    done = subprocess.run(
        ["sh", "-euc", words], cwd=at, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"RUN {words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def inside(image: Path, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{image}/venv/bin:{os.environ['PATH']}", "PYTHONSAFEPATH": "1", **more}
    return subprocess.run([*words], cwd=image, env=environment, capture_output=True, text=True, check=False)


def test_there_is_no_torch_and_the_rest_imports(image: Path) -> None:
    python = image / "venv" / "bin" / "python"
    assert "fgd" in inside(image, image / "venv" / "bin" / "fgd", "--help").stdout
    for module in ("torch", "torchvision"):
        assert "ModuleNotFoundError" in inside(image, python, "-c", f"import {module}").stderr
    done = inside(
        image, python, "-c", "import api.main, worker.app, deploy.health, psycopg, obstore; print(api.__file__)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(image))


@pytest.fixture
def server(image: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (command,) = [words for word, words in compose.dockerfile(ROOT / "deploy" / "Dockerfile.api") if word == "CMD"]
    assert command == '["python", "-m", "deploy.api"]'
    environment = {
        "PATH": f"{image}/venv/bin:{os.environ['PATH']}", "PYTHONSAFEPATH": "1",
        "FGD_HOME": str(tmp_path), "FGD_HOST": "0.0.0.0", "FGD_PORT": str(port), "FGD_API_KEY": "k" * 40,
    }  # fmt: skip
    assert inside(image, image / "venv" / "bin" / "python", "-m", "deploy.migrate", **environment).returncode == 0
    with (tmp_path / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [image / "venv" / "bin" / "python", "-m", "deploy.api"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield process, environment
    finally:
        process.kill()
        process.wait()


def test_api_answers(image: Path, server: tuple[subprocess.Popen[bytes], dict[str, str]], tmp_path: Path) -> None:
    process, environment = server

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "api.log").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{environment['FGD_PORT']}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    until(answers, 30)
    healthy = inside(image, image / "venv" / "bin" / "python", "-m", "deploy.health", "api", **environment)
    assert (healthy.returncode, healthy.stderr) == (0, "")
    process.terminate()
    assert process.wait(timeout=15) in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in (tmp_path / "api.log").read_text()


def test_api_that_others_could_reach_needs_a_key(image: Path, tmp_path: Path) -> None:
    python = image / "venv" / "bin" / "python"
    done = inside(image, python, "-m", "deploy.api", FGD_HOME=str(tmp_path), FGD_HOST="0.0.0.0", FGD_PORT="0")
    assert done.returncode == 1
    assert "FGD_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
