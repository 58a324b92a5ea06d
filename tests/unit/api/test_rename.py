"""PATCH /v1/datasets/{id} and /v1/models/{id}: another name, later."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api.core import datasets
from api.core.rows import db

UPLOAD = {"name": "cells", "detector": {"kind": "fcos", "fpn_channels": 64}, "classes": ["cat", "dog"]}
Make = Callable[[Any, Any], str]
"""Makes a thing called "cells" and returns its address."""


def ready_dataset(client: Any, given: Any) -> str:
    return f"/v1/datasets/{given.dataset().id}"


def rejected_dataset(client: Any, given: Any) -> str:
    return f"/v1/datasets/{given.dataset('rejected').id}"


def waiting_model(client: Any, given: Any) -> str:
    return f"/v1/models/{client.post('/v1/models', json=UPLOAD).json()['id']}"


def ready_model(client: Any, given: Any) -> str:
    body = {"name": "cells", "job": given.succeeded()}
    return f"/v1/models/{client.post('/v1/models', json=body).json()['id']}"


each_kind = pytest.mark.parametrize("make", [ready_dataset, waiting_model])


@pytest.mark.parametrize("make", [ready_dataset, rejected_dataset, waiting_model, ready_model])
def test_the_name_changes_whatever_the_state_and_the_rest_stays(client: Any, given: Any, make: Make) -> None:
    url = make(client, given)
    before = client.get(url)

    answer = client.patch(url, json={"name": "Zellen ü"})

    version = before.json()["version"] + 1
    assert answer.json() == before.json() | {"name": "Zellen ü", "version": version}
    assert answer.headers["etag"] == f'"v{version}"'
    polled = client.get(url, headers={"If-None-Match": before.headers["etag"]})
    assert (polled.status_code, polled.content) == (200, answer.content)
    assert client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    kind = url.rpartition("/")[0]
    named = client.get(kind, params={"name": "Zellen*"}).json()["items"]
    assert [each["id"] for each in named] == [answer.json()["id"]]
    assert client.get(kind, params={"name": "cells"}).json()["items"] == []


@each_kind
def test_what_changes_nothing_makes_no_version(client: Any, given: Any, make: Make) -> None:
    url = make(client, given)
    before = client.get(url)

    for body in ({}, {"name": None}, {"name": "cells"}):
        same = client.patch(url, json=body)
        assert (same.status_code, same.headers["etag"], same.content) == (200, before.headers["etag"], before.content)


@each_kind
def test_with_if_match_only_the_version_that_was_seen_is_renamed(client: Any, given: Any, make: Make) -> None:
    url = make(client, given)
    seen = client.get(url).headers["etag"]
    now = client.patch(url, json={"name": "first"}, headers={"If-Match": seen}).headers["etag"]

    for tag in (seen, '"v0", "v999"', f"W/{now}", "nonsense"):
        refused = client.patch(url, json={"name": "x"}, headers={"If-Match": tag})
        assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed"), tag
    assert client.get(url).json()["name"] == "first"
    assert client.patch(url, json={"name": "second"}, headers={"If-Match": f'"v0", {now}'}).is_success
    assert client.patch(url, json={"name": "third"}, headers={"If-Match": "*"}).json()["name"] == "third"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "x" * 101}, "/name"),
        ({"name": "a\u202eb"}, "/name"),
        ({"name": 7}, "/name"),
        ({"name": "x", "state": "ready"}, "/state"),
        ({"metadata": {}}, "/metadata"),
        ({"classes": ["a"]}, "/classes"),
    ],
)
def test_the_name_is_held_against_the_rules_of_creation_and_nothing_else_changes(
    client: Any, given: Any, body: Any, pointer: str
) -> None:
    for make in (ready_dataset, waiting_model):
        url = make(client, given)
        answer = client.patch(url, json=body)
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
        assert client.get(url).json()["name"] == "cells"


def test_a_worker_goes_on_with_what_is_renamed_under_its_lease(client: Any, given: Any) -> None:
    id = given.dataset("verifying").id
    claim = given.claim_import()

    client.patch(f"/v1/datasets/{id}", json={"name": "later"})
    with db.transaction(given.engine) as s:
        datasets.reject(s, id, claim.attempt, None, "no boxes at all")

    after = client.get(f"/v1/datasets/{id}").json()
    assert (after["name"], after["state"]) == ("later", "rejected")


def test_a_long_poll_ends_with_a_new_name(client: Any, given: Any) -> None:
    url = waiting_model(client, given)
    etag = client.get(url).headers["etag"]

    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(client.get, url, headers={"If-None-Match": etag, "Prefer": "wait=30"})
        while not (client.app.state.service.waiters.taken or poll.done()):
            time.sleep(0.01)
        client.patch(url, json={"name": "new"})
        assert poll.result().json()["name"] == "new"
