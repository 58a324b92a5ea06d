"""`fgd serve` on what a production has: PostgreSQL in place of the SQLite file."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import services
from tests.e2e.parts import Service, trainers, until, weights_digest_after
from tests.postgres import Postgres

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
    until(lambda: not trainers(production.home), timeout_s=2, what="the end of the trainer")

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
