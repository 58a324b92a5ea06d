"""The helpers of the README's curl walk: an error is told in the service's words, a restart is waited for."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from pathlib import Path

import pytest

from tests.unit.http_fake import Answer, closed_port, job_json, problem, serving

README = Path(__file__).parents[2] / "README.md"
BLOCK = README.read_text().partition("```bash\n")[2].partition("```")[0]
HELPERS, FIRST_STEP = BLOCK.partition("# 1.")[0], BLOCK.partition("# 1.")[2].partition("while")[0]
LAST_STEP = BLOCK[BLOCK.index("SUM=") :]
JOB = job_json()["id"]


def bash(script: str, url: str, cwd: Path, helpers: str = HELPERS) -> subprocess.CompletedProcess[str]:
    """As a person's shell runs it, without `set -e`."""
    helpers = helpers.replace("http://127.0.0.1:8000", url)
    return subprocess.run(
        ["bash", "-c", helpers + script], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_refusal_is_told_in_the_services_words(tmp_path: Path) -> None:
    with serving() as server:
        server.routes[("POST", "/v1/datasets")] = problem(422, "path_not_found", "'/path/to/data' is not a folder")
        done = bash("# 1." + FIRST_STEP, server.url, tmp_path)
    assert done.stderr.strip() == "'/path/to/data' is not a folder"


def test_without_a_service_there_is_no_traceback(tmp_path: Path) -> None:
    done = bash("# 1." + FIRST_STEP, f"http://127.0.0.1:{closed_port()}", tmp_path)
    assert "no answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_following_a_job_survives_a_restart_of_the_service(tmp_path: Path) -> None:
    """Not there at first; then it runs, for a look; then it has ended."""
    port = closed_port()
    looks = [Answer(body=job_json("running")), Answer(body=job_json("running")), Answer(body=job_json("succeeded"))]
    up, over = threading.Event(), threading.Event()

    def start() -> None:
        over.wait(1.0)
        with serving(port) as server:
            server.routes[("GET", f"/v1/jobs/{JOB}")] = looks
            up.set()
            over.wait(30.0)

    service = threading.Thread(target=start)
    service.start()
    try:
        done = bash(f"sleep() {{ :; }}\nfollow {JOB}", f"http://127.0.0.1:{port}", tmp_path)
    finally:
        over.set()
        service.join()
    assert up.is_set()
    assert done.stdout.splitlines()[-2:] == ["running ", "succeeded"], done.stderr


@pytest.mark.parametrize(("content", "says", "code"), [(b"whole", "right", 0), (b"torn", "WRONG", 1)])
def test_the_sum_is_compared(tmp_path: Path, content: bytes, says: str, code: int) -> None:
    (tmp_path / "student.safetensors").write_bytes(content)
    tag = {"ETag": f'"sha256-{hashlib.sha256(b"whole").hexdigest()}"'}
    with serving() as server:
        server.routes[("HEAD", "/v1/artifacts/art_1/content")] = Answer(body=b"whole", headers=tag)
        done = bash("ARTIFACT=art_1\n" + LAST_STEP, server.url, tmp_path)
    assert (says in done.stdout, done.returncode) == (True, code), done.stderr
