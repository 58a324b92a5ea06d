"""A trainer that cannot read its checkpoint: only one that ended by itself is followed by another in the attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.core.jobs import Claim, Saved
from fgd.events import Failed
from worker import tasks
from worker.outcome import End, Ended

UNREADABLE = Failed(code="user_error", message="not readable", data={"checkpoint": "unreadable"})


@pytest.mark.parametrize(
    ("ended", "starts"), [(Ended.by_itself, 3), (Ended.survived_kill, 1), (Ended.paused, 1), (Ended.worker_stops, 1)]
)
def test_no_second_trainer_beside_one_that_lives_or_after_one_that_was_told_to_end(
    ended: Ended, starts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec: Any = None
    saved = tuple(Saved(step, f"jobs/j/a1/ckpt-{step}.pt", "a" * 64, 1) for step in (20, 10))
    claim, begun = Claim("job_1", "prj_1", 2, spec, {}, saved), []

    def train(*arguments: Any) -> End:
        begun.append(arguments[-1])
        return End(1, ended, UNREADABLE)

    def newest_whole(_host: Any, _lease: Any, claim: Claim, folder: Path, _diary: Any) -> Any:
        return (folder / "checkpoint.pt", claim.checkpoints[1:]) if claim.checkpoints else (None, ())

    class Diary:
        last = None

        def __init__(self, *_: Any) -> None: ...
        def add(self, *_: Any) -> None: ...
        def close(self) -> None: ...

    for name, instead in (("train", train), ("newest_whole", newest_whole), ("Diary", Diary)):
        monkeypatch.setattr(tasks, name, instead)
    nobody: Any = None
    end = tasks.train_from_newest(nobody, nobody, claim, nobody, tmp_path / "spec.json", 0.0)

    assert (end.ended, len(begun)) == (ended, starts)
