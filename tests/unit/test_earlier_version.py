"""What version 13949c9 left behind is read by this one: database and store, a stopped training, results.

tests/fixtures/v13949c9/make.py tells how it was made. The service's own test, with a worker, is in tests/e2e.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from api.core import datasets, models, plans
from api.core.jobs import attempts, requests
from api.core.lifecycle import State
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from api.core.settings import Settings
from api.core.store.open import open_store
from fgd.detectors import build
from fgd.engine import weights
from fgd.engine.checkpoint import digest_of_tensors
from tests import earlier
from tests.studies.digests import machine
from tests.unit.api import conftest as service

REQUESTS = earlier.told("requests.json")["requests"]
MADE = {request["key"]: request["id"] for request in REQUESTS}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That version's folder. Each test has a copy of its database; the store is one for all."""
    return earlier.unpack("home.tar.xz", tmp_path_factory.mktemp("home"))


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[Settings]:
    """Of a service on that version's data, after the upgrade."""
    with contextlib.ExitStack() as held:
        if request.param == "sqlite":
            shutil.copyfile(home / "fgd.db", tmp_path / "fgd.db")
            url = f"sqlite:///{tmp_path}/fgd.db"
        else:
            url = held.enter_context(request.getfixturevalue("postgres").empty())
            earlier.fill(url)
        db.upgrade(url)
        yield Settings(home=tmp_path, database_url=url, blobs=home / "blobs", sweep_s=3600.0)


@pytest.fixture
def given(settings: Settings) -> Iterator[service.Given]:
    engine = db.make_engine(settings.database_url)
    yield service.Given(engine, open_store(settings), settings.home)
    engine.dispose()


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    with service.serve(settings) as client:
        yield client


def test_every_row_is_shown_as_that_version_showed_it(client: Any) -> None:
    different = []
    for address, then in earlier.told("shown.json.xz").items():
        answer = client.get(address)
        assert answer.status_code == 200, f"{address}: {answer.text}"
        now = answer.content.decode("latin-1") if isinstance(then, str) else answer.json()
        different += [f"{address} {each}" for each in earlier.differences(then, now)]
    assert different == []


def test_every_state_of_a_job_was_there(client: Any) -> None:
    states = {job["state"] for job in client.get("/v1/jobs?limit=200").json()["items"]}
    assert states == set(State)


def test_every_file_of_a_result_is_whole(client: Any) -> None:
    done = client.get("/v1/jobs?state=succeeded").json()["items"]
    files = [file for job in done for file in client.get(f"/v1/jobs/{job['id']}/artifacts").json()["items"]]
    assert len(files) >= 8
    for file in files:
        bytes = client.get(f"/v1/artifacts/{file['id']}/content").content
        assert hashlib.sha256(bytes).hexdigest() == file["sha256"]


@pytest.fixture
def same_day(given: service.Given) -> None:
    """Keys live for a day, and these are of then."""
    with db.transaction(given.engine) as s:
        s.execute(text("UPDATE idempotency_keys SET created_at = CURRENT_TIMESTAMP"))


@pytest.mark.usefixtures("same_day")
def test_a_request_that_is_sent_again_gets_what_it_made(client: Any) -> None:
    before = client.get("/v1/jobs?limit=200").json()["items"]

    for request in (each for each in REQUESTS if not says_compile(each["body"])):
        answer = sent(client, request)
        assert answer.status_code == 200, f"{request['key']}: {answer.text}"
        assert answer.json()["id"] == request["id"]

    assert sent(client, REQUESTS[0], name="another").json()["code"] == "idempotency_key_reused"
    assert len(client.get("/v1/jobs?limit=200").json()["items"]) == len(before)


@pytest.mark.usefixtures("same_day")
def test_a_request_with_a_field_that_was_retired_is_told_so_and_gets_what_it_made_without(client: Any) -> None:
    retired = [each for each in REQUESTS if says_compile(each["body"])]
    for request in retired:
        answer = sent(client, request)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/resources/compile")

    for request in (each for each in retired if each["body"]["resources"]["compile"] is False):
        resources = {name: value for name, value in request["body"]["resources"].items() if name != "compile"}
        answer = sent(client, request, resources=resources)
        assert (answer.status_code, answer.json()["id"]) == (200, request["id"])


def says_compile(body: dict[str, Any]) -> bool:
    return "compile" in body.get("resources", {})


def sent(client: Any, request: dict[str, Any], **changes: Any) -> Any:
    headers = {"Idempotency-Key": request["key"]}
    return client.post(request["path"], json=request["body"] | changes, headers=headers)


