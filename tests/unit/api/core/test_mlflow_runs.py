"""Which jobs are due for MLflow, on both kinds of database."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from api.core import mlflow_runs
from api.core.errors import Fenced
from api.core.jobs import record
from api.core.rows import db
from api.core.rows.tables import MlflowRun
from fgd.events import Phase


def test_a_job_is_noted_once_taken_by_one_and_due_again_when_it_changes(given: Any) -> None:
    id = given.running()
    given.job()  # waits, so it is not due

    def do(verb: Any, *of: Any, **how: Any) -> Any:
        with db.transaction(given.engine) as s:
            return verb(s, *of, **how)

    assert do(mlflow_runs.wanted)
    for _ in range(2):
        do(mlflow_runs.note)
    taken = do(mlflow_runs.take, "trk_a")
    assert (taken.job.id, taken.logged_step, taken.final_step, taken.ended) == (id, None, None, False)
    assert do(mlflow_runs.take, "trk_b") is None
    assert not do(mlflow_runs.wanted)

    given.earlier("mlflow_runs", "taken_until", 3600.0)
    other = do(mlflow_runs.take, "trk_b")
    with pytest.raises(Fenced):
        do(mlflow_runs.keep, taken)
    do(mlflow_runs.keep, other)
    assert not do(mlflow_runs.failed, other, "no route")
    given.later(3600.0)
    again = do(mlflow_runs.take, "trk_b")
    assert do(mlflow_runs.failed, again, "no route")
    assert given.events(id)[-1] == "mlflow_away"

    given.later(3600.0)
    last = do(mlflow_runs.take, "trk_b")
    do(mlflow_runs.logged, last, "run0", None, again_s=None)
    given.later(3600.0)
    assert do(mlflow_runs.take, "trk_b") is None
    do(record.record, id, 1, [Phase(phase="training")])
    assert do(mlflow_runs.wanted)
    assert do(mlflow_runs.take, "trk_b").job.phase == "training"
    with db.reading(given.engine) as s:
        assert s.scalars(select(MlflowRun)).one().run_id == "run0"
