"""/v1/studies: a grid of jobs, made whole or not at all; paused, extended, retried and deleted as one."""

from __future__ import annotations

from typing import Any

import pytest

from api.core import blobs
from api.core.jobs import attempts
from api.core.lifecycle import FailureCode
from api.core.rows import db
from api.core.study_bodies import SubmitStudy
from fgd.spec import SubmitJob

FGD, MIMIC = [{"kind": "fgd"}], [{"kind": "mimic"}]
NO_JOB, NO_MODEL = {"job": "job_" + "0" * 32}, {"model": "mdl_" + "0" * 32}


@pytest.fixture
def body(given: Any) -> dict[str, Any]:
    """Two arms and two seeds: with the control six jobs."""
    return {
        "name": "what helps",
        "teacher": {"job": given.succeeded()},
        "dataset": given.dataset().id,
        "arms": [{"name": "fgd", "methods": FGD}, {"name": "imitation", "methods": MIMIC}],
        "students": [{"kind": "fcos", "fpn_channels": 64}],
        "seeds": [0, 1],
    }


def submitted(client: Any, body: dict[str, Any], status: int = 201, headers: dict[str, str] | None = None) -> Any:
    answer = client.post("/v1/studies", json=body, headers=headers or {})
    assert answer.status_code == status, answer.text
    return answer.json()


def jobs_of(client: Any, study: dict[str, Any], **filters: str) -> list[dict[str, Any]]:
    """Oldest first."""
    answer = client.get(study["jobs_url"], params={"study": study["id"], "limit": 200, **filters})
    assert answer.status_code == 200, answer.text
    return list(reversed(answer.json()["items"]))


def ask(client: Any, study: dict[str, Any], verb: str, status: int = 202, **sent: Any) -> Any:
    answer = client.post(f"/v1/studies/{study['id']}/{verb}", **sent)
    assert answer.status_code == status, answer.text
    return answer.json()


def faults(client: Any, body: dict[str, Any], url: str = "/v1/studies") -> list[tuple[str, str]]:
    answer = client.post(url, json=body)
    assert answer.status_code == 422, answer.text
    return [(error["pointer"], error["code"]) for error in answer.json()["errors"]]


# --- made ---


def test_a_study_is_its_jobs(client: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)

    jobs = jobs_of(client, study)
    assert [job["name"] for job in jobs] == [
        f"what helps / {arm} / seed {seed}" for seed in (0, 1) for arm in ("control", "fgd", "imitation")
    ]
    assert [(job["spec"]["seed"], [m["kind"] for m in job["spec"]["methods"]]) for job in jobs] == [
        (seed, methods) for seed in (0, 1) for methods in ([], ["fgd"], ["mimic"])
    ]
    assert [job["spec"]["teacher"] is None for job in jobs] == [True, False, False] * 2
    assert {job["study"] for job in jobs} == {study["id"]}
    assert (study["state"], study["jobs"]["total"], study["jobs"]["queued"]) == ("queued", 6, 6)
    assert [(arm["name"], arm["against"]) for arm in study["arms"]] == [
        ("control", None), ("fgd", "control"), ("imitation", "control"),
    ]  # fmt: skip
    assert client.get("/v1/studies").json()["items"] == [study]


def test_a_dry_run_says_what_a_study_would_be_and_makes_nothing(client: Any, body: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "once"}

    answer = client.post("/v1/studies?dry_run=true", json=body, headers=key)

    assert (answer.status_code, answer.json()["jobs"]) == (200, 6)
    runs = answer.json()["runs"]
    assert [(run["arm"], run["against"], run["jobs"]) for run in runs] == [
        ("control", None, 2), ("fgd", "control", 2), ("imitation", "control", 2),
    ]  # fmt: skip
    assert client.post("/v1/plans", json=runs[1]["spec"]).json()["outline"]["teachers"][0]["methods"] == ["fgd"]
    assert client.get("/v1/studies").json()["items"] == []
    assert faults(client, body | {"seeds": [3, 3]}, "/v1/studies?dry_run=true") == [("/seeds/1", "given_twice")]
    study = submitted(client, body, headers=key)
    first = {job["name"]: job["spec"] for job in jobs_of(client, study)}
    assert [first[run["spec"]["name"]]["methods"] for run in runs] == [run["spec"]["methods"] for run in runs]


