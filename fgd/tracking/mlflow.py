"""One MLflow server, over its REST API (version 2.0). Knows HTTP and MLflow's limits. Knows no job.

    FGDError
    +-- TrackingAway     the server does not answer, or not now; the same may work later
    +-- TrackingRefused  it answers, and refuses; or what answers is no MLflow server

The account comes from the environment, under MLflow's own names, and stands in no message.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from fgd.errors import FGDError

T = TypeVar("T")

CONNECT_S, ANSWER_S = 5.0, 30.0
MOST_METRICS, MOST_PARAMS = 1000, 100
"""Of one request; MLflow takes no more, and as many tags as params."""
LATER = frozenset({408, 425, 429})
"""Statuses below 500 that say "not now"."""
PROXIED = "mlflow-artifacts"
"""Scheme of the files that a server keeps for its clients."""
MAX_SAID = 300


class TrackingAway(FGDError):
    pass


class TrackingRefused(FGDError):
    """`code`: MLflow's word for it, such as RESOURCE_DOES_NOT_EXIST."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Account:
    """How to be let in. All of it may be missing."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    certificate: str | None = None
    """A file with the certificates that the server's is checked against."""
    insecure: bool = False
    """No certificate is checked."""

    @classmethod
    def of_environment(cls) -> Account:
        told = {name: os.environ.get(f"MLFLOW_TRACKING_{name}") or None for name in _VARIABLES}
        insecure = (told["INSECURE_TLS"] or "").lower() in ("true", "1")
        return cls(told["USERNAME"], told["PASSWORD"], told["TOKEN"], told["SERVER_CERT_PATH"], insecure)

    def but(self, username: str | None, password: str | None, token: str | None) -> Account:
        """Who reads its secrets early and hides them passes them on."""
        return replace(self, username=username, password=password, token=token)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token and not self.basic() else {}

    def basic(self) -> tuple[str, str] | None:
        return (self.username, self.password) if self.username and self.password else None


_VARIABLES = ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH", "INSECURE_TLS")


@dataclass(frozen=True)
class Metric:
    key: str
    value: float
    at_ms: int
    step: int


@dataclass(frozen=True)
class Run:
    id: str
    experiment: str
    files_at: str
    """Where it keeps its files, as the server names it."""
    params: Mapping[str, str]
    created: bool
    """Just now; it has nothing yet."""

    def url(self, server: str) -> str:
        """Of its page."""
        return f"{server}/#/experiments/{self.experiment}/runs/{self.id}"


