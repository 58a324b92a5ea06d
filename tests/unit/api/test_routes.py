"""Every route of the document: a wrong id in its path, a method that it has not, HEAD where it has GET."""

from __future__ import annotations

import re
from typing import Any

import pytest

from api.core.rows.ids import new_id
from api.core.settings import Settings
from api.main import create_app

PATHS: dict[str, dict[str, Any]] = create_app(Settings()).openapi()["paths"]
ROUTES = [(method.upper(), path) for path, operations in PATHS.items() for method in operations]
NAMES = {
    "job": "job",
    "ds": "dataset",
    "mdl": "model",
    "plan": "plan",
    "art": "artifact",
    "ckpt": "checkpoint",
    "std": "study",
    "evl": "evaluation",
    "exp": "export",
    "pred": "prediction",
}
WRONG = [
    "foo",
    "last.",
    "%00",
    "%0A",
    "%2e%2e",
    "%ff",
    "\N{GRINNING FACE}",
    "a" * 5000,
    "job_" + "G" * 32,
    "JOB_" + "0" * 32,
    "job_" + "0" * 32 + "%0A",
    "job_" + "0" * 33,
    "ds_" + "0" * 31,
    "'; DROP TABLE jobs; --",
    "{job_id}",
]
HEADERS = {"Content-Type": "application/json", "Upload-Offset": "0", "Content-Length": "2"}


def parameters(path: str, method: str) -> dict[str, Any]:
    found = PATHS[path][method.lower()].get("parameters", [])
    return {each["name"]: each["schema"] for each in found if each["in"] == "path"}


def asked(path: str, method: str) -> dict[str, str] | None:
    """What the query must have; None leaves it out."""
    found = PATHS[path][method.lower()].get("parameters", [])
    return {each["name"]: "x" for each in found if each["in"] == "query" and each.get("required")} or None


def filled(path: str, method: str, wrong: str, text: str) -> str:
    """The path with `text` as `wrong`, and well-formed ids of nothing in the other places."""
    for name, schema in parameters(path, method).items():
        prefix = "0" if "pattern" not in schema else re.findall(r"([a-z]+)_\[", schema["pattern"])[0]
        path = path.replace(f"{{{name}}}", text if name == wrong else "0" if prefix == "0" else new_id(prefix))
    return path


WITH_ID = [
    (method, path, name)
    for method, path in ROUTES
    for name, schema in parameters(path, method).items()
    if schema["type"] == "string"
]


def test_every_text_in_a_path_is_an_id_whose_form_the_document_tells() -> None:
    assert len(WITH_ID) > 30
    for method, path, name in WITH_ID:
        assert "pattern" in parameters(path, method)[name], f"{method} {path}: {name} is not one of api.deps"


@pytest.mark.parametrize(("method", "path", "name"), WITH_ID)
def test_a_wrong_id_in_a_path_is_a_404(client: Any, method: str, path: str, name: str) -> None:
    prefix = re.findall(r"([a-z]+)_\[", parameters(path, method)[name]["pattern"])[0]
    first = name == next(iter(parameters(path, method)))
    for wrong in [*WRONG, new_id("xyz"), *([new_id(prefix)] if first else [])]:
        url = filled(path, method, name, wrong)
        answer = client.request(method, url, params=asked(path, method), headers=HEADERS, content=b"{}")
        assert answer.status_code == 404, (wrong, answer.text)
        if method != "HEAD":
            assert answer.json()["code"] == f"{NAMES[prefix]}_not_found", wrong


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which is asked nothing
@pytest.mark.parametrize("path", PATHS)
def test_a_405_names_all_methods_of_the_path(client: Any, path: str) -> None:
    there = {method.upper() for method in PATHS[path]}
    there |= {"HEAD"} if "GET" in there else set()
    url = filled(path, next(iter(PATHS[path])), "", "")

    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} - there:
        answer = client.request(method, url)
        assert answer.status_code == 405, method
        assert answer.headers["allow"] == ", ".join(sorted(there)), method


def test_a_405_of_what_is_no_part_of_the_document_names_its_methods_too(client: Any) -> None:
    for path in ("/", "/docs", "/docs/start.js", "/docs/assets/swagger-ui.css", "/openapi.json"):
        answer = client.post(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD"), path
        assert client.head(path, follow_redirects=False).status_code < 400, path


@pytest.mark.parametrize("path", [path for path in PATHS if "get" in PATHS[path]])
def test_head_answers_as_get_does_without_the_bytes(client: Any, path: str) -> None:
    url = filled(path, "get", "", "")
    whole, head = client.get(url), client.head(url)

    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_head_of_a_stream_ends_though_the_stream_goes_on(client: Any, given: Any) -> None:
    id = given.job()
    stream = {"Accept": "text/event-stream"}

    head = client.head(f"/v1/jobs/{id}/events", headers=stream)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert client.app.state.service.streams.taken == 0