def test_pairs_differ_in_nothing_but_methods_and_teacher(client: Any, body: dict[str, Any]) -> None:
    inherit = body["teacher"]
    student = {"kind": "fcos", "fpn_channels": 64, "inherit": inherit}
    study = submitted(client, body | {"students": [student], "schedule": {"epochs": 3}})

    control, fgd, _ = (job["spec"] for job in jobs_of(client, study)[:3])
    assert {key for key in control if control[key] != fgd[key]} == {"name", "teacher", "methods"}
    assert control["student"]["inherit"] == inherit
    assert control["schedule"]["epochs"] == 3


def test_each_arm_has_a_control_of_its_own_setting(client: Any, body: dict[str, Any]) -> None:
    inherit = body["teacher"]
    arms = [
        {"name": "fgd", "methods": FGD},
        {"name": "fgd inherits", "methods": FGD, "inherit": inherit},
        {"name": "mimic inherits", "methods": MIMIC, "inherit": inherit},
        {"name": "control longer", "methods": [], "epochs": 20},
        {"name": "fgd again", "methods": FGD, "against": "control longer"},
    ]
    study = submitted(client, body | {"arms": arms, "seeds": [0]})

    assert {arm["name"]: arm["against"] for arm in study["arms"]} == {
        "control": None,
        "control of fgd inherits": "control",
        "fgd": "control",
        "fgd inherits": "control of fgd inherits",
        "mimic inherits": "control of fgd inherits",
        "control longer": "control",
        "fgd again": "control longer",
    }
    specs = {job["name"].split(" / ")[1]: job["spec"] for job in jobs_of(client, study)}
    assert specs["control of fgd inherits"]["student"]["inherit"] == inherit
    assert specs["control"]["student"]["inherit"] is None
    assert specs["control longer"]["schedule"]["epochs"] == 20


def test_without_control_none_is_added(client: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body | {"control": False})

    assert [(arm["name"], arm["against"]) for arm in study["arms"]] == [("fgd", None), ("imitation", None)]
    assert study["jobs"]["total"] == 4


def test_students_are_told_apart(client: Any, body: dict[str, Any]) -> None:
    alike = [
        {"backbone": "resnet18", "fpn_channels": 64},
        {"backbone": "resnet18", "fpn_channels": 64, "norm": "group"},
    ]
    study = submitted(client, body | {"students": [*alike, {"kind": "retinanet"}], "seeds": [7]})

    names = [student["name"] for student in study["students"]]
    assert names == ["FCOS R18, FPN 64, norm batch", "FCOS R18, FPN 64, norm group", "RetinaNet R18, FPN 256"]
    assert study["jobs"]["total"] == 9


def test_a_study_is_made_once_for_a_key(client: Any, body: dict[str, Any]) -> None:
    first = submitted(client, body, headers={"Idempotency-Key": "k"})
    again = submitted(client, body, status=200, headers={"Idempotency-Key": "k"})

    assert again["id"] == first["id"]
    assert len(client.get("/v1/jobs", params={"state": "queued"}).json()["items"]) == 6


def test_what_a_job_can_be_given_a_study_can(client: Any, body: dict[str, Any]) -> None:
    of_arms = {"methods": "arms", "student": "students", "seed": "seeds"}
    assert {of_arms.get(name, name) for name in SubmitJob.model_fields} == SubmitStudy.model_fields.keys() - {"control"}
    given = {"priority": 7, "metadata": {"owner": "ada"}, "limits": {"max_retries": 1}, "resources": {"threads": 2}}
    study = submitted(client, body | given)
    for job in jobs_of(client, study):
        assert (job["priority"], job["metadata"], job["limits"]["max_retries"]) == (7, {"owner": "ada"}, 1)
        assert job["spec"]["resources"]["threads"] == 2


