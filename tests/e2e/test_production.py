"""`fgd serve` on what a production has: PostgreSQL in place of the SQLite file, S3 in place of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fgd.data.digits import compose
from tests.e2e.conftest import real_services, services
from tests.e2e.parts import Service, trainers, until, weights_digest_after
from tests.postgres import Postgres
from tests.s3 import S3

pytestmark = pytest.mark.e2e


@pytest.fixture
def production(postgres: Postgres, pictures: Path, tmp_path: Path) -> Iterator[Service]:
    """A service on an empty database, with a data set that it imported."""
    home = tmp_path / "home"
    home.mkdir()
    with postgres.empty() as url, services("") as start:
        service = start(home, FGD_DATABASE_URL=url, FGD_DATA_ROOTS=str(pictures))
        answer = service.http.post("/v1/datasets", json={"name": "pictures", "path": str(pictures)})
        assert answer.status_code == 202, answer.text
        service.dataset = answer.json()["id"]

        def state() -> str:
            return str(service.http.get(f"/v1/datasets/{service.dataset}").json()["state"])

        until(lambda: state() != "verifying", what="the import")
        assert state() == "ready", service.worker_log()
        yield service


def test_job_survives_the_kill_of_its_worker_and_is_downloaded(production: Service) -> None:
    job = production.post("steps=150 ms=20 save=20")
    production.until_step(job, 60)
    os.kill(production.pid("-m worker"), signal.SIGKILL)
    until(lambda: not trainers(production.home), timeout_s=4, what="the end of the trainer")

    view = production.until_state(job, "succeeded")
    assert (view["attempt"], view["weights_digest"]) == (2, weights_digest_after(150))
    story = production.story(job)
    assert story.count("succeeded") == 1
    assert story.index("checkpoint_saved") < story.index("attempt_lost") < story.index("note:resumed")
    for file in production.http.get(f"/v1/jobs/{job}/artifacts").json()["items"]:
        content = production.http.get(f"/v1/artifacts/{file['id']}/content").content
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert not (production.home / "fgd.db").exists()
    assert production.http.get("/readyz").json()["database"]["detail"].startswith("postgresql")


@pytest.fixture
def away(postgres: Postgres, s3: S3, tmp_path: Path) -> Iterator[Service]:
    """The real trainer; rows in PostgreSQL, files in S3, downloads from S3 itself; nothing on the host of the API."""
    store = {f"FGD_{name.upper()}": str(value) for name, value in s3.settings().items()}
    with (
        postgres.empty() as url,
        real_services(tmp_path / "home", tmp_path, FGD_DATABASE_URL=url, FGD_STORE_PROXY="false", **store) as service,
    ):
        yield service


def test_real_training_on_postgresql_and_s3_is_downloaded_from_s3_and_loads_strictly(
    away: Service, s3: S3, tmp_path: Path
) -> None:
    compose(
        tmp_path / "digits",
        counts={"train": 8, "val": 2, "test": 2}, size=64, classes=("0", "7"), box_px=(16, 40), per_image=(1, 2),
    )  # fmt: skip
    zip = Path(shutil.make_archive(str(tmp_path / "digits"), "zip", tmp_path / "digits"))
    http = away.http
    dataset = http.post("/v1/datasets", json={"name": "digits"}).json()
    sent = http.put(dataset["upload_url"], content=zip.read_bytes(), headers={"Content-Type": "application/zip"})
    assert sent.status_code == 202, sent.text

    def imported() -> str:
        return str(http.get(f"/v1/datasets/{dataset['id']}").json()["state"])

    until(lambda: imported() != "verifying", what="the import")
    assert imported() == "ready", away.worker_log()
    body = {
        "name": "digits", "teacher": None, "methods": [], "dataset": dataset["id"],
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 64},
        "schedule": {"epochs": 1, "batch_size": 4, "min_size": 64, "max_size": 64}, "resources": {"threads": 1},
    }  # fmt: skip
    job = http.post("/v1/jobs", json=body).json()["id"]
    done = away.until_state(job, "succeeded", timeout_s=120)

    folder = tmp_path / "student"
    folder.mkdir()
    for file in http.get(f"/v1/jobs/{job}/artifacts").json()["items"]:
        answer = http.get(f"/v1/artifacts/{file['id']}/content")
        assert answer.status_code == 307, answer.text
        assert answer.headers["Location"].startswith(s3.endpoint)
        content = httpx.get(answer.headers["Location"]).raise_for_status().content  # without our key, without our API
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        (folder / file["name"]).write_bytes(content)
    # model.py loads strictly, and knows torchvision and safetensors only: -I keeps this checkout out of its sight
    script = "import runpy; print(sum(p.numel() for p in runpy.run_path('model.py')['load']().parameters()))"
    plain = subprocess.run([sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert int(plain.stdout) == manifest["parameters"]
    assert manifest["weights_digest"] == done["weights_digest"]
    assert http.get("/readyz").json()["database"]["detail"].startswith("postgresql")
    home = tmp_path / "home"
    assert not (home / "fgd.db").exists()
    assert not (home / "blobs").exists()
