"""PATCH /v1/jobs/{id}: name, metadata and priority, later."""

from __future__ import annotations

from typing import Any

import pytest

from api.core.jobs import requests
from api.core.jobs.record import record
from api.core.lifecycle import Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from fgd.events import Phase


def events(client: Any, id: str) -> list[tuple[str, Any]]:
    return [(each["type"], each["data"]) for each in client.get(f"/v1/jobs/{id}/events").json()["items"]]


def test_what_is_given_changes_and_the_rest_stays(client: Any, given: Any) -> None:
    id = given.job(metadata={"owner": "me", "kind": "x"}, priority=3)
    before = client.get(f"/v1/jobs/{id}")

    answer = client.patch(f"/v1/jobs/{id}", json={"name": "another", "metadata": {"owner": "you"}})

    job = answer.json()
    assert (job["name"], job["metadata"], job["priority"]) == ("another", {"owner": "you"}, 3)
    assert job["spec"] == before.json()["spec"]
    assert answer.headers["etag"] == client.get(f"/v1/jobs/{id}").headers["etag"] != before.headers["etag"]
    assert events(client, id)[-1] == ("job_changed", {"name": "another", "metadata": {"owner": "you"}})
    assert client.get("/v1/jobs", params={"name": "another", "metadata.owner": "you"}).json()["items"][0]["id"] == id

    cleared = client.patch(f"/v1/jobs/{id}", json={"metadata": {}, "name": None}).json()
    assert (cleared["name"], cleared["metadata"]) == ("another", {})


def test_the_queue_goes_by_the_new_priority(client: Any, given: Any) -> None:
    dataset = given.dataset()
    given.job(dataset)
    later = given.job(dataset)

    assert client.patch(f"/v1/jobs/{later}", json={"priority": 7}).json()["priority"] == 7
    assert given.claim().job_id == later


def test_what_changes_nothing_makes_no_version_and_no_event(client: Any, given: Any) -> None:
    id = given.job(metadata={"owner": "me"})
    before = client.get(f"/v1/jobs/{id}")

    for body in ({}, {"name": None}, {"name": "a job", "metadata": {"owner": "me"}, "priority": 0}):
        same = client.patch(f"/v1/jobs/{id}", json=body)
        assert (same.status_code, same.headers["etag"]) == (200, before.headers["etag"])
    assert [type for type, _ in events(client, id)] == ["job_submitted"]


def test_with_if_match_only_the_version_that_was_seen_is_changed(client: Any, given: Any) -> None:
    id = given.running()
    seen = client.get(f"/v1/jobs/{id}").headers["etag"]
    with db.transaction(given.engine) as s:
        record(s, id, 1, [Phase(phase="training")])

    for tag in (seen, '"v0", "v999"', "W/" + client.get(f"/v1/jobs/{id}").headers["etag"], "nonsense"):
        refused = client.patch(f"/v1/jobs/{id}", json={"name": "x"}, headers={"If-Match": tag})
        assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed"), tag
    assert client.get(f"/v1/jobs/{id}").json()["name"] == "a job"

    for tag in (f'"v0", {client.get(f"/v1/jobs/{id}").headers["etag"]}', "*"):
        assert client.patch(f"/v1/jobs/{id}", json={"name": f"of {tag[:1]}"}, headers={"If-Match": tag}).is_success


def test_an_ended_job_takes_a_name_and_labels_but_no_priority(client: Any, given: Any) -> None:
    id = given.job()
    with db.transaction(given.engine) as s:
        requests.request(s, DEFAULT_PROJECT, id, Requested.cancel)
    told = events(client, id)

    refused = client.patch(f"/v1/jobs/{id}", json={"name": "x", "priority": 1})
    changed = client.patch(f"/v1/jobs/{id}", json={"name": "kept", "metadata": {"good": "no"}, "priority": 0})

    assert (refused.status_code, refused.json()["code"]) == (409, "job_finished")
    assert (changed.json()["name"], changed.json()["metadata"]) == ("kept", {"good": "no"})
    assert events(client, id) == told, "a stream of them has ended"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"priority": 101}, "/priority"),
        ({"priority": "1"}, "/priority"),
        ({"name": ""}, "/name"),
        ({"metadata": {"a b": "x"}}, "/metadata/a b"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "/metadata"),
        ({"state": "succeeded"}, "/state"),
        ({"spec": {}}, "/spec"),
    ],
)
def test_nothing_else_can_be_changed(client: Any, given: Any, body: Any, pointer: str) -> None:
    answer = client.patch(f"/v1/jobs/{given.job()}", json=body)
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
