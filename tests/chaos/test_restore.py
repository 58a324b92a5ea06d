"""The restore drill, with real processes: back up while a job runs, go on, lose everything, restore, and end it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import conftest as e2e
from tests.e2e.parts import Service, environment, spec_of, until, weights_digest_after

pictures = e2e.pictures
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1500)]
PATIENT_S = 400.0

REAL = {
    "FGD_TRAINER": json.dumps([sys.executable, "-m", "fgd.train"]), "FGD_STALL_S": "200", "FGD_GRACE_S": "60",
    "FGD_LEASE_S": "20", "FGD_KILL_S": "16", "FGD_FREEZE_S": "12",
}  # fmt: skip
TINY = {
    "student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64},
    "schedule": {
        "epochs": 30, "batch_size": 4, "min_size": 64, "max_size": 64, "evaluate_every": 30, "checkpoint_s": 1.0,
    },
    "resources": {"threads": 1},
}  # fmt: skip


@pytest.fixture(params=["sqlite and a folder", "postgresql and s3"])
def places(request: pytest.FixtureRequest) -> Iterator[list[dict[str, str]]]:
    """The settings of two empty places for a service, the second for after the loss of the first."""
    if request.param == "sqlite and a folder":
        yield [{}, {}]
        return
    postgres, s3 = request.getfixturevalue("postgres"), request.getfixturevalue("s3")
    with postgres.empty() as first, postgres.empty() as second:
        yield [
            {"FGD_DATABASE_URL": url} | {f"FGD_{name.upper()}": value for name, value in s3.settings().items()}
            for url in (first, second)
        ]


@pytest.mark.parametrize("trainer", ["scripted", "real"])
def test_what_was_lost_is_restored_and_the_job_of_then_ends_with_its_weights(
    places: list[dict[str, str]], trainer: str, pictures: Path, tmp_path: Path
) -> None:
    more = (REAL if trainer == "real" else {}) | {"FGD_DATA_ROOTS": str(pictures)}
    first, second, folder = tmp_path / "first", tmp_path / "second", tmp_path / "backup"
    first.mkdir()
    with e2e.services("") as start:
        service = start(first, **places[0], **more)
        service.dataset = imported(service, pictures)
        done = submitted(service, trainer)
        digest = service.until_state(done, "succeeded", PATIENT_S)["weights_digest"]
        if trainer == "scripted":
            assert digest == weights_digest_after(900)
        running = submitted(service, trainer)
        until(lambda: "checkpoint_saved" in service.story(running), 60, "a checkpoint")
        called("backup", folder, first, places[0] | more)
        assert service.job(running)["state"] == "running", "the backup was of a running job"
        kept = told(service, done)
        service.until_state(running, "succeeded", PATIENT_S)  # the future that will be lost
    shutil.rmtree(first)

    said = called("restore", folder, second, places[1] | more)
    assert "missing" not in said
    with e2e.services("") as start:
        dataset, service = service.dataset, start(second, **places[1], **more)
        service.dataset = dataset
        assert told(service, done) == kept
        view = service.until_state(running, "succeeded", PATIENT_S)
        assert (view["attempt"], view["weights_digest"]) == (2, digest)
        story = service.story(running)
        assert story.index("attempt_lost") < story.index("note:resumed") < story.index("succeeded")
        assert called("doctor", None, second, places[1] | more).strip() == "database and store agree"


def imported(service: Service, folder: Path) -> str:
    answer = service.http.post("/v1/datasets", json={"name": "pictures", "path": str(folder)})
    assert answer.status_code == 202, answer.text
    id = str(answer.json()["id"])
    until(lambda: service.http.get(f"/v1/datasets/{id}").json()["state"] == "ready", 60, "the import")
    return id


def submitted(service: Service, trainer: str) -> str:
    changes = {"name": "drill", **TINY} if trainer == "real" else {}
    body = spec_of(service.dataset, "steps=900 ms=20 save=20") | changes
    answer = service.http.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def told(service: Service, job: str) -> dict[str, Any]:
    """All that the API says of a job, and every byte of its files, of its log and of its data set's pictures."""
    paths = ["", "/events?limit=200", "/metrics", "/artifacts", "/logs"]
    addresses = [f"/v1/jobs/{job}{path}" for path in paths] + [f"/v1/datasets/{service.dataset}"]
    answers = {address: service.http.get(address) for address in addresses}
    assert {answer.status_code for answer in answers.values()} == {200}
    said = {address: answer.text for address, answer in answers.items()}
    files = {}
    for file in service.http.get(f"/v1/jobs/{job}/artifacts").json()["items"]:
        files[file["name"]] = service.http.get(f"/v1/artifacts/{file['id']}/content").content
    assert files
    return said | files


def called(command: str, folder: Path | None, home: Path, more: dict[str, str]) -> str:
    """`fgd COMMAND [FOLDER]` as a person types it."""
    argv = [sys.executable, "-m", "fgd.cli", command, *([str(folder)] if folder else [])]
    ended = subprocess.run(argv, env=environment(home, **more), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