def test_each_arm_gets_the_teachers_that_its_methods_name(client: Any, given: Any, body: dict[str, Any]) -> None:
    if "teachers" not in SubmitJob.model_fields:
        pytest.skip("jobs have one teacher")
    named = {"kind": "mimic", "teacher": "old"}
    arms = [{"name": "both", "methods": [*FGD, named]}, {"name": "old", "methods": [named]}, *body["arms"]]
    study = submitted(client, body | {"arms": arms, "teachers": {"old": body["teacher"]}, "seeds": [0]})

    specs = {job["name"].split(" / ")[1]: job["spec"] for job in jobs_of(client, study)}
    has = {arm: (spec["teacher"] is not None, list(spec.get("teachers", {}))) for arm, spec in specs.items()}
    assert has == {
        "control": (False, []), "both": (True, ["old"]), "old": (False, ["old"]), "fgd": (True, []),
        "imitation": (True, []),
    }  # fmt: skip


# --- refused ---


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"teacher": None}, ("/teacher", "teacher_missing")),
        ({"arms": [{"name": "plain", "methods": []}]}, ("/teacher", "teacher_without_methods")),
        ({"arms": [{"name": "a", "methods": FGD}, {"name": "a", "methods": MIMIC}]}, ("/arms/1/name", "name_taken")),
        ({"arms": [{"name": "control", "methods": FGD}]}, ("/arms/0/name", "name_taken")),
        ({"arms": [{"name": "a", "methods": FGD, "against": "b"}]}, ("/arms/0/against", "arm_not_found")),
        ({"arms": [{"name": "a", "methods": [{"kind": "fgd", "alpha": -1}]}]}, ("/arms/0/methods/0/alpha", "")),
        ({"arms": [{"name": "a", "methods": [*FGD, *FGD]}]}, ("/arms/0/methods", "value_error")),
        ({"seeds": [1, 1]}, ("/seeds/1", "given_twice")),
        ({"seeds": list(range(100))}, ("/seeds", "too_many_jobs")),
        ({"students": [{"kind": "fcos"}, {"kind": "fcos"}]}, ("/students/1", "given_twice")),
        ({"students": [{"kind": "fcos", "norm": "frozen"}]}, ("/students/0", "value_error")),
        ({"students": [{"backbone": "resnet18"}, {"kind": "faster_rcnn"}],
          "arms": [{"name": "x", "methods": [{"kind": "crosskd"}]}]}, ("/arms/0/methods/0", "method_not_served")),
        ({"schedule": {"batch_size": 4096}}, ("/schedule/batch_size", "batch_too_large")),
        ({"dataset": "ds_" + "0" * 32}, ("/dataset", "dataset_not_found")),
        ({"teacher": NO_JOB}, ("/teacher/job", "teacher_not_found")),
        ({"arms": [{"name": "a", "methods": FGD, "inherit": NO_JOB}]},
         ("/arms/0/inherit/job", "inherit_not_found")),
        ({"arms": [{"name": "a", "methods": FGD}, {"name": "b", "methods": FGD, "teacher": NO_MODEL}]},
         ("/arms/1/teacher/model", "teacher_not_found")),
        ({"arms": [{"name": "a", "methods": FGD}, {"name": "b", "methods": [], "teacher": NO_MODEL}]},
         ("/arms/1/teacher", "teacher_without_methods")),
        ({"arms": [{"name": "a", "methods": FGD}, {"name": "b", "methods": [], "unlabelled": {}}]},
         ("/arms/1/unlabelled", "value_error")),
        ({"arms": []}, ("/arms", "too_short")),
        ({"nmae": 1}, ("/nmae", "extra_forbidden")),
    ],
)  # fmt: skip
def test_a_study_with_one_bad_job_makes_none(
    client: Any, body: dict[str, Any], change: dict[str, Any], fault: tuple[str, str]
) -> None:
    found = faults(client, body | change)

    assert fault[0] in [pointer for pointer, _ in found], found
    assert fault[1] in ("", dict(found)[fault[0]])
    assert client.get("/v1/studies").json()["items"] == []
    assert client.get("/v1/jobs", params={"state": "queued"}).json()["items"] == []


