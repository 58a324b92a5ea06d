from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from api.core.jobs import attempts, checkpoints
from api.core.lifecycle import FailureCode
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.sweeper import sweep_rows


@pytest.fixture
def keep(given: Any, tmp_path: Path) -> Any:
    """Save a checkpoint of the running attempt 1, as the supervisor does."""

    def keep(id: str, step: int, *, best: bool = False) -> None:
        file, key = tmp_path / str(step), f"jobs/{id}/a1/{step}"
        file.write_bytes(f"checkpoint {step}".encode())
        given.store.put_object(key, file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        with db.transaction(given.engine) as s:
            dropped = attempts.checkpoint(s, id, 1, step, key, sha256, file.stat().st_size, best=best)
        for old in dropped:
            given.store.delete_object(old)

    return keep


def listed(client: Any, id: str) -> dict[int, tuple[str, bool, bool]]:
    items = client.get(f"/v1/jobs/{id}/checkpoints").json()["items"]
    return {each["step"]: (each["id"], each["best"], each["pinned"]) for each in items}


def stored(given: Any) -> list[int]:
    return sorted(int(key.rpartition("/")[2]) for key in given.store.objects(0))


def test_the_last_two_the_best_and_the_pinned_are_kept_and_no_other(client: Any, given: Any, keep: Any) -> None:
    id = given.running()
    keep(id, 10, best=True)
    keep(id, 20, best=True)
    first = listed(client, id)[10][0]
    pinned = client.post(f"/v1/jobs/{id}/checkpoints/{first}/pin")
    assert (pinned.status_code, pinned.json()["pinned"]) == (200, True), pinned.text
    assert client.post(f"/v1/jobs/{id}/checkpoints/{first}/pin").status_code == 200
    for step in (30, 40, 50):
        keep(id, step)
    flags = {step: flags for step, (_, *flags) in listed(client, id).items()}
    assert flags == {50: [False, False], 40: [False, False], 20: [True, False], 10: [False, True]}
    assert stored(given) == [10, 20, 40, 50]
    for each, _, _ in listed(client, id).values():
        assert client.post(f"/v1/jobs/{id}/checkpoints/{each}/promote").status_code == 202
    keep(id, 60, best=True)
    assert stored(given) == [10, 50, 60]
    unpinned = client.delete(f"/v1/jobs/{id}/checkpoints/{first}/pin")
    assert (unpinned.status_code, unpinned.json()["pinned"]) == (200, False)
    assert stored(given) == [50, 60]


def test_a_pinned_checkpoint_outlives_its_job_until_that_is_deleted(client: Any, given: Any, keep: Any) -> None:
    id = given.running()
    keep(id, 10)
    keep(id, 20)
    of = listed(client, id)[10][0]
    client.post(f"/v1/jobs/{id}/checkpoints/{of}/pin")
    with db.transaction(given.engine) as s:
        attempts.fail(s, id, 1, FailureCode.user_error, "no")
        rubbish = sweep_rows(s, lease_s=20.0).rubbish
    assert rubbish == [f"jobs/{id}/a1/20"]
    assert list(listed(client, id)) == [10]
    assert client.post(f"/v1/jobs/{id}/checkpoints/{of}/promote").status_code == 202
    assert client.delete(f"/v1/jobs/{id}").status_code == 204
    assert 10 not in stored(given)


def test_what_is_not_there_cannot_be_pinned_and_there_is_an_end(client: Any, given: Any, keep: Any) -> None:
    id = given.running()
    for method in ("POST", "DELETE"):
        unknown = client.request(method, f"/v1/jobs/{id}/checkpoints/{new_id('ckpt')}/pin")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "checkpoint_not_found")
        unknown = client.request(method, f"/v1/jobs/{new_id('job')}/checkpoints/{new_id('ckpt')}/pin")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "job_not_found")
    for step in range(checkpoints.MAX_PINNED + 1):
        keep(id, step)
        answer = client.post(f"/v1/jobs/{id}/checkpoints/{listed(client, id)[step][0]}/pin")
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_pinned")
