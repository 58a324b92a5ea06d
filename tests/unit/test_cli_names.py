"""What a person types in place of an id: names, in arguments, options and specs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer

from fgd.cli import job_spec
from fgd.cli.connection import client_of
from fgd.cli.names import id_of, named, with_ids
from fgd.cli.plan_lines import strength_lines
from fgd.spec import SubmitJob
from fgd.text import strict_yaml
from tests.unit.http_fake import Answer, Asked, Server, serving

JOBS = {"teacher": ["job_" + "1" * 32], "twice": ["job_" + "2" * 32, "job_" + "3" * 32]}
DATASETS = {"cells": ["ds_" + "4" * 32]}


def listing(known: dict[str, list[str]], **more: Any) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        found = known.get(asked.query["name"], [])
        rows = [{"id": id, "name": asked.query["name"], "state": "succeeded", **more} for id in found]
        return Answer(body={"items": rows, "next": None})

    return answer


@pytest.fixture
def server() -> Any:
    with serving() as server:
        job: dict[str, Any] = {
            "phase": None, "requested": None, "spec": {}, "metadata": {}, "priority": 0,
            "created_at": "2026-01-01T00:00Z",
            "progress": None, "failure": None, "waiting_reason": None,
        }  # fmt: skip
        server.routes[("GET", "/v1/jobs")] = listing(JOBS, **job)
        server.routes[("GET", "/v1/datasets")] = listing(DATASETS)
        server.routes[("GET", "/v1/models")] = listing({})
        yield server


def test_a_spec_may_name_its_data_set_and_its_teacher(server: Server) -> None:
    spec = {
        "name": "teacher", "dataset": "cells", "teacher": {"job": "teacher"}, "metadata": {"job": "teacher"},
        "student": {"kind": "fcos", "inherit": {"job": "teacher"}}, "methods": [{"kind": "fgd"}],
    }  # fmt: skip
    with client_of(server.url) as client:
        sent = with_ids(client, spec)
    assert sent["dataset"] == DATASETS["cells"][0]
    assert sent["teacher"] == sent["student"]["inherit"] == {"job": JOBS["teacher"][0]}
    assert (sent["name"], sent["metadata"], sent["methods"]) == ("teacher", {"job": "teacher"}, [{"kind": "fgd"}])


def test_of_several_with_a_name_a_spec_takes_the_only_one_that_can_be_used(server: Server) -> None:
    rows = [{"id": f"mdl_{n}", "name": "net", "state": state} for n, state in enumerate(["rejected", "ready"])]
    server.routes[("GET", "/v1/models")] = Answer(body={"items": rows, "next": None})
    with client_of(server.url) as client:
        assert with_ids(client, {"teacher": {"model": "net"}}) == {"teacher": {"model": "mdl_1"}}
        with pytest.raises(typer.Exit):
            id_of(client, "net", "model")


def test_a_spec_of_ids_asks_for_nothing(server: Server) -> None:
    spec = {"dataset": DATASETS["cells"][0], "teacher": {"job": JOBS["teacher"][0]}, "student": {"weights": "none"}}
    with client_of(server.url) as client:
        assert with_ids(client, spec) == spec
    assert server.asked == []


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("nothing", "no job or model has the id or the name 'nothing'; fgd job list and fgd model list show what"),
        ("twice", JOBS["twice"][1]),
        (" ", "no job or model"),
        (DATASETS["cells"][0], "is the id of a data set; a job or model belongs here"),
    ],
)
def test_a_name_that_is_not_one_things_is_refused(
    server: Server, typed: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as refused:
        named("job", "model")(_context(server.url), typed)
    assert refused.value.exit_code == 2
    assert says in capsys.readouterr().err


def test_an_argument_may_be_several_names(server: Server) -> None:
    found = named("job")(_context(server.url), ["teacher", JOBS["twice"][0]])
    assert found == [JOBS["teacher"][0], JOBS["twice"][0]]


def _context(url: str) -> typer.Context:
    from typer.core import TyperCommand

    context = typer.Context(TyperCommand("show"))
    context.params["url"] = url
    return context


# --- a spec to begin with ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cells", "no: 1 #x", "yes", "ü"])
def test_a_spec_to_begin_with_is_one_that_the_service_takes(name: str) -> None:
    size = (120, 160)
    dataset, teacher = DATASETS["cells"][0], JOBS["teacher"][0]
    for text in (
        job_spec._of_teacher(name, dataset, size),
        job_spec._of_student(name, dataset, teacher, ("fcos", *size)),
    ):
        spec = SubmitJob.model_validate_json(json.dumps(strict_yaml.parse(text)))
        assert spec.name.startswith(name)
        assert (spec.schedule.min_size, spec.schedule.max_size) == size


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ([{"kind": "fgd"}], ["fgd: measured after the warm-up, so that its gradient is 30 times"]),
        ([{"kind": "fgd", "rho": 10}, {"kind": "pkd", "weight": 2}], ["is 10 times", "pkd: its weights, as they are"]),
        ([{"kind": "crosskd"}], ["crosskd: its weights, as they are"]),
        ([{"kind": "of_a_plug_in"}], []),
        ([], []),
    ],
)
def test_a_plan_says_how_strong_each_method_will_be(methods: list[dict[str, Any]], said: list[str]) -> None:
    spec = {
        "name": "a", "dataset": DATASETS["cells"][0], "student": {"kind": "fcos"}, "methods": methods,
        "teacher": {"job": JOBS["teacher"][0]} if methods else None,
    }  # fmt: skip
    lines = list(strength_lines(spec))
    assert len(lines) == len(said)
    assert all(words in line for words, line in zip(said, lines, strict=True))
