"""docs/jobs.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from api.core.lifecycle import FAILURES, MOVES, FailureCode, State
from fgd.spec import JobSpec, Limits, SubmitJob

PAGE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()


def test_the_table_of_failures_is_the_code_s() -> None:
    rows = [
        f"| `{code}` | {failure.when} | {'yes' if failure.retried else 'no'} | {failure.advice} |"
        for code, failure in FAILURES.items()
    ]
    table = PAGE.partition("| code | when | retried | advice |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == rows
    assert set(FAILURES) == set(FailureCode)


def test_the_moves_are_the_code_s() -> None:
    for state, after in MOVES.items():
        if state.terminal:
            assert not after
            continue
        row = re.search(rf"^\| `{state}` \|.*\|(.*)\|$", PAGE, re.MULTILINE)
        assert row, state
        assert {State(name) for name in re.findall(r"`(\w+)`", row[1])} == after


def fields() -> set[str]:
    """Paths of the request's fields, as the advice names them."""
    schema = SubmitJob.model_json_schema()
    found = set(schema["properties"])
    for name in ("schedule", "resources", "limits", "teacher"):
        model = {"schedule": "Schedule", "resources": "Resources", "limits": "Limits", "teacher": "TeacherFromJob"}
        found |= {f"{name}.{field}" for field in schema["$defs"][model[name]]["properties"]}
    return found | {"schedule.optimizer.lr"}


def test_advice_names_only_fields_that_exist() -> None:
    assert JobSpec.model_fields
    assert Limits.model_fields
    known = fields()
    for code, failure in FAILURES.items():
        named = set(re.findall(r"`([a-z_.]+)`", failure.advice))
        assert named - {"data.limit"} <= known, code
