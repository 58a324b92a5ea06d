"""When a checkpoint is due, what it holds, and how many are kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgd.engine import checkpoint
from fgd.engine.average import Average
from fgd.engine.checkpoint import KEEP_CHECKPOINTS, TrainingState
from fgd.engine.distill import Distill
from fgd.engine.meter import Meter
from fgd.engine.prepare import Training
from fgd.events import Emit, Saved


class Saver:
    """Writes checkpoints of a training into `out`/checkpoints. Only the first of several processes does."""

    def __init__(
        self,
        training: Training,
        state: TrainingState,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        meter: Meter,
        out: Path,
        emit: Emit,
    ) -> None:
        self.training, self.state, self.optimizer, self.average = training, state, optimizer, average
        self.meter, self.folder, self.emit = meter, out / "checkpoints", emit
        self.best: dict[str, Tensor] | None = None
        """The weights of the best evaluation."""
        self._files: list[Path] = []
        self._done()

    def restore(self, contents: dict[str, Any], source: Path) -> None:
        """Go on from the contents of a checkpoint. Raises CheckpointUnreadable."""
        with checkpoint.reading(source):
            self.training.distill.load_state_dict(contents["model"], strict=True)
            self.optimizer.load_state_dict(contents["optimizer"])
            self.best = contents["best"]
            if self.average is not None:
                self.average.load_state_dict(contents["average"])
        if source.parent.resolve() == self.folder.resolve():  # those that go as newer ones come
            self._files = sorted(file for file in self.folder.glob("step-*.pt") if file.name <= source.name)

    @property
    def shown(self) -> torch.nn.Module:
        """What is evaluated, and becomes the result: the average where there is one."""
        return (self.average.detector if self.average else self.training.student).module

    def remember_best(self) -> None:
        """The weights just evaluated are the best so far."""
        self.best = {key: value.clone() for key, value in self.shown.state_dict().items()}

    def due(self) -> bool:
        schedule = self.training.spec.schedule
        every = schedule.checkpoint_steps or math.inf
        step, _ = self._saved
        return time.monotonic() - self._saved_at > schedule.checkpoint_s or self.state.step - step >= every

    def save(self) -> None:
        """Write a checkpoint, unless the last one holds the same."""
        state, training = self.state, self.training
        if self._saved == (state.step, state.evaluated_step) or not training.ranks.first:
            return
        path = self.folder / f"step-{state.step:08d}-{max(state.evaluated_step, 0):08d}.pt"
        is_best = state.best_step == state.step  # then `best` is what is there anyway, and need not be written twice
        best = self.shown.state_dict() if is_best else self.best
        contents = contents_of(training.distill, self.optimizer, best, self.average)
        contents["recipe"] = training.student.recipe.model_dump(mode="json")  # a promoted checkpoint needs nothing else
        with self.meter.saving():
            digest = checkpoint.save(path, contents, state, training.calibrations, training.digest)
        self.emit(Saved(step=state.step, path=str(path), sha256=digest, size=path.stat().st_size, best=is_best))
        self._files = [*(file for file in self._files if file.name != path.name), path]
        for old in self._files[:-KEEP_CHECKPOINTS]:
            old.unlink(missing_ok=True)
            self._files.remove(old)
        self._done()

    def _done(self) -> None:
        self._saved, self._saved_at = (self.state.step, self.state.evaluated_step), time.monotonic()


def contents_of(
    distill: Distill, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None, average: Average | None
) -> dict[str, Any]:
    """What a checkpoint holds."""
    contents = {"model": distill.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
    return contents | ({"average": average.state_dict()} if average is not None else {})
