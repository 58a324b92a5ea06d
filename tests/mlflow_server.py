"""A real MLflow server as a process. `make test-mlflow` installs it into an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PROGRAM = Path(__file__).resolve().parents[1] / ".venv" / "mlflow" / "bin" / "mlflow"
READY_S = 240.0
"""It loads for ten seconds of processor time, which on a busy host is minutes."""


def why_not() -> str | None:
    return None if PROGRAM.exists() else f"there is no MLflow server at {PROGRAM}; `make test-mlflow` installs it"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, port: int) -> Iterator[httpx.Client]:
    """With its files in `folder`, where another may go on later. Ends as if it was killed."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        str(PROGRAM), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    with (folder / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=os.environ | quiet, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as http:
            _wait(http, process, folder)
            yield http
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def _wait(http: httpx.Client, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if http.get("/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the MLflow server did not start:\n{(folder / 'mlflow.log').read_text()[-3000:]}")
