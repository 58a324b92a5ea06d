"""An MLflow server's outside as far as we use it, with the rules of a real one; tests/e2e/test_mlflow.py has that."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any
from urllib.parse import unquote

from tests.unit.http_fake import Answer, Asked, Server

API, FILES = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts/"
NAME = re.compile(r"[/\w.\- ]{1,250}")


class Refusal(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code)
        self.answer = Answer(status, {"error_code": code, "message": message})


class FakeMlflow(Server):
    """`instead`: answers everything, for a server that is broken. `files_at`: beginning of a run's artifact_uri."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.instead: Answer | None = None
        self.files_at = "mlflow-artifacts:/"
        super().__init__()

    def the_run(self) -> dict[str, Any]:
        (run,) = self.runs.values()
        return run

    def files_of_the_run(self) -> dict[str, bytes]:
        return {posixpath.basename(path): content for path, content in self.files.items()}

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.instead is not None:
            return self.instead
        try:
            if asked.path.startswith(FILES) and asked.method == "PUT":
                self.files[unquote(asked.path.removeprefix(FILES))] = asked.body
                return Answer(body={})
            verb = asked.path.removeprefix(API).replace("/", "_").replace("-", "_")
            return Answer(body=getattr(self, verb)(json.loads(asked.body) if asked.body else asked.query))
        except Refusal as refusal:
            return refusal.answer

    def experiments_get_by_name(self, told: dict[str, str]) -> Any:
        if told["experiment_name"] not in self.experiments:
            raise Refusal("RESOURCE_DOES_NOT_EXIST", "no such experiment", 404)
        return {"experiment": {"experiment_id": self.experiments[told["experiment_name"]], "lifecycle_stage": "active"}}

    def experiments_create(self, told: Any) -> Any:
        self.experiments[told["name"]] = str(len(self.experiments) + 1)
        return {"experiment_id": self.experiments[told["name"]]}

    def runs_create(self, told: Any) -> Any:
        id = f"run{len(self.runs)}"
        at = f"{self.files_at}{told['experiment_id']}/{id}/artifacts"
        info = {"run_id": id, "experiment_id": told["experiment_id"], "artifact_uri": at, "status": "RUNNING"}
        self.runs[id] = {"info": info | {"run_name": told["run_name"]}, "params": {}, "tags": {}, "metrics": set()}
        self.runs[id]["tags"] |= {each["key"]: each["value"] for each in told["tags"]}
        return {"run": {"info": info}}

    def runs_search(self, told: Any) -> Any:
        key, value = re.fullmatch(r"tags\.`(.+)` = '(.+)'", told["filter"]).groups()  # type: ignore[union-attr]
        found = [run for run in self.runs.values() if run["tags"].get(key) == value]
        return {"runs": [{"info": run["info"], "data": {"params": pairs(run["params"])}} for run in found]}

    def runs_update(self, told: Any) -> Any:
        self.runs[told["run_id"]]["info"] |= told
        return {}

    def runs_log_batch(self, told: Any) -> Any:
        run = self.runs[told["run_id"]]
        metrics, params, tags = (told.get(kind, []) for kind in ("metrics", "params", "tags"))
        if len(metrics) > 1000 or len(params) > 100 or len(tags) > 100:
            raise Refusal("INVALID_PARAMETER_VALUE", "too many")
        for each in (*metrics, *params, *tags):
            key = each["key"]
            if NAME.fullmatch(key) is None or posixpath.normpath(key) != key or key.startswith(("/", "..")):
                raise Refusal("INVALID_PARAMETER_VALUE", f"a bad name: {key}")
        for each in params:
            if run["params"].setdefault(each["key"], each["value"]) != each["value"]:
                raise Refusal("INVALID_PARAMETER_VALUE", "Changing param values is not allowed")
        run["tags"] |= {each["key"]: each["value"] for each in tags}
        run["metrics"] |= {(each["key"], each["step"], each["value"], each["timestamp"]) for each in metrics}
        return {}

    def artifacts_list(self, told: Any) -> Any:
        run = self.runs[told["run_id"]]
        begin = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/") + "/"
        mine = {path.removeprefix(begin): content for path, content in self.files.items() if path.startswith(begin)}
        return {"files": [{"path": path, "is_dir": False, "file_size": len(text)} for path, text in mine.items()]}


def pairs(fields: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in fields.items()]
