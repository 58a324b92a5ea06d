"""Shows jobs on a terminal while they run: bars on a screen, plain lines elsewhere.

Knows the client's Job. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from fgd.client import Job, StoredEvent
from fgd.data.index import Report
from fgd.text.printable import printable

LINE_EVERY_S = 10.0
"""Between two plain lines about the same job, where there is no screen to draw on."""


ASKED = {"cancel": "cancelling", "cancel_now": "cancelling", "pause": "pausing", "stop": "finishing early"}
"""What was asked of a running job, as its status."""


@dataclass(frozen=True)
class Figures:
    """What one look at a job shows, as text; "" where it is not known yet."""

    status: str
    """The phase while it runs, else the state and why."""
    epoch: str = ""
    loss: str = ""
    """Detection loss, plus what distillation adds to it."""
    ap: str = ""
    """On the validation images."""
    done: int = 0
    total: int = 0
    """Steps."""


def figures(job: Job) -> Figures:
    progress = job.progress
    if progress is None:
        return Figures(status(job))
    values = progress.values
    total, detection, ap = values.get("loss/total"), values.get("loss/detection"), values.get("val/ap")
    loss = "" if total is None else f"loss {total:.2f}"
    if job.spec.get("methods") and total is not None and detection is not None:
        loss = f"loss {detection:.2f}+{total - detection:.2f}"
    return Figures(
        status=status(job),
        epoch=f"epoch {progress.epoch}/{progress.epochs}" if progress.epochs else "",
        loss=loss,
        ap="" if ap is None else f"AP {ap:.1f}",
        done=(progress.total_steps or progress.step) if job.state == "succeeded" else progress.step,
        total=progress.total_steps or 0,
    )


def status(job: Job) -> str:
    if job.state == "queued":
        return f"queued: {job.waiting_reason}" if job.waiting_reason else "queued"
    if job.state == "running":
        asked = ASKED.get(job.requested or "")
        return asked or (job.phase or "running").replace("_", " ")
    if job.state == "paused":
        return "paused; `fgd job resume` continues it"
    return job.state


def told(event: StoredEvent) -> str | None:
    """A line for the events a watcher must not miss; None for the daily ones."""
    if event.type == "attempt_lost":
        return f"attempt {event.attempt} was lost ({event.data.get('reason', 'no reason given')}); the job continues"
    if event.type == "batch_halved":
        return "out of memory; it continues with batches of {batch_size}, {accumulate} per step".format(**event.data)
    if event.type in ("job_paused", "job_resumed", "note:finished_early"):
        return str(event.data.get("message") or event.type.removeprefix("job_"))
    if event.type == "note:resumed":
        return str(event.data.get("message", "resumed from the last checkpoint"))
    if event.type.startswith("note:") and event.data.get("level") == "warning":
        return f"warning: {event.data.get('message', event.type.removeprefix('note:'))}"
    return None


@dataclass
class Eta:
    """Time left, from what was seen here: after a resume the steps done before do not count."""

    first: tuple[float, int] | None = None
    """When we first saw it move, in seconds, and at what step."""

    def left_s(self, now_s: float, step: int, total: int) -> float | None:
        if self.first is None or step < self.first[1]:
            self.first = (now_s, step)
        since_s, steps = now_s - self.first[0], step - self.first[1]
        if steps < 1 or since_s <= 0 or total <= step:
            return None
        return (total - step) * since_s / steps


def clock(seconds: float) -> str:
    """75 -> 1:15"""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@dataclass
class _Row:
    task: TaskID
    eta: Eta = field(default_factory=Eta)
    printed_s: float = -LINE_EVERY_S
    printed_status: str = ""


class _Bars(Progress):
    """Bars, and lines below them."""

    below: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(printable(line), no_wrap=True) for line in self.below)


class Board:
    """One row a job. Use it in a `with` block; `show` each look, `say` what happens in between."""

    def __init__(self, console: Console, titles: Sequence[str], now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._live = console.is_terminal
        self._width = max(len(printable(title)) for title in titles)
        self._bars = _Bars(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            disable=not self._live,
        )
        self._rows = {title: _Row(self._bars.add_task(self._named(title), total=1, text="not yet")) for title in titles}

    def _named(self, title: str) -> str:
        return printable(title).ljust(self._width)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, title: str, job: Job | None) -> None:
        """Draw one look; None says that the service did not answer."""
        row = self._rows[title]
        seen = Figures("no answer, waiting for the service") if job is None else figures(job)
        running = job is not None and job.state == "running"
        left_s = row.eta.left_s(self._now(), seen.done, seen.total) if running and seen.total else None
        parts = [seen.epoch, seen.loss, seen.ap, f"{clock(left_s)} left" if left_s is not None else ""]
        if seen.status != "training":
            parts.append(seen.status)
        text = printable("  ".join(part for part in parts if part))
        if self._live:
            total, done = (seen.total, seen.done) if seen.total else (None, None)
            self._bars.update(row.task, total=total, completed=done, text=text)
        else:
            self._line(row, title, seen.status, text)

    def _line(self, row: _Row, title: str, now_status: str, text: str) -> None:
        now_s = self._now()
        if now_status == row.printed_status and now_s - row.printed_s < LINE_EVERY_S:
            return
        row.printed_s, row.printed_status = now_s, now_status
        self._console.print(Text(f"{time.strftime('%H:%M:%S')}  {self._named(title)}  {text}"), soft_wrap=True)

    def draw(self, lines: Sequence[str]) -> None:
        """Below the bars, in place of what was there; nothing where there is no screen."""
        self._bars.below = tuple(lines)

    def say(self, title: str, text: str) -> None:
        self._console.print(Text(printable(f"  {title}: {text}")), soft_wrap=True)


def report_lines(report: Report, most: int = 20) -> list[str]:
    """What the importer of a data set saw, for reading: counts by split, then defects by kind and the first by name."""
    verdict = "usable" if report.ok else "rejected: it cannot be used for training"
    classes = f"{len(report.classes)} classes ({', '.join(report.classes[:12])})" if report.classes else "no classes"
    lines = [f"{report.format}, {classes}, {verdict}"]
    for name, split in report.splits.items():
        size = f"{split.width[0]}-{split.width[1]} x {split.height[0]}-{split.height[1]} px"
        boxes = "" if name == "unlabelled" else f", {split.boxes} boxes, {split.empty_images} without boxes"
        lines.append(f"  {name:<5} {split.images} images{boxes}, {size}")
    if not report.defect_counts:
        return [*map(printable, lines), "  no defects"]
    lines += [f"  {count} x {code}" for code, count in report.defect_counts.items()]
    lines += [
        f"    {f'{defect.file}: ' if defect.file else ''}{defect.message} -> {defect.action}"
        for defect in report.defects[:most]
    ]
    if (more := sum(report.defect_counts.values()) - most) > 0:
        lines.append(f"    and {more} more")
    lines.append(f"  what each of them means: {report.docs}")
    return [printable(line) for line in lines]
