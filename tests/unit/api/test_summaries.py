"""The table of jobs: a line for each, its control, and the gain after the same step."""

from __future__ import annotations

from typing import Any

import pytest

from api.core.jobs import record
from api.core.jobs.controls import twin
from api.core.rows import db
from fgd.events import Evaluated, Started, Stepped

TABLE = "/v1/summaries"


def trained(given: Any, aps: list[float | None], **changes: Any) -> str:
    """A running job with an evaluation after every 10 steps."""
    id = given.running(**changes)
    told: list[Any] = [
        Started(step=0, total_steps=100, epochs=10, device="cpu", threads=1, precision="float32", versions={})
    ]
    for epoch, ap in enumerate(aps, start=1):
        told.append(Evaluated(step=10 * epoch, epoch=epoch, split="val", values={"ap": ap}))
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, told)
    return str(id)


def taught(teacher: str) -> dict[str, Any]:
    return {"teacher": {"job": teacher}, "methods": [{"kind": "fgd"}]}


def lines(client: Any, **query: Any) -> dict[str, Any]:
    return {line["id"]: line for line in client.get(TABLE, params=query).json()["items"]}


def test_a_line_says_what_a_job_does(client: Any, given: Any) -> None:
    data = given.dataset()
    id = trained(given, [12.0], dataset=data, name="control", metadata={"owner": "ada"})
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, [Stepped(step=20, epoch=2, values={"images_per_s": 8.0, "evaluate/share": 0.5})])

    line = lines(client)[id]

    assert (line["name"], line["state"], line["metadata"], line["dataset_name"]) == (
        "control", "running", {"owner": "ada"}, "cells",
    )  # fmt: skip
    assert (line["step"], line["total_steps"], line["epoch"], line["epochs"], line["ap"]) == (20, 100, 2, 10, 12.0)
    assert line["left_s"] == 80 * 8 / 8.0 / 0.5  # 8 images a step, half of the time is evaluations
    assert (line["control"], line["gain"], line["methods"], line["teachers"]) == (None, None, [], [])


def test_the_control_is_the_same_training_without_a_teacher(client: Any, given: Any) -> None:
    data = given.dataset()
    control = trained(given, [10.0], dataset=data)
    trained(given, [50.0], dataset=data, seed=1)
    trained(given, [60.0], dataset=data, schedule={"epochs": 3})
    student = trained(given, [13.5], dataset=data, schedule={"checkpoint_s": 5.0}, **taught(control))

    line = lines(client)[student]

    assert (line["control"], line["control_ap"], line["gain"], line["teachers"]) == (control, 10.0, 3.5, [control])


@pytest.mark.parametrize(
    ("student", "control", "gain"),
    [
        ([5.0, 20.0], [6.0, 15.0, 30.0], 5.0),
        ([5.0, 20.0, 30.0], [6.0], -1.0),
        ([5.0], [7.0], -2.0),
        ([None], [7.0], None),
    ],
)
def test_the_gain_compares_both_after_the_same_step(
    client: Any, given: Any, student: list[float | None], control: list[float | None], gain: float | None
) -> None:
    data = given.dataset()
    plain = trained(given, control, dataset=data)
    id = trained(given, student, dataset=data, **taught(plain))

    assert lines(client)[id]["gain"] == gain
    assert list(lines(client, worse=True)) == ([id] if gain is not None and gain < 0 else [])


def test_a_training_that_repeats_steps_shows_the_ap_it_had_there(client: Any, given: Any) -> None:
    id = trained(given, [10.0, 20.0, 30.0])
    again = Started(step=20, total_steps=100, epochs=10, device="cpu", threads=1, precision="float32", versions={})
    with db.transaction(given.engine) as s:
        record.record(s, id, 1, [again])

    assert lines(client)[id]["ap"] == 20.0


def test_tables_are_sorted_by_ap_and_gain_with_the_unknown_last(client: Any, given: Any) -> None:
    data = given.dataset()
    control = trained(given, [10.0], dataset=data)
    better = trained(given, [14.0], dataset=data, **taught(control))
    worse = trained(given, [9.0], dataset=data, **taught(control))
    none = given.job(dataset=data)

    def order(sort: str) -> list[str]:
        return [line["id"] for line in client.get(TABLE, params={"sort": sort}).json()["items"]]

    assert order("-ap") == [better, control, worse, none]
    assert order("ap") == [worse, control, better, none]
    assert order("-gain") == [better, worse, none, control]
    assert order("gain") == [worse, better, none, control]
    assert order("-created") == [none, worse, better, control] == list(reversed(order("created")))


def test_tables_are_searched_filtered_and_counted(client: Any, given: Any) -> None:
    data = given.dataset()
    first = given.running(dataset=data, name="Größe 100%", metadata={"owner": "Zoë"})
    second = given.job(dataset=data, name="other_one")

    def found(**query: Any) -> tuple[set[str], dict[str, int]]:
        answer = client.get(TABLE, params=query).json()
        assert answer["total"] == len(answer["items"])
        return {line["id"] for line in answer["items"]}, answer["states"]

    assert found(search="0%") == ({first}, {"running": 1})
    assert found(search="ZOë")[0] == {first}
    assert found(search="OTHER_")[0] == {second}
    assert found(search="other%")[0] == set()
    assert found(search=second)[0] == {second}
    assert found(state="queued") == ({second}, {"running": 1, "queued": 1})
    assert found(id=[first])[0] == {first}


def test_pages_of_a_table_are_counted_from_its_beginning(client: Any, given: Any) -> None:
    data = given.dataset()
    ids = [given.job(dataset=data) for _ in range(3)]

    pages = [client.get(TABLE, params={"sort": "created", "limit": 2, "offset": offset}).json() for offset in (0, 2, 4)]

    assert [[line["id"] for line in page["items"]] for page in pages] == [ids[:2], ids[2:], []]
    assert {page["total"] for page in pages} == {3}


def test_a_table_that_has_not_changed_is_not_sent_again(client: Any, given: Any) -> None:
    id = given.job()
    answer = client.get(TABLE, headers={"Accept-Encoding": "gzip"})
    tag = {"If-None-Match": answer.headers["etag"]}

    assert client.get(TABLE, headers=tag).status_code == 304
    client.post(f"/v1/jobs/{id}/cancel")
    assert client.get(TABLE, headers=tag).status_code == 200


@pytest.mark.parametrize(
    "query", [{"sort": "size"}, {"limit": 201}, {"offset": -1}, {"state": "done"}, {"serach": "x"}]
)
def test_a_wrong_parameter_is_named(client: Any, query: dict[str, Any]) -> None:
    answer = client.get(TABLE, params=query)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == next(iter(query))


def test_jobs_that_differ_in_bookkeeping_alone_have_the_same_twin() -> None:
    spec = {"student": {"kind": "fcos", "weights": None}, "dataset": "ds_1", "seed": 0, "schedule": {"epochs": 3}}
    same = {
        **spec,
        "student": {"kind": "fcos"},
        "name": "b",
        "teacher": {"job": "job_1"},
        "methods": [1],
        "resources": {},
    }

    assert twin(spec) == twin({**same, "schedule": {"epochs": 3, "checkpoint_s": 1.0, "ema": None}})
    assert len({twin({**spec, **other}) for other in ({}, {"seed": 1}, {"dataset": "ds_2"}, {"student": {}})}) == 4
