"""A real MLflow server and the real service: what the server shows of jobs, asked as its own pages ask."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import mlflow_server
from tests.e2e.parts import Service, environment, until

pytestmark = [pytest.mark.e2e, pytest.mark.mlflow, pytest.mark.timeout(900)]
API = "/api/2.0/mlflow"
PATIENCE_S = 120.0

Start = Callable[..., Service]


class Shown:
    """The runs of an experiment, as a server shows them."""

    def __init__(self, http: httpx.Client, experiment: str) -> None:
        self.http = http
        found = self.get("experiments/get-by-name", experiment_name=experiment)
        self.experiment = found["experiment"]["experiment_id"]

    def get(self, path: str, **query: str) -> Any:
        answer = self.http.get(f"{API}/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def runs(self, job: str) -> list[dict[str, Any]]:
        asked = {"experiment_ids": [self.experiment], "filter": f"tags.`fgd.job` = '{job}'"}
        return list(self.http.post(f"{API}/runs/search", json=asked).json().get("runs", []))

    def until_status(self, job: str, status: str) -> dict[str, Any]:
        """And with its report, which comes last."""

        def there() -> bool:
            found = self.runs(job)
            return bool(found) and found[0]["info"]["status"] == status and "report.json" in self.files(found[0])

        until(there, PATIENCE_S, f"{status} of {job}")
        (run,) = self.runs(job)
        return run

    def points(self, run: dict[str, Any], key: str) -> list[tuple[int, float]]:
        found = self.get("metrics/get-history", run_id=run["info"]["run_id"], metric_key=key)
        return [(point.get("step", 0), point["value"]) for point in found.get("metrics", [])]

    def files(self, run: dict[str, Any]) -> dict[str, int]:
        found = self.get("artifacts/list", run_id=run["info"]["run_id"]).get("files", [])
        return {each["path"]: int(each["file_size"]) for each in found}

    def content(self, run: dict[str, Any], name: str) -> bytes:
        answer = self.http.get("/get-artifact", params={"run_uuid": run["info"]["run_id"], "path": name})
        assert answer.status_code == 200, answer.text
        return answer.content


def fields(pairs: list[dict[str, str]]) -> dict[str, str]:
    return {pair["key"]: pair["value"] for pair in pairs}


def shows_all(shown: Shown, run: dict[str, Any], job: str, service: Service) -> None:
    view = service.job(job)
    params, tags = fields(run["data"]["params"]), fields(run["data"]["tags"])
    assert params.items() >= {"student.kind": "fcos", "seed": "0", "schedule.optimizer.kind": "adamw"}.items()
    assert params["digest/tensors"] == view["weights_digest"]
    assert tags.items() >= {"fgd.job": job, "fgd.state": "succeeded", "mlflow.runName": view["name"]}.items()
    assert shown.points(run, "loss/total") == [(n, pytest.approx(1 / n)) for n in range(1, 31)]
    assert shown.points(run, "val/ap") == [(30, 40.0)]
    assert shown.points(run, "val/ap/class 2") == [(30, 2.0)]
    files = service.http.get(f"/v1/jobs/{job}/artifacts").json()["items"]
    assert shown.files(run).keys() == {file["name"] for file in files} | {"report.html", "report.json", "spec.json"}
    for file in files:
        assert shown.content(run, file["name"]) == service.http.get(f"/v1/artifacts/{file['id']}/content").content
    assert json.loads(shown.content(run, "report.json"))["job"] == job
    assert json.loads(shown.content(run, "spec.json")) == view["spec"]


def test_jobs_appear_also_after_the_server_was_away_and_can_be_copied_by_hand(
    start_service: Start, tmp_path: Path
) -> None:
    if reason := mlflow_server.why_not():
        pytest.skip(reason)
    folder, port = tmp_path / "mlflow", mlflow_server.free_port()
    folder.mkdir()
    address = f"http://127.0.0.1:{port}"
    service = start_service(FGD_MLFLOW_TRACKING_URI=address, MLFLOW_TRACKING_PASSWORD="a-password-of-hers")
    missed = service.post("steps=30 ms=5 classes=3")
    service.until_state(missed, "succeeded")  # nobody listens at that address
    until(lambda: "mlflow_away" in service.story(missed), PATIENCE_S, "the event that says so")

    with mlflow_server.running(folder, port) as http:
        job, failed = service.post("steps=30 ms=5 classes=3"), service.post("fault=nan at=3")
        until(lambda: http.get(f"{API}/experiments/get-by-name?experiment_name=fgd").is_success, PATIENCE_S)
        shown = Shown(http, "fgd")
        for each in (job, missed):
            shows_all(shown, shown.until_status(each, "FINISHED"), each, service)
        tags = fields(shown.until_status(failed, "FAILED")["data"]["tags"])
        assert tags["fgd.failure"].startswith("loss_non_finite: step 3")

        for _ in range(2):  # the second time nothing is new
            command = [sys.executable, "-m", "fgd.cli", "job", "mlflow", job, "--tracking-uri", address]
            done = subprocess.run(
                [*command, "--experiment", "copies", "--url", str(service.http.base_url)],
                env=environment(service.home), capture_output=True, text=True, timeout=PATIENCE_S,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        copies = Shown(http, "copies")
        (copy,) = copies.runs(job)
        assert done.stdout.strip() == f"{address}/#/experiments/{copies.experiment}/runs/{copy['info']['run_id']}"
        shows_all(copies, copy, job, service)
    said = (service.home / "logs" / "api.log").read_text()
    assert "does not answer" in said
    assert "a-password-of-hers" not in said