def test_all_faults_are_told_at_once(client: Any, body: dict[str, Any]) -> None:
    arms = [{"name": "x", "methods": [{"kind": "crosskd"}]}, {"name": "y", "methods": FGD, "inherit": NO_JOB}]
    students = [{"fpn_channels": 64}, {"kind": "faster_rcnn"}]

    found = faults(client, body | {"arms": arms, "students": students, "seeds": [3, 3]})

    assert set(found) == {("/arms/0/methods/0", "method_not_served"), ("/seeds/1", "given_twice")}
    found = faults(client, body | {"arms": arms[1:], "students": students, "schedule": {"batch_size": 4096}})
    assert set(found) == {("/arms/0/inherit/job", "inherit_not_found"), ("/schedule/batch_size", "batch_too_large")}


def test_more_jobs_than_may_wait_are_refused_whole(serving: Any, settings: Any, body: dict[str, Any]) -> None:
    with serving(settings.model_copy(update={"max_queued_jobs": 5})) as client:
        answer = client.post("/v1/studies", json=body)

        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_waiting")
        assert client.get("/v1/studies").json()["items"] == []


# --- its life ---


def finish(given: Any, job_id: str | None = None) -> str:
    claim = given.claim()
    assert claim is not None
    blob = given.store.put_bytes(b"weights")
    with db.transaction(given.engine) as s:
        attempts.finish(s, claim.job_id, claim.attempt, [attempts.ArtifactIn("w", blob.digest, blob.size)], "e" * 64)
    return str(claim.job_id)


def fail(given: Any) -> str:
    claim = given.claim()
    assert claim is not None
    with db.transaction(given.engine) as s:
        attempts.fail(s, claim.job_id, claim.attempt, FailureCode.user_error, "it cannot be")
    return str(claim.job_id)


def look(client: Any, study: dict[str, Any]) -> Any:
    return client.get(f"/v1/studies/{study['id']}").json()


def test_its_state_follows_from_its_jobs(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body | {"seeds": [0]})

    states = [look(client, study)["state"]]
    for _ in range(3):
        finish(given)
        states.append(look(client, study)["state"])

    assert states == ["queued", "running", "running", "succeeded"]
    assert look(client, study)["finished_at"] is not None
    assert look(client, study)["jobs"]["succeeded"] == 3


