"""The whole way with the real trainer: data set, teacher, student, download; a kill in the middle, and what fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import real_services
from tests.e2e.parts import Api, Service, small_digits, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SCHEDULE = {"epochs": 3, "batch_size": 4, "min_size": 64, "max_size": 64, "evaluate_every": 3, "checkpoint_s": 0.001}
STUDENT = {"kind": "fcos", "backbone": "mobilenet_v3_small", "fpn_channels": 64}
PATIENT_S = 240.0


class Real(Api):
    """A service whose trainer is the real one, a data set, and a teacher that it trained."""

    def __init__(self, service: Service, data: Path) -> None:
        super().__init__(service)
        posted = self.post("/v1/datasets", {"name": "digits", "path": str(data)})
        self.dataset = posted["id"]
        until(lambda: self.get(f"/v1/datasets/{self.dataset}")["state"] != "verifying", what="the import")
        assert self.get(f"/v1/datasets/{self.dataset}")["state"] == "ready"
        teacher = {"fpn_channels": 96}
        self.teacher = self.done(self.submit(teacher=None, methods=[], student=STUDENT | teacher))["id"]

    def submit(self, **changes: Any) -> str:
        return str(self.post("/v1/jobs", self.body(**changes))["id"])

    def body(self, **changes: Any) -> dict[str, Any]:
        body = {
            "name": "real",
            "teacher": {"job": getattr(self, "teacher", None), "allow_unfit": True},
            "student": STUDENT,
            "dataset": self.dataset,
            "methods": [{"kind": "fgd"}],
            "schedule": SCHEDULE,
            "resources": {"threads": 1, "focus_images": 0},
        }
        return body | changes

    def ended(self, job: str) -> Any:
        return until(
            lambda: (v := self.get(f"/v1/jobs/{job}"))["state"] not in ("queued", "running") and v, PATIENT_S, "the end"
        )

    def done(self, job: str) -> Any:
        view = self.ended(job)
        assert view["state"] == "succeeded", view["failure"]
        return view

    def download(self, job: str, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for file in self.get(f"/v1/jobs/{job}/artifacts")["items"]:
            content = self.http.get(f"/v1/artifacts/{file['id']}/content").content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            (folder / file["name"]).write_bytes(content)
        return folder


@contextmanager
def real_in(root: Path, **more: str) -> Iterator[Real]:
    """With its home and its data in `root`, and `more` in its environment."""
    digits = small_digits(root / "data" / "digits")
    with real_services(root / "home", root / "data", **more) as service:
        yield Real(service, digits)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with real_in(tmp_path_factory.mktemp("real")) as real:
        yield real


def test_a_student_is_distilled_downloaded_and_runs_in_plain_torchvision(real: Real, tmp_path: Path) -> None:
    job = real.submit(resources={"threads": 1})
    view = real.done(job)
    latest = {
        (each["name"], each["split"]): each["value"] for each in real.get(f"/v1/jobs/{job}/metrics/latest")["items"]
    }
    assert {("ap", "val"), ("ap", "test"), ("ap50", "test")} <= latest.keys()
    assert any(name.startswith("share/fgd/") for name, _ in latest)
    notes = [event["type"] for event in real.get(f"/v1/jobs/{job}/events?limit=200")["items"]]
    assert {"note:teacher_checked", "note:calibration", "succeeded"} <= set(notes)
    folder = real.download(job, tmp_path / "student")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["weights_digest"] == view["weights_digest"]
    script = "import runpy; print(sum(p.numel() for p in runpy.run_path('model.py')['load']().parameters()))"
    command = [sys.executable, "-I", "-c", script]
    out = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert int(out.stdout) == manifest["parameters"]


def test_a_dry_run_foretells_the_job_and_queues_none(real: Real) -> None:
    jobs = len(real.get("/v1/jobs")["items"])
    answer = real.http.post(
        "/v1/jobs?dry_run=true", json=real.body(), headers={"Prefer": "wait=60"}, timeout=httpx.Timeout(90.0)
    )
    plan = until(
        lambda: (p := real.get(answer.headers["location"]))["state"] != "measuring" and p, PATIENT_S, "the plan"
    )
    assert answer.status_code in (200, 202)
    assert plan["state"] == "measured", plan["error"]
    assert len(real.get("/v1/jobs")["items"]) == jobs
    outline, measured = plan["outline"], plan["measured"]
    assert (outline["total_steps"], outline["evaluations"]) == (9, 1)
    assert {each["layer"] for each in outline["adapters"]} == {"1x1 convolution"}
    assert measured["student_parameters"] < measured["teacher_parameters"]
    assert measured["threads"] == 1
    assert measured["training_hours"] * 3600 == pytest.approx(9 * measured["s_per_step"])
    assert measured["hours"] * 3600 > 9 * measured["s_per_step"] + measured["s_to_start"]
    assert measured["trainings_beside"] == 0
    assert not list((real.service.home / "work").glob("plan_*"))


def test_a_schedule_with_everything_ends_as_its_plan_says(real: Real) -> None:
    schedule = SCHEDULE | {
        "batch_size": 2,
        "accumulate": 2,
        "scales": [64, 96],
        "augment": {"photometric": {"brightness": 0.2, "hue": 0.05}, "crop": {"keep": "share"}},
        "ema": {"decay": 0.9},
        "early_stop": {"patience": 1, "min_delta": 90},
        "evaluate_every": 1,
    }
    job = real.submit(schedule=schedule)
    real.done(job)
    latest = {each["name"]: each for each in real.get(f"/v1/jobs/{job}/metrics/latest")["items"]}
    assert {"device/memory_peak_mb", "device/utilisation", "data/wait_share", "images_per_s"} <= latest.keys()
    assert latest["loss/total"]["step"] == 6, "the second evaluation gained no 90 AP: two epochs of three steps"
    events = [event["type"] for event in real.get(f"/v1/jobs/{job}/events?limit=200")["items"]]
    assert "note:early_stopped" in events


LASTING = SCHEDULE | {"epochs": 8, "evaluate_every": 8}
"""Long enough for a kill in the middle."""


@pytest.fixture(scope="module")
def unbroken(real: Real) -> str:
    """Digest of the student that an undisturbed job gives."""
    return str(real.done(real.submit(seed=3, schedule=LASTING))["weights_digest"])


@pytest.mark.parametrize("part", ["fgd.train", "-m worker", "valkey-server", "deploy.api"])
def test_a_part_killed_in_mid_training_costs_nothing_but_time(real: Real, unbroken: str, part: str) -> None:
    job = real.submit(seed=3, schedule=LASTING)
    until(lambda: (real.service.job(job)["progress"] or {}).get("step", 0) >= 4, PATIENT_S, "step 4")
    os.kill(real.service.pid(part), signal.SIGKILL)
    view = until(lambda: (v := real.service.job(job))["state"] not in ("queued", "running") and v, PATIENT_S, "the end")
    assert view["state"] == "succeeded", view["failure"]
    assert view["weights_digest"] == unbroken
    story = [event["type"] for event in real.get(f"/v1/jobs/{job}/events?limit=200")["items"]]
    assert story.count("succeeded") == 1
    again = part in ("fgd.train", "-m worker")
    assert view["attempt"] == (2 if again else 1)
    assert ("note:resumed" in story) == ("attempt_lost" in story) == again


def test_an_unfit_teacher_fails_the_job_and_the_figure_is_told(real: Real) -> None:
    idle = SCHEDULE | {"epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-9}}
    unfit = real.done(real.submit(teacher=None, methods=[], schedule=idle))["id"]
    view = real.ended(real.submit(teacher={"job": unfit}))
    assert view["state"] == "failed"
    assert view["failure"]["code"] == "teacher_unfit"
    assert "AP50 on 6 validation images at min_size 64, max_size 64 is" in view["failure"]["message"]


def test_a_loss_that_is_not_finite_fails_with_step_and_term(real: Real) -> None:
    view = real.ended(real.submit(methods=[{"kind": "fgd", "lambda": 1e38}]))
    assert view["failure"]["code"] == "loss_non_finite"
    assert view["failure"]["message"].startswith("step ")
    data = view["failure"]["data"]
    assert view["failure"]["message"].startswith(f"step {data['step']}: {data['term']} is")
    last = real.get(f"/v1/jobs/{view['id']}/events?limit=200")["items"][-1]
    assert (last["type"], last["data"]["data"]) == ("failed", data)
    assert "is inf" in view["failure"]["message"] or "is nan" in view["failure"]["message"]


def test_a_downloaded_result_teaches_from_its_folder(real: Real, tmp_path: Path) -> None:
    root = Path(real.service.home).parent / "data"
    folder = real.download(real.teacher, root / "teacher")
    try:
        real.done(real.submit(teacher={"path": str(folder), "allow_unfit": True}))
    finally:
        shutil.rmtree(folder)


def test_a_path_outside_the_data_roots_is_refused(real: Real, tmp_path: Path) -> None:
    answer: httpx.Response = real.http.post("/v1/datasets", json={"name": "x", "path": str(tmp_path)})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/path"
    assert "FGD_DATA_ROOTS" in answer.text


def test_weights_trained_elsewhere_are_uploaded_and_teach(real: Real, tmp_path: Path) -> None:
    """As a .pth of a training script, wrapped and with DistributedDataParallel's prefix; through client and command."""
    import torch
    from safetensors.torch import load_file

    folder = real.download(real.teacher, tmp_path / "elsewhere")
    tensors = load_file(folder / "student.safetensors")
    file = tmp_path / "elsewhere.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in tensors.items()}}, file)
    fgd = [sys.executable, "-m", "fgd.cli", "model"]
    detector = ["--detector", "fcos", "--backbone", "mobilenet_v3_small", "--fpn-channels", "96"]
    env = {**os.environ, "FGD_URL": str(real.http.base_url)}

    def add(classes: str) -> subprocess.CompletedProcess[str]:
        command = [*fgd, "add", str(file), *detector, "--classes", classes, "--json"]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    refused, added = add("0,1,2"), add("0,7")
    assert (refused.returncode, added.returncode) == (1, 0), refused.stderr + added.stderr
    error, model = json.loads(refused.stdout)["error"], json.loads(added.stdout)
    assert "The file's head has 2 classes + background, but you named 3" in error
    assert model["weights_digest"] == real.get(f"/v1/jobs/{real.teacher}")["weights_digest"]
    assert model["report"]["prefix"] == "module."

    student = STUDENT | {"weights": {"model": model["id"]}, "norm": "frozen"}
    job = real.submit(teacher={"model": model["id"], "allow_unfit": True}, student=student)
    in_use = real.http.delete(f"/v1/models/{model['id']}")
    assert (in_use.status_code, in_use.json()["code"]) == (409, "model_in_use")
    real.done(job)
    notes = [event["type"] for event in real.get(f"/v1/jobs/{job}/events?limit=200")["items"]]
    assert {"note:teacher_checked", "note:warm_started"} <= set(notes)
    assert real.http.delete(f"/v1/models/{model['id']}").status_code == 204
    best = subprocess.run([*fgd, "promote", job, "--checkpoint", "best"], env=env, capture_output=True, check=False)
    assert best.stdout.endswith(b"ready\n"), best.stderr


def test_a_checkpoint_of_a_running_job_becomes_a_model(real: Real) -> None:
    job = real.submit(teacher=None, methods=[], schedule=SCHEDULE | {"epochs": 500, "evaluate_every": 1})
    until(lambda: real.get(f"/v1/jobs/{job}/checkpoints")["items"], PATIENT_S, "a checkpoint")
    id = real.post(f"/v1/jobs/{job}/checkpoints/last/promote", {})["id"]
    model = until(
        lambda: (m := real.get(f"/v1/models/{id}"))["state"] in ("ready", "rejected") and m, PATIENT_S, "the model"
    )
    real.http.post(f"/v1/jobs/{job}/cancel", json={"mode": "now"})
    assert model["state"] == "ready", model["error"]
    assert model["recipe"]["max_size"] == 64
    real.ended(job)
