"""What a spec refers to must be there, ready and fitting; all that is wrong is told at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from api.core.jobs import attempts
from api.core.lifecycle import FailureCode
from api.core.rows import db
from api.core.rows.ids import new_id

FGD = [{"kind": "fgd"}]


def safetensors(header: Any, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


ONE = {"bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
WEIGHTS = safetensors(ONE, bytes(8))


def refused(client: Any, body: dict[str, Any], pointer: str, code: str) -> str:
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]
    return str(answer.json()["errors"][0]["detail"])


def folder(given: Any, classes: tuple[str, ...] = ("cat", "dog"), **recipe: Any) -> Path:
    """A teacher's folder below the data roots."""
    made: Path = given.roots / "teacher"
    made.mkdir()
    (made / "student.safetensors").write_bytes(WEIGHTS)
    sizes = {"min_size": 64, "max_size": 64}
    whole = {"format": "fgd-recipe/1", "detector": {"kind": "fcos"}, "classes": classes, **sizes, **recipe}
    (made / "recipe.json").write_text(json.dumps(whole))
    return made


def test_a_data_set_that_is_being_imported_is_a_retryable_409(client: Any, given: Any) -> None:
    answer = client.post("/v1/jobs", json=given.body(given.dataset("verifying")))

    assert answer.status_code == 409
    assert (answer.json()["code"], answer.json()["retryable"]) == ("dataset_not_ready", True)
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/dataset"]
    assert "retry-after" in answer.headers


def test_a_rejected_data_set_is_refused_with_its_reason(client: Any, given: Any) -> None:
    detail = refused(client, given.body(given.dataset("rejected")), "/dataset", "dataset_rejected")

    assert "no boxes at all" in detail


def test_an_unregistered_folder_is_refused_with_the_way_out(client: Any, given: Any) -> None:
    body = given.body() | {"dataset": {"path": str(given.roots)}}

    assert "POST /v1/datasets" in refused(client, body, "/dataset", "dataset_not_registered")


def test_an_unknown_teacher_and_an_unknown_data_set_are_both_told(client: Any, given: Any) -> None:
    body = given.body(teacher={"job": new_id("job")}, methods=FGD) | {"dataset": new_id("ds")}

    answer = client.post("/v1/jobs", json=body)

    assert [error["pointer"] for error in answer.json()["errors"]] == ["/dataset", "/teacher/job"]


def test_a_teacher_that_still_trains_is_a_retryable_409(client: Any, given: Any) -> None:
    answer = client.post("/v1/jobs", json=given.body(teacher={"job": given.running()}, methods=FGD))

    assert answer.status_code == 409
    assert (answer.json()["code"], answer.json()["retryable"]) == ("teacher_not_ready", True)
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/teacher/job"]


def test_a_teacher_that_failed_is_refused(client: Any, given: Any) -> None:
    id = given.running()
    with db.transaction(given.engine) as s:
        attempts.fail(s, id, 1, FailureCode.loss_non_finite, "nan")

    refused(client, given.body(teacher={"job": id}, methods=FGD), "/teacher/job", "teacher_has_no_weights")


def test_a_fault_is_told_rather_than_a_wait(client: Any, given: Any) -> None:
    body = given.body(given.dataset("verifying"), teacher={"job": new_id("job")}, methods=FGD)

    refused(client, body, "/teacher/job", "teacher_not_found")


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (("cat", "dog", "cow"), None),
        (("cow", "Dog"), "knows 1 of the data set's 2 classes by name"),
        (("cow",), "knows none of the data set's classes by name"),
    ],
)
def test_a_teacher_of_other_classes_teaches_by_its_features_and_the_plan_says_what_it_knows(
    client: Any, given: Any, theirs: tuple[str, ...], words: str | None
) -> None:
    body = given.body(teacher={"job": given.succeeded(theirs)}, methods=FGD)

    plan = client.post("/v1/plans", json=body).json()

    said = [each["message"] for each in plan["outline"]["warnings"] if each["pointer"] == "/teacher"]
    assert [words in each for each in said] == ([True] if words else []) if words else said == []
    assert client.post("/v1/jobs", json=body).status_code == 201


