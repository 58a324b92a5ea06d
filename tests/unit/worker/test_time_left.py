"""limits.max_runtime_s counts all attempts and their staging, as the spec says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api.core.jobs.attempts import Claim
from fgd.spec import JobSpec
from worker.outcome import EndCause
from worker.stop_policy import StopPolicy
from worker.supervisor import time_left_s

SPEC = JobSpec.model_validate({"name": "x", "teacher": None, "methods": [], "student": {}, "dataset": {"path": "/x"}})
CLAIM = Claim("job_x", "default", 1, SPEC, {}, max_runtime_s=100.0)


def test_staging_and_earlier_attempts_are_counted() -> None:
    assert time_left_s(CLAIM, staged_s=0.0) == 100.0
    assert time_left_s(CLAIM, staged_s=30.0) == 70.0
    assert time_left_s(replace(CLAIM, ran_s=50.0), staged_s=30.0) == 20.0
    assert time_left_s(replace(CLAIM, max_runtime_s=None), staged_s=30.0) is None


class Recorder:
    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.told.append(name)


@pytest.mark.parametrize("staged_s", [100.0, 10_000.0])
def test_a_job_whose_staging_took_all_its_time_is_asked_and_has_its_grace(staged_s: float) -> None:
    now, trainer = [0.0], Recorder()
    left_s = time_left_s(CLAIM, staged_s)
    curb = StopPolicy(trainer, grace_s=5, drain_s=1, stall_s=60, run_s=left_s, clock=lambda: now[0])
    curb.check(None, worker_stops=False)
    assert (trainer.told, curb.ended) == (["terminate"], EndCause.out_of_time)
    now[0] = 4.9
    curb.check(None, worker_stops=False)
    assert trainer.told == ["terminate"]
    now[0] = 5.0
    curb.check(None, worker_stops=False)
    assert trainer.told == ["terminate", "kill"]
