"""A study over HTTP, with real processes: made, paused, extended, and the whole service killed in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import real_services
from tests.e2e.parts import PATIENT_S, Api, Service, processes_of, until

pytestmark = pytest.mark.e2e

Start = Callable[..., Service]


class Studying(Api):
    def jobs(self, study: str) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(reversed(self.get(f"/v1/jobs?study={study}&limit=200")["items"]))

    def view(self, study: str) -> Any:
        return self.get(f"/v1/studies/{study}")

    def ask(self, study: str, verb: str, **body: Any) -> Any:
        return self.post(f"/v1/studies/{study}/{verb}", body)

    def steps(self, study: str) -> int:
        """Of all its jobs."""
        return sum(job["progress"]["step"] for job in self.jobs(study) if job["progress"])

    def until_state(self, study: str, state: str, timeout_s: float) -> Any:
        return until(lambda: (v := self.view(study))["state"] == state and v, timeout_s, f"a study that is {state}")


def kill_everything(home: Path) -> None:
    """As a power cut does."""
    found = processes_of(home)
    assert len(found) > 3
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_of(home), what="the end of every process")


def test_a_study_outlives_the_kill_of_the_whole_service(start_service: Start) -> None:
    service = start_service(FGD_SLOTS="2")
    api = Studying(service)
    arms: list[dict[str, Any]] = [{"name": f"{epochs} epochs", "methods": [], "epochs": epochs} for epochs in (1, 2, 3)]
    body = {"name": "steps=60 ms=10 save=10", "dataset": service.dataset, "arms": arms, "students": [{}]}
    study = api.post("/v1/studies", body | {"seeds": [0, 1], "control": False})["id"]
    assert [job["spec"]["seed"] for job in api.jobs(study)] == [0, 0, 0, 1, 1, 1]

    until(lambda: api.view(study)["jobs"]["succeeded"] >= 1, what="the first result")
    api.ask(study, "pause")
    api.until_state(study, "paused", PATIENT_S)
    assert api.ask(study, "extend", seeds=[2])["jobs"]["total"] == 9
    api.ask(study, "resume")
    until(lambda: api.view(study)["jobs"]["running"] >= 1, what="a running job")
    kill_everything(service.home)

    api = Studying(start_service(FGD_SLOTS="2"))
    view = api.until_state(study, "succeeded", 90)
    assert (view["jobs"]["succeeded"], view["seeds"]) == (9, [0, 1, 2])
    board = api.get(view["leaderboard_url"])
    assert [(row["arm"], row["succeeded"], row["ap"]) for row in board["rows"]] == [
        (f"{epochs} epochs", 3, 40.0) for epochs in (1, 2, 3)
    ]
    digests = {job["weights_digest"] for job in api.jobs(study)}
    assert len(digests) == 1, "each took all of its steps once, kill or not"


@pytest.mark.chaos  # minutes of training
@pytest.mark.timeout(3000)
def test_a_study_of_three_methods_and_two_seeds_on_real_images(shared_data: Path, tmp_path: Path) -> None:
    schedule = {"epochs": 1, "batch_size": 16, "min_size": 64, "max_size": 64, "checkpoint_steps": 5}
    student = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64}
    common = {"schedule": schedule, "resources": {"threads": 1, "device": "cpu"}}
    with real_services(tmp_path / "home", shared_data, FGD_SLOTS="2") as service:
        api = Studying(service)
        dataset = api.post("/v1/datasets", {"name": "rbc", "path": str(shared_data / "rbc")})["id"]
        until(lambda: api.get(f"/v1/datasets/{dataset}")["state"] == "ready", 120, "the import")
        plain = {"name": "teacher", "teacher": None, "methods": [], "student": student, "dataset": dataset, **common}
        teacher = api.post("/v1/jobs", plain)["id"]
        until(lambda: api.get(f"/v1/jobs/{teacher}")["state"] == "succeeded", 600, "a teacher")
        arms = [{"name": kind, "methods": [{"kind": kind}]} for kind in ("fgd", "mimic", "pkd")]
        body = {"name": "rbc", "teacher": {"job": teacher, "allow_unfit": True}, "dataset": dataset, "arms": arms}
        study = api.post("/v1/studies", {**body, "students": [student], "seeds": [0, 1], **common})["id"]
        assert len(api.jobs(study)) == 8

        until(lambda: api.steps(study) >= 5, 300, "steps")
        api.ask(study, "pause")
        api.until_state(study, "paused", 300)
        assert api.ask(study, "extend", seeds=[2])["jobs"]["total"] == 12
        before = api.steps(study)
        api.ask(study, "resume")
        until(lambda: api.steps(study) >= before + 5, 300, "more steps")
        kill_everything(service.home)

    with real_services(tmp_path / "home", shared_data, FGD_SLOTS="2") as service:
        api = Studying(service)
        view = api.until_state(study, "succeeded", 1800)
        assert view["jobs"]["succeeded"] == 12
        board = until(lambda: (b := api.get(view["leaderboard_url"]))["pending"] == 0 and b, 300, "the intervals")
    assert [(row["arm"], row["against"], row["succeeded"]) for row in board["rows"]] == [
        ("control", None, 3), ("fgd", "control", 3), ("mimic", "control", 3), ("pkd", "control", 3),
    ]  # fmt: skip
    for row in board["rows"]:
        assert [run["seed"] for run in row["runs"]] == [0, 1, 2]
        assert all(run["device_seconds"] > 0 and run["ap"] is not None for run in row["runs"])
        if row["against"]:
            for interval in (row["difference"], row["difference_over_images"]):
                assert interval["low"] <= interval["value"] <= interval["high"]
                assert interval["seeds"] == [0, 1, 2]
            assert row["images_reason"] is None
