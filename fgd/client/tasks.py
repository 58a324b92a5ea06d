"""The client's methods of what a worker works out: evaluations, exports, predictions."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from fgd.client import follow, transfer
from fgd.client.answers import Evaluation, Export, Prediction, TaskFile
from fgd.client.transport import Transport, read, route


class Tasks:
    """Part of `Client`."""

    _service: Transport

    def evaluate(
        self,
        *,
        model: str | None = None,
        job: str | None = None,
        network: Literal["student", "teacher"] = "student",
        which: Literal["last", "best"] = "last",
        dataset: str | None = None,
        split: Literal["train", "val", "test"] = "val",
        idempotency_key: str | None = None,
        **more: Any,
    ) -> Evaluation:
        """Evaluate a model, or the student or teacher of a job, on a split of a data set (default: the job's own). Call
        `wait_evaluation` next.

        more: min_size, max_size, batch_size, device, confusion_score.
        """
        body = _network(model, job, network, which) | {"split": split, **more}
        body |= {"dataset": dataset} if dataset is not None else {}
        return read(Evaluation, self._service.post("/v1/evaluations", json.dumps(body), idempotency_key))

    def evaluation(self, evaluation_id: str) -> Evaluation:
        return read(Evaluation, self._service.get(route("evaluations", evaluation_id)))

    def evaluations(
        self,
        most: int = 50,
        *,
        states: Sequence[str] = (),
        job: str | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> list[Evaluation]:
        """Those that match, newest first, at most `most`. states: any of these; the others: ids."""
        filters = {"state": list(states) or None, "job": job, "model": model, "dataset": dataset}
        return self._service.pages(Evaluation, "/v1/evaluations", most, **filters)

    def wait_evaluation(
        self,
        evaluation_id: str,
        on_evaluation: Callable[[Evaluation | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Evaluation:
        """Wait until it has ended: succeeded or failed. `patience_s`: how long to wait for a service that is away."""
        path = route("evaluations", evaluation_id)
        return follow.wait_for(self._service, Evaluation, path, on_evaluation, poll_s, patience_s)

    def delete_evaluation(self, evaluation_id: str) -> None:
        self._service.request("DELETE", route("evaluations", evaluation_id))

    def export(
        self,
        *,
        model: str | None = None,
        job: str | None = None,
        network: Literal["student", "teacher"] = "student",
        which: Literal["last", "best"] = "last",
        format: str = "onnx",
        idempotency_key: str | None = None,
        **more: Any,
    ) -> Export:
        """Have a worker write and check a file that runs without torch, of a model, or the student or teacher of a job.
        Call `wait_export` next, then `download_file` for each of its `files`.

        format: "onnx", or "onnx-int8", which also has a file `report`. more: size, batch, opset, dataset, max_ap_loss.
        """
        body = _network(model, job, network, which) | {"format": format, **more}
        return read(Export, self._service.post("/v1/exports", json.dumps(body), idempotency_key))

    def wait_export(
        self,
        export_id: str,
        on_export: Callable[[Export | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Export:
        """As `wait_evaluation`."""
        return follow.wait_for(self._service, Export, route("exports", export_id), on_export, poll_s, patience_s)

    def exported(self, export_id: str) -> Export:
        return read(Export, self._service.get(route("exports", export_id)))

    def exports(
        self,
        most: int = 50,
        *,
        states: Sequence[str] = (),
        job: str | None = None,
        model: str | None = None,
        dataset: str | None = None,
    ) -> list[Export]:
        """Those that match, newest first, at most `most`. states: any of these; the others: ids."""
        filters = {"state": list(states) or None, "job": job, "model": model, "dataset": dataset}
        return self._service.pages(Export, "/v1/exports", most, **filters)

    def delete_export(self, export_id: str) -> None:
        self._service.request("DELETE", route("exports", export_id))

    def predict(
        self,
        picture: Path,
        *,
        job: str | None = None,
        model: str | None = None,
        which: Literal["last", "best"] = "last",
        score: float = 0.3,
        wait_s: int = 20,
        idempotency_key: str | None = None,
    ) -> Prediction:
        """What the student of a job, its teacher and its control find in a picture; or a model alone. Call
        `wait_prediction` if it has not `ended` within `wait_s`.

        score: detections with a lower one are left out.
        """
        query = {"job": job, "model": model, "which": which if model is None else None, "score": score}
        response = self._service.request(
            "POST",
            "/v1/predictions",
            content=picture.read_bytes(),
            params={name: value for name, value in query.items() if value is not None},
            headers={
                "Content-Type": "application/octet-stream",
                "Idempotency-Key": idempotency_key or uuid.uuid4().hex,
                "Prefer": f"wait={wait_s}",
            },
        )
        return read(Prediction, response)

    def wait_prediction(
        self,
        prediction_id: str,
        on_prediction: Callable[[Prediction | None], None] | None = None,
        *,
        poll_s: float = 0.5,
        patience_s: float = 600.0,
    ) -> Prediction:
        """As `wait_evaluation`."""
        path = route("predictions", prediction_id)
        return follow.wait_for(self._service, Prediction, path, on_prediction, poll_s, patience_s)

    def prediction(self, prediction_id: str) -> Prediction:
        return read(Prediction, self._service.get(route("predictions", prediction_id)))

    def predictions(
        self,
        most: int = 50,
        *,
        states: Sequence[str] = (),
        job: str | None = None,
        model: str | None = None,
    ) -> list[Prediction]:
        """Those that match, newest first, at most `most`. They are kept for a day. states: any of these; the others:
        ids."""
        filters = {"state": list(states) or None, "job": job, "model": model}
        return self._service.pages(Prediction, "/v1/predictions", most, **filters)

    def delete_prediction(self, prediction_id: str) -> None:
        self._service.request("DELETE", route("predictions", prediction_id))

    def download_file(
        self,
        file: TaskFile,
        folder: Path,
        on_bytes: Callable[[int], None] | None = None,
        *,
        name: str | None = None,
    ) -> Path:
        """Fetch one of the `files` of something that a worker has worked out, as `download` fetches an artifact."""
        return transfer.download(self._service, file.url, file, folder, on_bytes, name)


def _network(model: str | None, job: str | None, network: str, which: str) -> dict[str, Any]:
    """What was not asked for is left out."""
    defaults = {"model": None, "job": None, "network": "student", "which": "last"}
    named = {"model": model, "job": job, "network": network, "which": which}
    return {field: value for field, value in named.items() if value != defaults[field]}
