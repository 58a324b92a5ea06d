"""Jobs with several teachers, and teachers of some of the classes, through HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import JobParent

BOTH = [{"kind": "fgd"}, {"kind": "fgd", "teacher": "cells"}]


def errors(client: Any, body: dict[str, Any]) -> list[tuple[str, str]]:
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    return [(error["pointer"], error["code"]) for error in answer.json()["errors"]]


def test_a_job_names_the_blobs_of_each_teacher(client: Any, given: Any) -> None:
    first, second = given.succeeded(("cat",)), given.succeeded(("dog", "cow"))
    body = given.body(teacher={"job": first}, teachers={"cells": {"job": second}}, methods=BOTH)

    job = client.post("/v1/jobs", json=body).json()

    assert job["spec"]["teachers"] == {"cells": {"job": second, "allow_unfit": False}}
    assert [method.get("teacher") for method in job["spec"]["methods"]] == [None, "cells"]
    row = given.look(job["id"])
    assert set(row.inputs) == {"dataset", "teacher", "teachers/cells"}
    assert row.inputs["teacher"] != row.inputs["teachers/cells"]
    with db.reading(given.engine) as s:
        parents = {each.role: each.parent_id for each in s.query(JobParent).filter_by(job_id=job["id"])}
    assert parents == {"teacher": first, "teachers/cells": second}


def test_a_long_name_and_a_teacher_alone_under_a_name_do_too(client: Any, given: Any) -> None:
    name = "n" * 32
    body = given.body(teachers={name: {"job": given.succeeded()}}, methods=[{"kind": "mimic", "teacher": name}])

    assert client.post("/v1/jobs", json=body).status_code == 201


def test_what_is_wrong_with_each_is_told_at_once(client: Any, given: Any) -> None:
    teachers = {"a": {"job": new_id("job")}, "b": {"model": new_id("mdl")}}
    body = given.body(teachers=teachers, methods=[{"kind": "fgd", "teacher": name} for name in teachers])

    assert errors(client, body) == [
        ("/teachers/a/job", "teacher_not_found"),
        ("/teachers/b/model", "teacher_not_found"),
    ]


def test_a_teacher_that_shares_no_class_or_serves_no_method_is_refused_at_its_place(client: Any, given: Any) -> None:
    foreign, cat = given.succeeded(("cow",)), given.succeeded(("cat",), {"kind": "faster_rcnn"})
    body = given.body(teacher={"job": foreign}, teachers={"cells": {"job": cat}}, methods=BOTH)
    assert errors(client, body) == [("/teacher", "classes_differ")]

    alone = given.body(teacher={"job": foreign}, methods=[{"kind": "crosskd"}])
    assert errors(client, alone) == [("/teacher", "classes_differ")]

    unlike = [{"kind": "fgd"}, {"kind": "crosskd", "teacher": "cells"}]
    body = given.body(teacher={"job": given.succeeded(("dog",))}, teachers={"cells": {"job": cat}}, methods=unlike)
    assert errors(client, body) == [("/methods/1", "impossible_pair")]


@pytest.mark.parametrize(
    ("teachers", "methods", "pointer", "code"),
    [
        ({}, BOTH, "/methods/1/teacher", "teacher_unknown"),
        ({"cells": None}, [{"kind": "fgd"}], "/teachers/cells", "teacher_unused"),
    ],
)
def test_names_must_fit_together(client: Any, given: Any, teachers: Any, methods: Any, pointer: str, code: str) -> None:
    job = {"job": given.succeeded()}
    body = given.body(teacher=job, teachers=dict.fromkeys(teachers, job), methods=methods)

    assert errors(client, body) == [(pointer, code)]


def test_a_method_that_compares_classes_takes_a_teacher_of_some(client: Any, given: Any) -> None:
    body = given.body(teacher={"job": given.succeeded(("cow", "Dog"))}, methods=[{"kind": "crosskd"}])

    assert client.post("/v1/jobs", json=body).status_code == 201
    (teacher,) = client.post("/v1/plans", json=body).json()["outline"]["teachers"]
    assert (teacher["classes"], teacher["head_for"]) == (["dog"], ["crosskd"])