def test_a_teacher_that_names_the_classes_in_another_order_may_teach(client: Any, given: Any) -> None:
    body = given.body(teacher={"job": given.succeeded(("dog", "cat"))}, methods=FGD)

    assert client.post("/v1/jobs", json=body).status_code == 201


@pytest.mark.parametrize(("theirs", "words"), [(("cow",), "lacks"), (("dog", "cat"), "order differs")])
def test_inherited_weights_of_other_or_reordered_classes_are_refused(
    client: Any, given: Any, theirs: tuple[str, ...], words: str
) -> None:
    body = given.body(student={"inherit": {"job": given.succeeded(theirs)}})

    assert words in refused(client, body, "/student/inherit", "classes_differ")


def test_a_batch_larger_than_the_set_is_refused(client: Any, given: Any) -> None:
    dataset = given.dataset(images=7)

    refused(client, given.body(dataset), "/schedule/batch_size", "batch_too_large")
    assert client.post("/v1/jobs", json=given.body(dataset, schedule={"batch_size": 7})).status_code == 201


def test_unlabelled_images_need_a_split_of_them_and_a_teacher_that_knows_a_class(client: Any, given: Any) -> None:
    bare = given.dataset(unlabelled=True)
    knowing, foreign, knows_one = (given.succeeded(classes) for classes in (("cat", "dog"), ("cow",), ("cat",)))
    body = given.body(bare, teacher={"job": knowing}, methods=FGD, unlabelled={"pseudo_labels": True})

    assert client.post("/v1/jobs", json=body).status_code == 201
    outline = client.post("/v1/plans", json=body).json()["outline"]
    assert (outline["images"]["unlabelled"], outline["unlabelled_per_step"]) == (40, 8)
    without = given.body(teacher=body["teacher"], methods=FGD, unlabelled={})
    assert "no unlabelled split" in refused(client, without, "/unlabelled", "unlabelled_unusable")
    strange = body | {"teacher": {"job": foreign}}
    assert "knows none" in refused(client, strange, "/unlabelled", "unlabelled_unusable")
    partly = client.post("/v1/plans", json=body | {"teacher": {"job": knows_one}}).json()
    warnings = {each["pointer"]: each["message"] for each in partly["outline"]["warnings"]}
    assert "does not know dog" in warnings["/unlabelled/pseudo_labels"]
    refused(client, given.body(bare, unlabelled={}), "/unlabelled", "value_error")


# --- folders --------------------------------------------------------------------------------------------------


def test_a_teacher_s_folder_is_packed_at_submit_and_later_changes_have_no_effect(client: Any, given: Any) -> None:
    path = folder(given)
    body = given.body(teacher={"path": str(path)}, methods=FGD, student={"inherit": {"path": str(path)}})

    answer = client.post("/v1/jobs", json=body)
    (path / "student.safetensors").write_bytes(b"other weights")

    assert answer.status_code == 201, answer.text
    files = given.look(answer.json()["id"]).inputs["teacher"]
    assert given.store.path(files["student.safetensors"], verify=True).read_bytes() == WEIGHTS


def test_a_refused_request_leaves_nothing_in_the_store(client: Any, given: Any) -> None:
    teacher, other = str(folder(given)), {"job": given.succeeded(("cow",))}
    body = given.body(teacher={"path": teacher}, methods=FGD, student={"inherit": other})
    before = sorted(given.store.root.rglob("*"))

    refused(client, body, "/student/inherit", "classes_differ")

    assert sorted(given.store.root.rglob("*")) == before


def test_a_folder_outside_the_data_roots_is_refused_whether_it_exists_or_not(client: Any, given: Any) -> None:
    for path in ("/etc", "/no/such", str(given.roots / ".." / ".."), str(given.roots.parent)):
        body = given.body(teacher={"path": path}, methods=FGD)
        assert "FGD_DATA_ROOTS" in refused(client, body, "/teacher/path", "path_not_allowed")