def test_jobs_that_waited_or_were_paused_or_lost_their_worker_are_taken(given: service.Given, client: Any) -> None:
    paused = MADE["job-paused"]
    assert client.post(f"/v1/jobs/{paused}/resume").status_code == 202
    assert given.sweep().lost == [MADE["job-running"]]

    taken = []
    while (claim := given.claim()) is not None:
        taken.append(claim)

    order = ["job-running", "job-paused", "job-waits", "job-waits-compiled"]
    assert [claim.job_id for claim in taken] == [MADE[key] for key in order]
    running, resumed, *_ = taken
    assert running.attempt == 3
    assert (running.spec.schedule.batch_size, running.spec.schedule.accumulate) == (2, 2), "it ran out of memory once"
    assert resumed.attempt == 3
    assert resumed.checkpoint is not None
    for saved in resumed.checkpoints:
        with given.store.local_object(saved.key) as file:
            assert hashlib.sha256(file.read_bytes()).hexdigest() == saved.sha256
    for claim in taken:
        assert set(claim.inputs) >= {"dataset", "teacher", "weights"}
        for digest in (digest for files in claim.inputs.values() for digest in files.values()):
            assert given.store.exists(digest)


def test_imports_and_plans_that_waited_are_taken(given: service.Given) -> None:
    with db.transaction(given.engine) as s:
        dataset = datasets.claim_import(s, "wrk_a", lease_s=20.0)
        model = models.claim_import(s, "wrk_a", lease_s=20.0)
        plan = plans.claim(s, "wrk_a", ["cpu", "auto"], lease_s=20.0)

    assert dataset is not None
    assert dataset.id == MADE["data-4"]
    assert model is not None
    assert model.id == MADE["model-next"]
    assert plan is not None
    assert plan.spec.name == "plan that waits"


def test_a_job_that_ran_ends_well_and_one_that_waited_is_cancelled(given: service.Given, client: Any) -> None:
    waits = MADE["job-waits"]
    assert client.post(f"/v1/jobs/{waits}/cancel").json()["state"] == "cancelled"
    with db.transaction(given.engine) as s:
        blob = given.store.put_bytes(b"weights")
        files = [attempts.ArtifactIn("student.safetensors", blob.digest, blob.size)]
        attempts.finish(s, MADE["job-running"], 2, files, "e" * 64)
        ended = requests.get(s, DEFAULT_PROJECT, MADE["job-running"])
        assert ended.state == "succeeded"


# --- a training that was stopped ------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    return earlier.unpack("training.tar.xz", tmp_path)


DEFAULTS_THEN: dict[str, dict[str, Any]] = {
    "fgd": {"alpha": 1e-3, "beta": 5e-4, "gamma": 5e-4, "lambda": 5e-6, "temperature": 0.5, "rho": 0.0},
    "mimic": {"weight": 0.016, "rho": 0.0},
}
"""RetinaNet's."""


@pytest.mark.slow
def test_a_stopped_training_goes_on_with_the_same_bytes(stopped: Path) -> None:
    """Its spec has a field that was retired: it is refused, with what to do, and ends well without. So are the numbers
    that it left out, which had other defaults then."""
    kept, spec = earlier.told("training.json"), json.loads((stopped / "spec.json").read_bytes())
    refused = trained(stopped, kept["checkpoint"])
    assert refused.returncode == 2
    assert "/resources/compile" in json.loads(refused.stdout.splitlines()[-1])["message"]

    del spec["resources"]["compile"]
    (stopped / "spec.json").write_text(json.dumps(spec))
    refused = trained(stopped, kept["checkpoint"])
    assert refused.returncode == 2
    assert "other defaults" in json.loads(refused.stdout.splitlines()[-1])["message"]

    spec["methods"] = [DEFAULTS_THEN[method["kind"]] | method for method in spec["methods"]]
    (stopped / "spec.json").write_text(json.dumps(spec))
    done = trained(stopped, kept["checkpoint"])

    assert done.returncode == 0, done.stderr.decode()
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["data"]["step"] for event in events if event.get("code") == "resumed"] == [9]
    assert events[-1]["type"] == "finished"
    if machine() == kept["machine"]:  # digests hold on one machine type
        assert events[-1]["weights_digest"] == kept["weights_digest"]["plain"]


def trained(folder: Path, checkpoint: str) -> subprocess.CompletedProcess[bytes]:
    """From there to the end."""
    command = [sys.executable, "-m", "fgd.train", "spec.json", "--out", "out"]
    command += ["--resume", str(folder / "out" / "checkpoints" / checkpoint)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=250, check=False)


def test_a_result_with_its_weights_is_loaded(stopped: Path) -> None:
    detector = weights.load_detector(stopped / "teacher")

    manifest = json.loads((stopped / "teacher" / "manifest.json").read_bytes())
    assert digest_of_tensors(detector.module.state_dict()) == manifest["weights_digest"]


# --- results of each family -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted((earlier.FIXTURES / "results").iterdir()), ids=lambda folder: folder.name)
def test_a_stored_recipe_makes_the_network_that_it_was_written_for(folder: Path) -> None:
    recipe = weights.read_recipe(folder)
    then = json.loads((folder / "tensors.json").read_bytes())

    assert (
        list(earlier.differences(json.loads((folder / "recipe.json").read_bytes()), recipe.model_dump(mode="json")))
        == []
    )
    assert shapes(build(recipe).module) == then
    assert shapes(runpy.run_path(str(folder / "model.py"))["build"]()) == then


def shapes(module: Any) -> dict[str, list[Any]]:
    return {key: [str(value.dtype), list(value.shape)] for key, value in module.state_dict().items()}
