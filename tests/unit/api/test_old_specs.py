"""Jobs, plans and models whose rows an earlier version wrote, with a field that is no more: they live on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from api.core import blobs, models, plans
from api.core.jobs import attempts
from api.core.lifecycle import FailureCode
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt, Job, Plan
from fgd import stored
from fgd.detector_specs import FCOS
from fgd.stored import stored_spec

LEASE_S = 1000.0


def make_old(given: Any, table: type[Job | Plan | Attempt], compile: bool = True) -> None:
    """Every row's spec as it was written while there was `resources.compile`."""
    with db.transaction(given.engine) as s:
        for row in s.query(table):
            if row.spec is not None:
                row.spec = {**row.spec, "resources": {**row.spec["resources"], "compile": compile}}


def has_the_field(given: Any, id: str) -> bool:
    return "compile" in given.look(id).spec["resources"]


@pytest.mark.parametrize("compile", [True, False])
def test_an_old_job_is_shown_and_what_is_shown_can_be_sent_again(client: Any, given: Any, compile: bool) -> None:
    id = given.job()
    make_old(given, Job, compile)

    shown = client.get(f"/v1/jobs/{id}").json()["spec"]
    (listed,) = client.get("/v1/jobs").json()["items"]

    assert has_the_field(given, id), "a view changes no row"
    assert listed["spec"] == shown == stored_spec(given.look(id).spec).model_dump(mode="json")
    for path in ("/v1/jobs", "/v1/jobs?dry_run=true"):
        answer = client.post(path, json=shown)
        assert answer.status_code in (201, 202), answer.text


def test_an_old_job_is_claimed_lost_and_tried_again(client: Any, given: Any) -> None:
    id = given.job(resources={"threads": 2})
    make_old(given, Job)

    first = given.claim()
    given.later(LEASE_S)
    given.sweep()
    given.later(LEASE_S)
    second = given.claim("wrk_b")

    assert first.job_id == second.job_id == id
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.spec == second.spec == stored_spec(given.look(id).spec)
    assert second.spec.resources.threads == 2
    assert "compile" not in client.get(f"/v1/jobs/{id}/attempts").text


def test_an_old_job_that_runs_out_of_memory_goes_on_in_smaller_batches(client: Any, given: Any) -> None:
    id = given.job(resources={"on_out_of_memory": "halve"}, schedule={"batch_size": 8})
    make_old(given, Job)
    claimed = given.claim()
    with db.transaction(given.engine) as s:
        attempts.fail(s, id, claimed.attempt, FailureCode.host_out_of_memory, "no memory left")
    given.later(LEASE_S)

    smaller = given.claim()
    make_old(given, Attempt)

    assert smaller.spec.schedule.batch_size == 4
    *_, last = client.get(f"/v1/jobs/{id}/attempts").json()["items"]
    assert last["spec"] == smaller.spec.model_dump(mode="json")


def test_a_checkpoint_of_an_old_job_is_promoted(client: Any, given: Any, tmp_path: Path) -> None:
    id = given.running()
    make_old(given, Job)
    (tmp_path / "c.pt").write_bytes(b"checkpoint")
    given.store.put_object("jobs/c.pt", tmp_path / "c.pt")
    with db.transaction(given.engine) as s:
        attempts.checkpoint(s, id, 1, 40, "jobs/c.pt", hashlib.sha256(b"checkpoint").hexdigest(), 10)

    answer = client.post(f"/v1/jobs/{id}/checkpoints/last/promote")

    assert (answer.status_code, answer.json()["state"]) == (202, "verifying"), answer.text
    with db.transaction(given.engine) as s:
        assert models.claim_import(s, "wrk_a", lease_s=20.0) is not None


def test_an_old_plan_is_shown_and_measured(client: Any, given: Any) -> None:
    id = client.post("/v1/jobs?dry_run=true", json=given.body()).json()["id"]
    make_old(given, Plan)

    shown = client.get(f"/v1/plans/{id}").json()["spec"]
    with db.transaction(given.engine) as s:
        claimed = plans.claim(s, "wrk_a", ("cpu", "auto"), lease_s=20.0)
        row = plans.get(s, DEFAULT_PROJECT, id)
        assert "compile" in row.spec["resources"]

    assert claimed is not None
    assert claimed.spec.model_dump(mode="json") == shown
    assert "compile" not in shown["resources"]


def test_an_old_model_is_shown_without_the_field_and_teaches(
    client: Any, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.post("/v1/models", json={"name": "t", "job": given.succeeded()}).json()
    recipe = {**made["recipe"], "detector": {**made["recipe"]["detector"], "tied": True}}
    blob = given.store.put_bytes(json.dumps(recipe).encode())
    with db.transaction(given.engine) as s:
        model = models.get(s, DEFAULT_PROJECT, made["id"])
        blobs.remember_blobs(s, DEFAULT_PROJECT, db.now(s), blob)
        model.recipe, model.recipe_digest = recipe, blob.digest
    monkeypatch.setattr(FCOS, "retired", {"tied": "both towers have weights of their own"})
    monkeypatch.setattr(stored, "_retired", stored._retired.__wrapped__)  # which remembers what was retired

    shown = client.get(f"/v1/models/{made['id']}").json()["recipe"]
    answer = client.post("/v1/jobs", json=given.body(teacher={"model": made["id"]}, methods=[{"kind": "fgd"}]))

    assert shown == made["recipe"]
    assert answer.status_code == 201, answer.text