def test_links_that_lead_out_of_the_data_roots_are_refused(client: Any, given: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (given.roots / "link").symlink_to("/etc")
    (given.roots / "loop").symlink_to(given.roots / "loop")
    path = folder(given)
    (path / "student.safetensors").unlink()
    (path / "student.safetensors").symlink_to(secret)

    for name, code in (("link", "path_not_allowed"), ("loop", "path_not_found"), ("teacher", "weights_incomplete")):
        body = given.body(teacher={"path": str(given.roots / name)}, methods=FGD)
        refused(client, body, "/teacher/path", code)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("[]", "an object is expected"),
        ("{", "line 1, column 2"),
        ('{"format": "other/1"}', "/format: "),
        (json.dumps({"format": "fgd-recipe/1", "detector": {"kind": "fcos"}, "classes": ["cat", "dog"]}), "/min_size"),
        ("x" * (2 << 20), "larger than"),
    ],
)
def test_an_unreadable_recipe_is_refused_by_the_users_name_for_it(
    client: Any, given: Any, text: str, says: str
) -> None:
    path = folder(given)
    (path / "recipe.json").write_text(text)

    for body, pointer in (
        (given.body(teacher={"path": str(path)}, methods=FGD), "/teacher/path"),
        (given.body(student={"inherit": {"path": str(path)}}), "/student/inherit/path"),
    ):
        detail = refused(client, body, pointer, "recipe_unreadable")
        assert detail.startswith(f"{path}/recipe.json is not a recipe of this service: ")
        assert says in detail


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"weights", "no file of weights"),
        (b"PK\x03\x04" + bytes(40), "not a safetensors file"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "claims 1152921504606846976 bytes"),
        (safetensors(b"{nonsense"), "cannot be read"),
        (safetensors({}), "contains no tensors"),
        (safetensors({"bias": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "has dtype"),
        (safetensors({"bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)), "has 8 bytes"),
        (WEIGHTS[:-1], "cut off"),
        (WEIGHTS + b"x", "cut off or has a tail"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_by_the_users_name_for_them(
    client: Any, given: Any, content: bytes, says: str
) -> None:
    path = folder(given)
    (path / "student.safetensors").write_bytes(content)
    body = given.body(student={"inherit": {"path": str(path)}})

    detail = refused(client, body, "/student/inherit/path", "weights_unreadable")

    assert detail.startswith(f"{path}/student.safetensors: ")
    assert says in detail


def test_a_folder_without_weights_is_refused(client: Any, given: Any) -> None:
    (given.roots / "empty").mkdir()
    body = given.body(teacher={"path": str(given.roots / "empty")}, methods=FGD)

    assert "student.safetensors" in refused(client, body, "/teacher/path", "weights_incomplete")


def test_a_fifo_in_place_of_weights_does_not_hang_the_server(client: Any, given: Any) -> None:
    path = folder(given)
    (path / "student.safetensors").unlink()
    os.mkfifo(path / "student.safetensors")

    refused(client, given.body(teacher={"path": str(path)}, methods=FGD), "/teacher/path", "weights_incomplete")


@pytest.mark.parametrize(
    "student",
    [
        {"kind": "retinanet", "backbone": "mobilenet_v3_small", "fpn_channels": 24},
        {"kind": "retinanet", "version": 2, "backbone": "resnet50", "weights": "COCO_V1"},
        {"kind": "faster_rcnn", "backbone": "resnext50_32x4d", "weights": "IMAGENET1K_V1"},
    ],
)
def test_a_student_of_another_family_than_the_teacher_is_taken_and_its_norm_told(
    client: Any, given: Any, student: dict[str, Any]
) -> None:
    body = given.body(given.dataset(), teacher={"path": str(folder(given))}, methods=FGD, student=student)
    answer = client.post("/v1/jobs", json=body)

    assert answer.status_code == 201, answer.text
    taken = answer.json()["spec"]["student"]
    assert taken["norm"] == ("batch" if student.get("weights", "none") == "none" else "frozen")
    assert student.items() <= taken.items()


def test_heads_of_another_family_are_not_inherited(client: Any, given: Any) -> None:
    student = {"kind": "retinanet", "inherit": {"path": str(folder(given))}}
    detail = refused(client, given.body(given.dataset(), student=student), "/student/inherit", "impossible_inheritance")

    assert "kind fcos, version 1; this one is retinanet, version 1" in detail
