from __future__ import annotations

from typing import Any

import pytest

from api.core import datasets
from api.core.rows import db
from api.core.rows.ids import new_id


def test_a_folder_below_a_data_root_is_accepted_and_waits_for_its_import(client: Any, given: Any) -> None:
    (given.roots / "cells").mkdir()

    answer = client.post("/v1/datasets", json={"name": "cells", "path": f"{given.roots}/cells/"})

    assert answer.status_code == 202, answer.text
    dataset = answer.json()
    assert dataset["state"] == "verifying"
    assert dataset["report_url"] is None
    assert answer.headers["location"] == f"/v1/datasets/{dataset['id']}"
    assert client.get(answer.headers["location"]).json() == dataset


def test_a_zip_below_a_data_root_is_accepted_and_no_other_file(client: Any, given: Any) -> None:
    for name in ("cells.ZIP", "cells.tar"):
        (given.roots / name).write_bytes(b"x")
    accepted = client.post("/v1/datasets", json={"name": "c", "path": f"{given.roots}/cells.ZIP"})
    assert (accepted.status_code, accepted.json()["state"]) == (202, "verifying")
    refused = client.post("/v1/datasets", json={"name": "c", "path": f"{given.roots}/cells.tar"})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "path_not_found")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/etc", "path_not_allowed"),
        ("/no/such/folder", "path_not_allowed"),
        ("relative", "path_not_absolute"),
        ("{roots}/../..", "path_not_allowed"),
        ("{roots}-beside", "path_not_allowed"),
        ("{roots}/missing", "path_not_found"),
        ("{roots}/file", "path_not_found"),
        ("{roots}/" + "x" * 4000, "path_not_found"),
        ("/" + "x/" * 2000, "path_not_allowed"),
    ],
)
def test_any_other_path_is_refused_and_the_variable_named(client: Any, given: Any, path: str, code: str) -> None:
    (given.roots / "file").write_text("")

    answer = client.post("/v1/datasets", json={"name": "d", "path": path.format(roots=given.roots)[:4096]})

    assert answer.status_code == 422, answer.text
    error = answer.json()["errors"][0]
    assert (error["pointer"], error["code"]) == ("/path", code)
    if code == "path_not_allowed":
        assert "FGD_DATA_ROOTS" in error["detail"]


def test_the_same_key_registers_a_folder_once(client: Any, given: Any) -> None:
    (given.roots / "cells").mkdir()
    body, headers = {"name": "cells", "path": f"{given.roots}/cells"}, {"Idempotency-Key": "once"}
    for_a_job = given.body()

    first = client.post("/v1/datasets", json=body, headers=headers)
    again = client.post("/v1/datasets", json=body, headers=headers)
    other = client.post("/v1/datasets", json=body | {"name": "others"}, headers=headers)
    job = client.post("/v1/jobs", json=for_a_job, headers=headers)

    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json() == again.json()
    for answer in (other, job):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_a_folder_is_looked_at_before_the_database_is_locked(
    client: Any, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.core.rows.db.BUSY_MS", 50)
    with db.transaction(given.engine):
        answer = client.post("/v1/datasets", json={"name": "d", "path": f"{given.roots}/missing"})

    assert answer.status_code == 422


def test_without_data_roots_no_path_is_read_and_the_way_out_is_told(serving: Any, settings: Any) -> None:
    with serving(settings.model_copy(update={"data_roots": ()})) as client:
        answer = client.post("/v1/datasets", json={"name": "d", "path": "/data"})

    assert answer.status_code == 422
    assert "FGD_DATA_ROOTS is not set" in answer.json()["detail"]


def test_a_ready_data_set_shows_classes_splits_and_its_report(client: Any, given: Any) -> None:
    id = given.dataset().id

    dataset = client.get(f"/v1/datasets/{id}").json()
    report = client.get(dataset["report_url"]).json()

    assert dataset["state"] == "ready"
    assert dataset["classes"] == ["cat", "dog"]
    assert dataset["splits"]["train"] == {"images": 40, "boxes": 90}
    assert report["splits"]["train"]["boxes_per_class"] == {"cat": 45, "dog": 45}


def test_a_rejected_data_set_says_why(client: Any, given: Any) -> None:
    id = given.dataset("rejected").id

    assert client.get(f"/v1/datasets/{id}").json()["error"] == "no boxes at all"
    assert client.get(f"/v1/datasets/{id}/report").json()["ok"] is False


def test_a_data_set_of_which_nothing_could_be_read_has_a_report_that_says_why(client: Any, given: Any) -> None:
    id = given.dataset("verifying").id
    with db.transaction(given.engine) as s:
        claim = datasets.claim_import(s, "w", lease_s=20.0)
        assert claim is not None
        datasets.reject(s, id, claim.attempt, None, "/data/x: no COCO annotations found")

    report = client.get(f"/v1/datasets/{id}/report")

    assert report.status_code == 200
    assert report.json()["ok"] is False
    assert [(d["message"], d["action"]) for d in report.json()["defects"]] == [
        ("/data/x: no COCO annotations found", "rejected")
    ]


def test_a_report_that_is_not_there_yet_is_a_retryable_409(client: Any, given: Any) -> None:
    answer = client.get(f"/v1/datasets/{given.dataset('verifying').id}/report")

    assert answer.status_code == 409
    assert answer.json()["retryable"] is True


def test_an_unchanged_data_set_answers_304(client: Any, given: Any) -> None:
    id = given.dataset().id
    tag = client.get(f"/v1/datasets/{id}").headers["etag"]

    assert client.get(f"/v1/datasets/{id}", headers={"If-None-Match": f'"v0", W/{tag}'}).status_code == 304


def test_data_sets_are_listed_newest_first_in_pages(client: Any, given: Any) -> None:
    ids = [given.dataset().id for _ in range(3)]

    first = client.get("/v1/datasets?limit=2")
    second = client.get(first.links["next"]["url"]).json()

    assert [dataset["id"] for dataset in first.json()["items"] + second["items"]] == ids[::-1]
    assert second["next"] is None


def test_an_unknown_data_set_is_a_404(client: Any) -> None:
    for path in ("", "/report"):
        assert client.get(f"/v1/datasets/{new_id('ds')}{path}").status_code == 404