class MlflowServer:
    """Use it in a `with` block. url: one that `names.ADDRESS` matches. Every call may be repeated."""

    def __init__(
        self, url: str, account: Account, *, answer_s: float = ANSWER_S, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            auth=account.basic(),
            headers=account.headers(),
            verify=False if account.insecure else _trusting(account.certificate),
            timeout=httpx.Timeout(answer_s, connect=CONNECT_S),
            trust_env=urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # --- runs ---

    def experiment(self, name: str) -> str:
        """Its id; it is made if there is none of this name."""
        for _ in range(2):
            try:
                found = self._got(self._get("experiments/get-by-name", experiment_name=name), "experiment")
            except TrackingRefused as error:
                if error.reason != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                if found.get("lifecycle_stage") == "deleted":
                    message = f"{self.url}: the experiment {name!r} was deleted; restore it, or name another"
                    raise TrackingRefused(message, "deleted")
                return str(self._got(found, "experiment_id"))
            try:
                return str(self._got(self._post("experiments/create", {"name": name}), "experiment_id"))
            except TrackingRefused as error:  # somebody else made it just now
                if error.reason != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise TrackingRefused(f"{self.url}: the experiment {name!r} can be neither found nor made")

    def run_with(self, experiment: str, tag: str, value: str) -> Run | None:
        """The oldest that has this tag; None: there is none, or it was deleted."""
        body = {
            "experiment_ids": [experiment], "filter": f"tags.`{tag}` = '{value}'", "max_results": 1,
            "order_by": ["attributes.start_time ASC"],
        }  # fmt: skip
        found = self._post("runs/search", body).get("runs") or []
        return self._run(found[0], created=False) if found else None

    def create_run(self, experiment: str, name: str, began_ms: int, tags: Mapping[str, str]) -> Run:
        body = {"experiment_id": experiment, "run_name": name, "start_time": began_ms, "tags": _pairs(tags)}
        return self._run(self._got(self._post("runs/create", body), "run"), created=True)

    def set_state(self, run: Run, name: str, status: str, ended_ms: int | None) -> None:
        body = {"run_id": run.id, "run_name": name, "status": status}
        self._post("runs/update", body if ended_ms is None else {**body, "end_time": ended_ms})

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        self._log(run, {}, tags, ())

    def set_params(self, run: Run, params: Mapping[str, str]) -> None:
        """Those that it does not have: MLflow changes none."""
        self._log(run, {key: text for key, text in params.items() if key not in run.params}, {}, ())

    def add_metrics(self, run: Run, metrics: Iterable[Metric]) -> None:
        """A point that is there already stays one, if it is the same in everything."""
        self._log(run, {}, {}, metrics)

    def _log(self, run: Run, params: Mapping[str, str], tags: Mapping[str, str], metrics: Iterable[Metric]) -> None:
        for kind, items, most in (
            ("params", _pairs(params), MOST_PARAMS),
            ("tags", _pairs(tags), MOST_PARAMS),
            ("metrics", (_point(metric) for metric in metrics), MOST_METRICS),
        ):
            for batch in _batches(items, most):
                self._post("runs/log-batch", {"run_id": run.id, kind: batch})

    # --- files ---

    def takes_files(self, run: Run) -> bool:
        """False: it keeps them where only who has that store's account can write."""
        return urlsplit(run.files_at).scheme == PROXIED

    def files(self, run: Run) -> dict[str, int]:
        """Name -> bytes, of the files that lie directly in it."""
        found: dict[str, int] = {}
        more: dict[str, str] = {}
        while True:
            answer = self._get("artifacts/list", run_id=run.id, **more)
            found |= {each["path"]: int(each.get("file_size") or 0) for each in answer.get("files") or []}
            if not (token := answer.get("next_page_token")):
                return found
            more = {"page_token": str(token)}

    def upload(self, run: Run, name: str, size: int, content: Iterator[bytes]) -> None:
        folder = urlsplit(run.files_at).path.strip("/")
        self._send(
            "PUT",
            f"/api/2.0/mlflow-artifacts/artifacts/{quote(folder)}/{quote(name)}",
            content=content,
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
        )

    # --- requests ---

    def _get(self, path: str, **query: str) -> Any:
        return self._read(self._send("GET", f"/api/2.0/mlflow/{path}", params=query))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._read(self._send("POST", f"/api/2.0/mlflow/{path}", json=body))

    def _read(self, answer: httpx.Response) -> Any:
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise self._foreign()
        return told

    def _got(self, told: Any, key: str) -> Any:
        if not isinstance(told, dict) or key not in told:
            raise self._foreign()
        return told[key]

    def _run(self, told: Any, *, created: bool) -> Run:
        info = self._got(told, "info")
        known = {each["key"]: each["value"] for each in told.get("data", {}).get("params") or []}
        id, experiment, files_at = (self._got(info, key) for key in ("run_id", "experiment_id", "artifact_uri"))
        return Run(id, experiment, files_at, known, created)

    def _foreign(self) -> TrackingRefused:
        return TrackingRefused(f"{self.url}: what answers is no MLflow server; check the address")

    def _send(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **how)
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise TrackingAway(f"{self.url}: the MLflow server does not answer: {said}") from error
        if answer.is_success:
            return answer
        reason, said = _said(answer)
        message = f"{self.url}: the MLflow server answers {answer.status_code}: {said}"
        if answer.status_code >= 500 or answer.status_code in LATER:
            raise TrackingAway(message)
        if answer.is_redirect:
            message = f"{self.url}: the server sends elsewhere, to {answer.headers.get('location', '')[:MAX_SAID]}"
        elif answer.status_code in (401, 403):
            message += "; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise TrackingRefused(message, reason)


def _trusting(certificate: str | None) -> Any:
    if certificate is None:
        return True
    import ssl

    return ssl.create_default_context(cafile=certificate)


def _said(answer: httpx.Response) -> tuple[str, str]:
    """MLflow's word, and its sentence."""
    try:
        told = answer.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return "", answer.reason_phrase
    return str(told.get("error_code", "")), " ".join(str(told.get("message", "")).split())[:MAX_SAID]


def _pairs(fields: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in fields.items()]


def _point(metric: Metric) -> dict[str, Any]:
    return {"key": metric.key, "value": metric.value, "timestamp": metric.at_ms, "step": metric.step}


def _batches(items: Iterable[T], most: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, most)):
        yield batch