def test_its_version_rises_with_its_jobs(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    url = f"/v1/studies/{study['id']}"
    before = client.get(url)
    tag = before.headers["ETag"]
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 304

    finish(given)

    after = client.get(url, headers={"If-None-Match": tag})
    assert after.status_code == 200
    assert after.json()["version"] > before.json()["version"]


def test_pause_and_resume_reach_every_job(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    finish(given)
    running = given.claim()

    paused = ask(client, study, "pause")
    assert (paused["state"], paused["jobs"]["paused"]) == ("running", 4)
    assert given.look(running.job_id).requested == "pause"
    with db.transaction(given.engine) as s:
        attempts.ended_as_requested(s, running.job_id, running.attempt)
    assert look(client, study)["state"] == "paused"
    assert ask(client, study, "pause")["state"] == "paused"

    resumed = ask(client, study, "resume")
    assert (resumed["state"], resumed["jobs"]["queued"], resumed["jobs"]["succeeded"]) == ("running", 5, 1)
    assert ask(client, study, "resume")["jobs"] == resumed["jobs"]


def test_a_study_grows_by_seeds(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    before = jobs_of(client, study)

    grown = ask(client, study, "extend", json={"seeds": [1, 2]})

    assert (grown["seeds"], grown["jobs"]["total"]) == ([0, 1, 2], 9)
    jobs = jobs_of(client, study)
    assert [job["id"] for job in jobs[:6]] == [job["id"] for job in before]
    for old, new in zip(jobs[:3], jobs[6:], strict=True):
        assert {key for key in old["spec"] if old["spec"][key] != new["spec"][key]} == {"name", "seed"}
        assert given.look(old["id"]).inputs == given.look(new["id"]).inputs
    assert ask(client, study, "extend", json={"seeds": [1, 2]})["jobs"]["total"] == 9
    assert len(jobs_of(client, study)) == 9


def test_a_study_grows_by_arms(client: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body | {"arms": body["arms"][:1]})
    inherits = {"name": "fgd inherits", "methods": FGD, "inherit": body["teacher"]}

    grown = ask(client, study, "extend", json={"arms": [body["arms"][1], inherits], "seeds": [4]})

    assert {arm["name"]: arm["against"] for arm in grown["arms"]} == {
        "control": None,
        "fgd": "control",
        "imitation": "control",
        "control of fgd inherits": "control",
        "fgd inherits": "control of fgd inherits",
    }
    assert grown["jobs"]["total"] == len(jobs_of(client, study)) == 15
    assert ask(client, study, "extend", json={"arms": [inherits]})["jobs"]["total"] == 15


def test_a_key_extends_once(client: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    key = {"Idempotency-Key": "more"}

    ask(client, study, "extend", json={"seeds": [5]}, headers=key)
    assert ask(client, study, "extend", 200, json={"seeds": [5]}, headers=key)["seeds"] == [0, 1, 5]
    reused = client.post(f"/v1/studies/{study['id']}/extend", json={"seeds": [6]}, headers=key)
    assert reused.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        ({"arms": [{"name": "fgd", "methods": MIMIC}]}, ("/arms/0/name", "arm_exists")),
        ({"arms": [{"name": "imitation", "methods": MIMIC}, {"name": "x", "methods": [*FGD, *FGD]}]},
         ("/arms/1/methods", "value_error")),
        ({"seeds": list(range(90))}, ("/seeds", "too_many_jobs")),
        ({"seeds": [-1]}, ("/seeds/0", "greater_than_equal")),
    ],
)  # fmt: skip
def test_a_refused_extension_leaves_it_as_it_was(
    client: Any, body: dict[str, Any], sent: dict[str, Any], fault: tuple[str, str]
) -> None:
    study = submitted(client, body)

    assert fault in faults(client, sent, f"/v1/studies/{study['id']}/extend")
    assert look(client, study) == study


def test_a_paused_study_grows_paused(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    ask(client, study, "pause")

    grown = ask(client, study, "extend", json={"seeds": [9]})

    assert (grown["state"], grown["jobs"]["paused"]) == ("paused", 9)
    assert given.claim() is None


def test_a_study_whose_teacher_is_gone_cannot_grow(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    ask(client, study, "cancel")
    assert client.delete(f"/v1/jobs/{body['teacher']['job']}").status_code == 204

    answer = client.post(f"/v1/studies/{study['id']}/extend", json={"seeds": [2]})

    assert (answer.status_code, answer.json()["code"]) == (409, "study_cannot_grow")
    assert look(client, study)["seeds"] == [0, 1]


def test_what_failed_is_retried_as_a_new_job(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body | {"seeds": [0]})
    failed = fail(given)
    kept = [finish(given), finish(given)]
    assert look(client, study)["state"] == "failed"

    again = ask(client, study, "retry")

    assert (again["state"], again["jobs"]["succeeded"], again["jobs"]["queued"]) == ("running", 2, 1)
    old, *_, new = jobs_of(client, study)
    assert old["id"] == failed
    assert new["id"] not in kept
    assert new["spec"] == old["spec"]
    finish(given)
    assert look(client, study)["state"] == "succeeded"
    assert ask(client, study, "retry", 409)["code"] == "nothing_to_retry"


def test_a_deleted_job_is_missing_until_it_is_retried(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body | {"seeds": [0]})
    gone = finish(given)
    finish(given), finish(given)
    version = look(client, study)["version"]

    assert client.delete(f"/v1/jobs/{gone}").status_code == 204

    without = look(client, study)
    assert (without["state"], without["jobs"]["succeeded"], without["jobs"]["total"]) == ("cancelled", 2, 3)
    assert without["version"] > version
    assert ask(client, study, "retry")["jobs"]["queued"] == 1


def test_cancel_ends_what_has_not_ended(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    finish(given)
    running = given.claim()

    cancelled = ask(client, study, "cancel", json={"mode": "now"})

    assert (cancelled["jobs"]["cancelled"], cancelled["jobs"]["succeeded"]) == (4, 1)
    assert given.look(running.job_id).requested == "cancel_now"
    with db.transaction(given.engine) as s:
        attempts.ended_as_requested(s, running.job_id, running.attempt)
    assert look(client, study)["state"] == "cancelled"
    assert ask(client, study, "cancel")["state"] == "cancelled"
    assert ask(client, study, "pause", 409)["code"] == "study_finished"
    assert ask(client, study, "resume", 409)["code"] == "study_finished"


def test_a_study_is_deleted_without_its_jobs_or_with_them(client: Any, given: Any, body: dict[str, Any]) -> None:
    kept, gone = submitted(client, body), submitted(client, body | {"name": "another"})
    assert client.delete(f"/v1/studies/{kept['id']}").json()["code"] == "study_running"
    for study in (kept, gone):
        ask(client, study, "cancel")
    ids = [job["id"] for job in jobs_of(client, kept)]
    tag = client.get(f"/v1/jobs/{ids[0]}").headers["ETag"]

    assert client.delete(f"/v1/studies/{kept['id']}").status_code == 204
    assert client.delete(f"/v1/studies/{gone['id']}", params={"jobs": True}).status_code == 204

    assert client.get("/v1/studies").json()["items"] == []
    assert client.get(f"/v1/jobs/{ids[0]}", headers={"If-None-Match": tag}).json()["study"] is None
    left = {job["id"] for job in client.get("/v1/jobs", params={"state": "cancelled"}).json()["items"]}
    assert left == set(ids)


def test_its_data_set_stays_while_it_is_there(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    ask(client, study, "cancel")
    for job in jobs_of(client, study):
        client.delete(f"/v1/jobs/{job['id']}")

    answer = client.delete(f"/v1/datasets/{body['dataset']}")

    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
    assert study["id"] in answer.json()["detail"]


def test_what_later_seeds_need_is_kept_while_the_study_is_there(client: Any, given: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    needed = {digest for job in jobs_of(client, study) for files in given.look(job["id"]).inputs.values()
              for digest in files.values()}  # fmt: skip
    ask(client, study, "cancel")
    for job in [body["teacher"]["job"], *(job["id"] for job in jobs_of(client, study))]:
        assert client.delete(f"/v1/jobs/{job}").status_code == 204

    with db.reading(given.engine) as s:
        assert needed
        assert not needed & {digest for _, digest in blobs.unused(s)}
    assert client.delete(f"/v1/studies/{study['id']}").status_code == 204
    with db.reading(given.engine) as s:
        assert needed & {digest for _, digest in blobs.unused(s)}


def test_lists_are_filtered_by_name_and_state(client: Any, body: dict[str, Any]) -> None:
    one, two = submitted(client, body), submitted(client, body | {"name": "something else"})
    ask(client, two, "pause")

    def found(**filters: Any) -> list[str]:
        return [study["id"] for study in client.get("/v1/studies", params=filters).json()["items"]]

    assert found(state="queued") == found(name="what*") == [one["id"]]
    assert found(state="paused") == [two["id"]]
    assert found(state=["paused", "queued"], limit=1) == [two["id"]]
    assert [job["state"] for job in jobs_of(client, two, state="queued")] == []


def test_a_study_is_renamed(client: Any, body: dict[str, Any]) -> None:
    study = submitted(client, body)
    url, tag = f"/v1/studies/{study['id']}", f'"v{study["version"]}"'

    renamed = client.patch(url, json={"name": "better"}, headers={"If-Match": tag})

    assert (renamed.status_code, renamed.json()["name"]) == (200, "better")
    assert client.patch(url, json={"name": "late"}, headers={"If-Match": tag}).status_code == 412
