"""A trainer that cannot read its checkpoint: only one that ended by itself is followed by another in the attempt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.core.jobs.attempts import Claim, SavedCheckpoint
from api.core.lifecycle import FailureCode, advice
from fgd.events import Failed
from worker import supervisor
from worker.outcome import EndCause, Failure, TrainerEnd, verdict
from worker.running_attempt import RunningAttempt

UNREADABLE = Failed(code="user_error", message="not readable", data={"checkpoint": "unreadable"})


@pytest.mark.parametrize(
    ("ended", "starts"),
    [(EndCause.by_itself, 3), (EndCause.survived_kill, 1), (EndCause.paused, 1), (EndCause.worker_stops, 1)],
)
def test_no_second_trainer_beside_one_that_lives_or_after_one_that_was_told_to_end(
    ended: EndCause, starts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    end, begun = fallen_back(monkeypatch, tmp_path, lambda _n: TrainerEnd(1, ended, UNREADABLE))

    assert (end.ended, begun) == (ended, starts)


def of(why: str) -> Failed:
    """What the trainer says of a checkpoint."""
    return Failed(code="user_error", message="checkpoint.pt: no", data={"checkpoint": "unreadable", "why": why})


def test_checkpoints_that_are_all_of_another_spec_fail_the_job_and_it_does_not_begin_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    end, begun = fallen_back(monkeypatch, tmp_path, lambda _n: TrainerEnd(1, last=of("another_spec")))
    came = verdict(end)

    assert begun == 2
    assert isinstance(came, Failure)
    assert came.code == FailureCode.user_error
    assert came.data == {"checkpoint": "another_spec"}
    assert "belong to another spec (2 tried)" in came.message
    assert "Promote one" in advice(came.code, came.data)


def test_where_one_of_them_is_torn_it_begins_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, begun = fallen_back(
        monkeypatch, tmp_path, lambda n: TrainerEnd(1, last=UNREADABLE if n == 1 else of("another_spec"))
    )
    assert begun == 3


def fallen_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: Callable[[int], TrainerEnd]
) -> tuple[TrainerEnd, int]:
    """How an attempt with two checkpoints ends, and how many trainers it took. ends: of the n-th trainer."""
    spec: Any = None
    saved = tuple(SavedCheckpoint(step, f"jobs/j/a1/ckpt-{step}.pt", "a" * 64, 1) for step in (20, 10))
    claim, begun = Claim("job_1", "prj_1", 2, spec, {}, saved), []

    def train(*arguments: Any) -> TrainerEnd:
        begun.append(arguments[-1])
        return ends(len(begun))

    def newest_whole(attempt: RunningAttempt, folder: Path, _writer: Any) -> Any:
        older = attempt.claim.checkpoints
        return (folder / "checkpoint.pt", older[1:]) if older else (None, ())

    class Writer:
        last = None

        def __init__(self, *_: Any) -> None: ...
        def add(self, *_: Any) -> None: ...
        def pass_over(self, key: str, *, torn: bool) -> None: ...
        def write(self) -> bool:
            return True

        def close(self) -> None: ...

    for name, instead in (("train", train), ("newest_whole", newest_whole), ("EventWriter", Writer)):
        monkeypatch.setattr(supervisor, name, instead)
    nobody: Any = None
    end = supervisor.train_from_newest(RunningAttempt(nobody, nobody, claim), nobody, tmp_path / "spec.json", 0.0)
    return end, len(begun)
