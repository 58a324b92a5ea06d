"""What a user gets who sends something wrong: the status, and a pointer to the place in the body that was sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from api.http.bodies import MAX_BODY_BYTES
from fgd.text import pointers

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # which is asked nothing

JSON = {"Content-Type": "application/json"}
ANY_JOB = "job_" + "0" * 32
ANY_DATASET = "ds_" + "0" * 32


def body(**changes: Any) -> dict[str, Any]:
    plain = {"name": "a job", "teacher": None, "student": {}, "dataset": ANY_DATASET, "methods": []}
    return {**plain, **changes}


def faults(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return [(error["pointer"], error["code"]) for error in answer.json()["errors"]]


FGD = {"kind": "fgd"}
TEACHER = {"job": ANY_JOB}
SEED = ("/seed", "greater_than_equal")
NOT_CACHED = ("/resources/teacher_cache_gib", "cannot_be_cached")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nmae": "typo"}, [("/nmae", "extra_forbidden")]),
        ({"name": ""}, [("/name", "string_too_short")]),
        ({"name": "two\nlines"}, [("/name", "string_pattern_mismatch")]),
        ({"seed": -1}, [SEED]),
        ({"schedule": {"epochs": 0}}, [("/schedule/epochs", "greater_than_equal")]),
        ({"schedule": {"min_size": 400}}, [("/schedule", "value_error")]),
        ({"schedule": {"optimizer": {"kind": "adamw", "lr": 0}}}, [("/schedule/optimizer/lr", "greater_than")]),
        ({"schedule": {"optimizer": {"kind": "adam"}}}, [("/schedule/optimizer/kind", "union_tag_invalid")]),
        ({"schedule": {"optimizer": {"lr": 1}}}, [("/schedule/optimizer/kind", "union_tag_not_found")]),
        ({"schedule": 12}, [("/schedule", "model_attributes_type")]),
        ({"student": {"backbone": "vgg"}}, [("/student/backbone", "literal_error")]),
        ({"student": {"fpn_channels": 100}}, [("/student/fpn_channels", "multiple_of")]),
        ({"student": {"norm": "frozen"}}, [("/student", "value_error")]),
        ({"student": {"inherit": {"job": "x"}}}, [("/student/inherit/job", "string_pattern_mismatch")]),
        ({"teacher": {"job": "x"}, "methods": [FGD]}, [("/teacher/job", "string_pattern_mismatch")]),
        ({"teacher": {"job": ANY_JOB, "strict": 1}, "methods": [FGD]}, [("/teacher/strict", "extra_forbidden")]),
        ({"teacher": {"path": ""}, "methods": [FGD]}, [("/teacher/path", "string_too_short")]),
        ({"teacher": 5, "methods": [FGD]}, [("/teacher", "model_attributes_type")]),
        ({"dataset": "cells"}, [("/dataset", "string_pattern_mismatch")]),
        ({"dataset": {"path": 3}}, [("/dataset/path", "string_type")]),
        ({"dataset": {"paht": "/x"}}, [("/dataset/path", "missing"), ("/dataset/paht", "extra_forbidden")]),
        ({"teacher": TEACHER, "methods": [{"kind": "fgd", "alpha": "x"}]}, [("/methods/0/alpha", "float_type")]),
        ({"teacher": TEACHER, "methods": [{"kind": "fgd", "fgd": 1}]}, [("/methods/0/fgd", "extra_forbidden")]),
        ({"teacher": TEACHER, "methods": [FGD, {"kind": "mimc"}]}, [("/methods/1/kind", "union_tag_invalid")]),
        ({"teacher": TEACHER, "methods": [{**FGD, "a/b~c": 1}]}, [("/methods/0/a~1b~0c", "extra_forbidden")]),
        ({"teacher": TEACHER, "methods": [{**FGD, "lambda": -1}]}, [("/methods/0/lambda", "greater_than_equal")]),
        ({"teacher": TEACHER, "methods": [FGD, FGD]}, [("/methods", "value_error")]),
        ({"teacher": TEACHER}, [("/methods", "value_error")]),
        ({"methods": [FGD]}, [("/methods", "value_error")]),
        ({"teacher": TEACHER, "methods": [{"kind": "mimic", "weight": 0}]}, [("/methods", "value_error")]),
        ({"teacher": TEACHER, "methods": [{**FGD, "lambda_": 1}]}, [("/methods/0/lambda_", "extra_forbidden")]),
        ({"schedule": {"scales": [240, 320]}, "resources": {"teacher_cache_gib": 1}}, [NOT_CACHED]),
        ({"schedule": {"augment": {"crop": {}}}, "resources": {"teacher_cache_gib": 1}}, [NOT_CACHED]),
        ({"resources": {"teacher_cache_gib": 0}}, [("/resources/teacher_cache_gib", "greater_than")]),
        ({"resources": {"compile": True}}, [("/resources/compile", "retired_field")]),
        ({"resources": {"compile": False}, "seed": -1}, [("/resources/compile", "retired_field"), SEED]),
        ({"seed": True}, [("/seed", "int_type")]),
        ({"schedule": {"epochs": "3"}}, [("/schedule/epochs", "int_type")]),
        ({"schedule": {"optimizer": {"kind": "sgd", "lr": True}}}, [("/schedule/optimizer/lr", "float_type")]),
        ({"limits": {"max_wait_s": 1e14}}, [("/limits/max_wait_s", "less_than_equal")]),
        ({"limits": {"max_runtime_s": 1e300}}, [("/limits/max_runtime_s", "less_than_equal")]),
        ({"metadata": {"k": "a\x00b"}}, [("/metadata/k", "string_pattern_mismatch")]),
        ({"name": "a\x9bb"}, [("/name", "string_pattern_mismatch")]),
        ({"name": "a\u202eb"}, [("/name", "string_pattern_mismatch")]),
        ({"metadata": {"k": 1}}, [("/metadata/k", "string_type")]),
        ({"metadata": {"bad key": "v"}}, [("/metadata/bad key", "string_pattern_mismatch")]),
        ({"metadata": {f"k{n}": "" for n in range(17)}}, [("/metadata", "too_long")]),
        ({"priority": 101}, [("/priority", "less_than_equal")]),
        ({"limits": {"max_retries": 1.5}}, [("/limits/max_retries", "int_type")]),
        ({"seed": "x", "priority": "y"}, [("/seed", "int_type"), ("/priority", "int_type")]),
    ],
)
def test_a_fault_is_pointed_at_in_the_body_that_was_sent(
    client: Any, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert sorted(faults(client.post("/v1/jobs", json=body(**changes)))) == sorted(expected)


def test_a_field_that_was_removed_says_so_and_what_to_do(client: Any) -> None:
    (fault,) = client.post("/v1/jobs", json=body(resources={"compile": True})).json()["errors"]

    assert fault["detail"].startswith("the field 'compile' was removed: leave it out")


def test_a_missing_field_is_pointed_at(client: Any) -> None:
    incomplete = body()
    del incomplete["dataset"]

    assert faults(client.post("/v1/jobs", json=incomplete)) == [("/dataset", "missing")]


@pytest.mark.parametrize("value", [[], "text", 3, None, True])
def test_a_body_that_is_no_object_is_refused(client: Any, value: Any) -> None:
    answer = client.post("/v1/jobs", content=json.dumps(value), headers=JSON)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == ""


def test_a_thousand_faults_are_told_in_part(client: Any) -> None:
    answer = client.post("/v1/jobs", json=body(**{f"unknown{n}": 1 for n in range(1000)}))

    assert len(faults(answer)) == 100
    assert len(answer.content) < 50_000


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"{", "line 1"),
        (b"{'name': 1}", "line 1"),
        (b'{"name": "a", "name": "b"}', "'name' stands twice"),
        (b'{"student": {"kind": 1, "kind": 2}}', "'kind' stands twice"),
        (b'{"seed": NaN}', "NaN"),
        (b'{"seed": -Infinity}', "Infinity"),
        (b'{"name": "\xff"}', "UTF-8"),
        (b'{"name": "\\ud800"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        ('{"name": "a"}'.encode("utf-16"), "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "digits"),
        (b'{"name": "a"} trailing', "line 1"),
    ],
)
def test_what_is_not_one_clean_json_value_is_a_400(client: Any, content: bytes, word: str) -> None:
    answer = client.post("/v1/jobs", content=content, headers=JSON)

    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "malformed_json"
    assert word in answer.json()["detail"]


def test_a_number_too_large_for_a_float_is_not_taken_as_infinite(client: Any) -> None:
    text = json.dumps(body(schedule={"clip_norm": 0})).replace(": 0}", ": 1e999}")

    answer = client.post("/v1/jobs", content=text, headers=JSON)

    assert faults(answer) == [("/schedule/clip_norm", "finite_number")]


def test_brackets_inside_strings_do_not_count_as_depth(client: Any) -> None:
    answer = client.post("/v1/jobs", json=body(name='["{' * 30))

    assert answer.status_code == 422
    assert answer.json()["code"] == "dataset_not_found"


@pytest.mark.parametrize("type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "", "json"])
def test_another_content_type_is_a_415(client: Any, type: str) -> None:
    answer = client.post("/v1/jobs", content=json.dumps(body()), headers={"Content-Type": type})

    assert answer.status_code == 415
    assert answer.json()["code"] == "not_json_type"


def test_a_charset_beside_the_content_type_is_fine(client: Any) -> None:
    answer = client.post(
        "/v1/jobs", content=json.dumps(body()), headers={"Content-Type": "application/json; charset=utf-8"}
    )

    assert answer.status_code == 422
    assert answer.json()["code"] == "dataset_not_found"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets", f"/v1/jobs/{ANY_JOB}/cancel"])
def test_a_large_body_is_a_413_declared_or_not(client: Any, path: str) -> None:
    large = b" " * (MAX_BODY_BYTES + 1)

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (MAX_BODY_BYTES // 32)

    for content in (large, chunks()):
        answer = client.post(path, content=content, headers=JSON)
        assert answer.status_code == 413, answer.text
        assert answer.json()["code"] == "body_too_large"


@pytest.mark.parametrize("wrong", [{"methods": [1] * 9000}, {f"key {n}": 1 for n in range(9000)}], ids=["list", "keys"])
def test_of_thousands_of_faults_the_first_hundred_are_reported(
    client: Any, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    locate = pointers.locate
    monkeypatch.setattr(pointers, "locate", lambda *args: looked_at.append(args) or locate(*args))

    found = faults(client.post("/v1/jobs", json=body(**wrong)))

    assert len(found) == pointers.MAX_FAULTS
    assert len(looked_at) == pointers.MAX_LOOKED_AT


def test_more_values_than_a_job_can_have_are_a_400(client: Any) -> None:
    answer = client.post("/v1/jobs", json=body(methods=[[]] * 100_000))

    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")
    assert "more than" in answer.json()["detail"]


def test_a_body_of_just_a_megabyte_is_read_quickly(client: Any) -> None:
    text = json.dumps(body(name="x"))
    text += " " * (MAX_BODY_BYTES - len(text))
    start = time.process_time()

    answer = client.post("/v1/jobs", content=text, headers=JSON)

    assert answer.json()["code"] == "dataset_not_found"
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("changes", "pointer"), [({"path": ""}, "/path"), ({"fromat": "coco"}, "/fromat"), ({"verify": "no"}, "/verify")]
)
def test_a_data_set_s_faults_are_pointed_at_too(client: Any, changes: dict[str, Any], pointer: str) -> None:
    answer = client.post("/v1/datasets", json={"name": "d", "path": "/x", **changes})

    assert [found[0] for found in faults(answer)] == [pointer]
