"""The OpenAPI document as generators of clients read it.

openapi-python-client wants an older typer than ours, so it is no part of the environment: the cause of what it left
out is looked for in the document, and the client itself is made where the tool is on the PATH
(`pipx install openapi-python-client`).
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.core.settings import Settings
from api.main import create_app

TOOL = shutil.which("openapi-python-client")
UNREADABLE = {
    "PATCH /v1/datasets/{dataset_id}/content": "its content type, of the draft on resumable uploads",
    "PATCH /v1/models/{model_id}/content": "its content type, of the draft on resumable uploads",
}
"""What the generator leaves out, and why."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found = create_app(Settings()).openapi()
    assert isinstance(found, dict)
    return found


def objects(value: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield at, value
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from objects(each, f"{at}/{key}")


def test_no_field_has_an_object_as_its_default(document: dict[str, Any]) -> None:
    """A generator left POST /v1/jobs out for such a field five levels below its body."""
    assert [at for at, each in objects(document) if isinstance(each.get("default"), dict)] == []


def test_the_default_that_was_left_out_stands_in_words(document: dict[str, Any]) -> None:
    schedule = document["components"]["schemas"]["Schedule"]["properties"]
    assert 'Default: {"kind": "adamw"' in schedule["optimizer"]["description"]
    assert schedule["epochs"]["default"] == 12


@pytest.mark.slow
@pytest.mark.skipif(TOOL is None, reason="openapi-python-client is not on the PATH")
def test_a_generated_client_submits_a_job_and_sees_it(
    client: Any, given: Any, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    command = [str(TOOL), "generate", "--path", "openapi.json", "--output-path", "generated_client", "--meta", "none"]
    made = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    left_out = re.findall(r"parsing (\w+ \S+) within \w+\. Endpoint will not be generated", made.stdout)
    assert set(left_out) == UNREADABLE.keys()
    monkeypatch.syspath_prepend(str(tmp_path))
    part = importlib.import_module
    jobs = "generated_client.api.jobs."
    submit = part(f"{jobs}submit_job_v1_jobs_post").sync
    look = part(f"{jobs}get_job_v1_jobs_job_id_get").sync_detailed
    body = part("generated_client.models").SubmitJob.from_dict(given.body() | {"schedule": {"batch_size": 4}})
    service = part("generated_client").Client(base_url="http://127.0.0.1:8000").set_httpx_client(client)

    job = submit(client=service, body=body)

    assert job.state.value == "queued"
    assert job.spec["schedule"]["batch_size"] == 4
    assert look(job.id, client=service).parsed.name == "a job"
    for name in [name for name in sys.modules if name.startswith("generated_client")]:
        del sys.modules[name]
