"""Running means of a training: what its steps, evaluations and checkpoints report. Knows nothing of networks."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

from fgd.engine.checkpoint import TrainingState
from fgd.engine.device_metrics import DeviceMetrics, busy_s
from fgd.engine.loss_warnings import loss_warnings
from fgd.engine.teacher_cache import TeacherCache
from fgd.engine.unlabelled import FoundBoxes
from fgd.events import Emit, Note, Stepped
from fgd.types import Batch

REPORT_S = 1.0
"""Seconds between reports of the running means."""


class Meter:
    """Running means: a report about every second, and one of each whole epoch."""

    def __init__(
        self,
        state: TrainingState,
        emit: Emit,
        images_per_step: int,
        gauge: DeviceMetrics,
        cache: TeacherCache | None = None,
        found: FoundBoxes | None = None,
    ) -> None:
        self.state, self.emit, self.images_per_step, self.gauge = state, emit, images_per_step, gauge
        self.cache, self.found = cache, found
        self.window: dict[str, float] = {}
        self.steps = 0
        self.waited_s = 0.0
        self.since, self.busy_since = time.monotonic(), busy_s()
        self.rate, self.epoch = 0.0, 0
        self.stepping_s, self.saving_s, self.saves = 0.0, 0.0, 0
        self.evaluating_s = 0.0

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Report what was not reported yet: an attempt that continues from the checkpoint does not know these steps."""
        if self.steps:
            self.report(last_of_epoch=False)
        began = time.monotonic()
        with self.pause():
            yield
        self.saving_s += time.monotonic() - began
        self.saves += 1

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        began = time.monotonic()
        with self.pause():
            yield
        self.evaluating_s += time.monotonic() - began

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent on evaluating and saving is not the steps'."""
        began, busy_before = time.monotonic(), busy_s()
        yield
        self.since += time.monotonic() - began
        self.busy_since += busy_s() - busy_before

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; counts how long each was waited for."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.waited_s += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, float], rate: float, epoch: int, *, last_of_epoch: bool) -> None:
        """No losses: the step was skipped, and is in no mean."""
        values = named(losses) if losses else {}
        for sums in (self.window, self.state.sums):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        self.steps += bool(losses)
        self.state.summed_steps += bool(losses)
        self.rate, self.epoch = rate, epoch
        if time.monotonic() - self.since >= REPORT_S or last_of_epoch:
            self.report(last_of_epoch)

    def report(self, last_of_epoch: bool) -> None:
        elapsed = time.monotonic() - self.since
        self.stepping_s += elapsed
        means = {name: total / self.steps for name, total in self.window.items()}
        speed = self.steps * self.images_per_step / elapsed
        means |= {"lr": self.rate, "images_per_s": speed, "checkpoint/share": self.share()} | self.device(elapsed)
        means["evaluate/share"] = self.evaluating_share()
        if self.cache is not None:
            means |= self.cache.figures()
        if self.found is not None:
            means |= self.found.figures()
        if last_of_epoch:
            count = self.state.summed_steps
            of_epoch = {name: total / count for name, total in self.state.sums.items()}
            means |= {f"epoch/{name}": mean for name, mean in of_epoch.items()}
            self.warn(of_epoch)
            self.state.sums, self.state.summed_steps = {}, 0
        if self.state.skipped:
            means["skipped_steps"] = self.state.skipped
        self.emit(Stepped(step=self.state.step, epoch=self.epoch, values=dict(means)))
        self.window, self.steps, self.waited_s = {}, 0, 0.0
        self.since, self.busy_since = time.monotonic(), busy_s()

    def warn(self, means: Mapping[str, float]) -> None:
        """Of each thing once in a training."""
        summary = ("loss/total", "loss/detection")
        losses = {name[5:]: mean for name, mean in means.items() if name[:5] == "loss/" and name not in summary}
        nothing = self.found.warning() if self.found is not None else None
        for warning in (*loss_warnings(losses), *([nothing] if nothing else ())):
            if warning.code not in self.state.warned:
                self.state.warned.append(warning.code)
                self.emit(warning)

    def share(self) -> float:
        """Of the time of steps and checkpoints, what the checkpoints took."""
        return self.saving_s / (self.stepping_s + self.saving_s) if self.saving_s else 0.0

    def evaluating_share(self) -> float:
        """Of the time of steps, checkpoints and evaluations, what the evaluations took."""
        whole_s = self.stepping_s + self.saving_s + self.evaluating_s
        return self.evaluating_s / whole_s if self.evaluating_s else 0.0

    def evaluation_cost(self) -> Note:
        share = self.evaluating_share()
        message = f"evaluations took {self.evaluating_s:.1f} s, {100 * share:.1f} % of the training time"
        return Note(code="evaluation_cost", message=message, data={"seconds": self.evaluating_s, "share": share})

    def cost(self) -> Note:
        """Told as an event and not in the manifest, whose bytes are the same however fast the disk was."""
        message = (
            f"{self.saves} checkpoints took {self.saving_s:.1f} s, {100 * self.share():.1f} % of the training time"
        )
        data = {"checkpoints": self.saves, "seconds": self.saving_s, "share": self.share()}
        return Note(code="checkpoint_cost", message=message, data=data)

    def device(self, elapsed_s: float) -> dict[str, float]:
        """What device and data did in this window; memory since the start."""
        values = {
            "device/memory_peak_mb": self.gauge.memory_peak_mb(),
            "device/utilisation": self.gauge.utilisation(busy_s() - self.busy_since, elapsed_s),
            "data/wait_share": self.waited_s / elapsed_s,
        }
        return {name: value for name, value in values.items() if value is not None}


def named(losses: dict[str, float]) -> dict[str, float]:
    """loss/total, loss/detection and its parts, those on pseudo-labels, each method's weighted terms, and the shares of
    these in the detection loss."""
    detection = sum(value for name, value in losses.items() if name.startswith("detection/"))
    shares = {
        f"share/{name}": value / detection if detection else math.inf
        for name, value in losses.items()
        if not name.startswith(("detection/", "pseudo/"))
    }
    values = {f"loss/{name}": value for name, value in losses.items()}
    return {"loss/total": sum(losses.values()), "loss/detection": detection} | values | shares
