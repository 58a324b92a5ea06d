"""AP on the validation images as lines of block characters: a job's, and under it that of its control, on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgd.client import Client, Job

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40

Points = Mapping[int, float]
"""AP after each step at which it was measured."""


def curve_lines(own: Points, control: Points, width: int = WIDTH) -> list[str]:
    """Nothing for fewer than two points. A column stands for the same steps in both lines."""
    if len(own) < 2:
        return []
    last = max([*own, *control])
    values = [*own.values(), *control.values()]
    low, high = min(values), max(values)
    lines = [f"AP       {_blocks(own, last, low, high, width)}  {own[max(own)]:.1f}"]
    if control:
        line = f"control  {_blocks(control, last, low, high, width)}  {control[max(control)]:.1f}"
        if both := sorted(own.keys() & control.keys()):
            line += f"; after step {both[-1]} the student has {own[both[-1]] - control[both[-1]]:+.1f}"
        lines.append(line)
    return lines


def _blocks(points: Points, last: int, low: float, high: float, width: int) -> str:
    """A column shows the newest point up to its end; blank before the first point and after the last."""
    drawn = []
    for column in range(1, width + 1):
        known = [step for step in points if step * width <= last * column]
        beyond = max(points) * width <= last * (column - 1)
        if not known or beyond:
            drawn.append(" ")
            continue
        share = (points[max(known)] - low) / (high - low) if high > low else 0.0
        drawn.append(BLOCKS[round(share * (len(BLOCKS) - 1))])
    return "".join(drawn)


@dataclass
class ApCurve:
    """Asks for the points again when a job has come further."""

    client: Client
    drawn_at: tuple[int, float | None] | None = None
    control: str | None = None
    lines: tuple[str, ...] = ()

    def of(self, job: Job | None) -> tuple[str, ...]:
        """What was drawn before, where the service does not answer: a curve must not end the watching."""
        from fgd.errors import FGDError

        if job is None or job.progress is None or (ap := job.progress.values.get("val/ap")) is None:
            return self.lines
        if (now := (job.progress.epoch, ap)) == self.drawn_at and not job.ended:
            return self.lines
        with suppress(FGDError):
            if self.drawn_at is None and job.spec.get("methods"):
                found = self.client.summaries(1, search=job.id)
                self.control = found[0].control if found and found[0].id == job.id else None
            self.drawn_at = now
            self.lines = tuple(curve_lines(self._points(job.id), self._points(self.control)))
        return self.lines

    def _points(self, job_id: str | None) -> Points:
        if job_id is None:
            return {}
        points = self.client.metrics(job_id, "ap", max_points=4 * WIDTH)
        return {point.step: point.value for point in points if point.split == "val" and point.value is not None}
