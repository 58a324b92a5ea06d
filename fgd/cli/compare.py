"""Measures downloaded students and sets them side by side. Knows no torch: what runs them is a child process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from rich import box
from rich.table import Table

from fgd.cli.watch import clock
from fgd.client import Job, MetricPoint
from fgd.data.index import Report
from fgd.detector_specs import DetectorSpec
from fgd.errors import WeightsError
from fgd.process import children
from fgd.result_files import WEIGHTS


@dataclass(frozen=True)
class Score:
    """AP figures, 0-100; None where the data set has no box of that kind."""

    split: str
    ap: float | None
    ap50: float | None
    ap75: float | None


def score(points: Sequence[MetricPoint]) -> Score:
    """On the test images where there are any, else on the validation images."""
    by_split: dict[str, dict[str, float | None]] = {}
    for point in points:
        by_split.setdefault(point.split or "", {})[point.name] = point.value
    split = "test" if "ap" in by_split.get("test", {}) else "val"
    values = by_split.get(split, {})
    return Score(split, values.get("ap"), values.get("ap50"), values.get("ap75"))


Curve = Mapping[int, float | None]
"""AP on the validation images after each epoch that was evaluated."""

MOST_EPOCHS_SHOWN = 8
"""What fits into eighty columns."""


@dataclass(frozen=True)
class Latency:
    """What the child process saw, by folder."""

    threads: int
    passes: int
    parameters: Mapping[str, int]
    ms: Mapping[str, float]


def measure(folders: Sequence[Path], images: Sequence[Path]) -> Latency:
    """Load each folder's weights strictly into the plain torchvision network of its model.py, and time it."""
    command = children.command("fgd.export.measure", *map(str, folders), "--images", *map(str, images))
    # A session of its own: Ctrl-C reaches this process only, which ends this child with itself.
    child = subprocess.run(
        command, env=children.environment(), capture_output=True, text=True, start_new_session=True, check=False
    )
    if child.returncode:
        raise WeightsError(f"the downloaded weights could not be loaded and run:\n{child.stderr.strip()[-2000:]}")
    said = json.loads(child.stdout)
    return Latency(
        threads=said["threads"],
        passes=said["passes"],
        parameters={network["folder"]: network["parameters"] for network in said["networks"]},
        ms={network["folder"]: network["ms"] for network in said["networks"]},
    )


@dataclass(frozen=True)
class Row:
    role: str
    network: str
    score: Score
    parameters: int
    ms: float
    megabytes: float


def row(role: str, job: Job, score: Score, measured: Latency, folder: Path) -> Row:
    network: DetectorSpec = TypeAdapter(DetectorSpec).validate_python(job.spec["student"])
    size = (folder / WEIGHTS).stat().st_size
    key = str(folder)
    return Row(role, network.title(), score, measured.parameters[key], measured.ms[key], size / 1e6)


def table(rows: Sequence[Row]) -> Table:
    """Teacher, control and student, and what distillation gained: student minus control."""
    figures: list[Literal["ap", "ap50", "ap75"]] = ["ap", "ap50", "ap75"]
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    shown.add_column("network", no_wrap=True)
    for title in ("AP", "AP50", "AP75", "params", "ms/image", "MB"):
        shown.add_column(title, justify="right", no_wrap=True)
    for line in rows:
        scores = [_number(getattr(line.score, figure)) for figure in figures]
        rest = [f"{line.parameters / 1e6:.2f} M", f"{line.ms:.1f}", f"{line.megabytes:.1f}"]
        shown.add_row(line.role, line.network, *scores, *rest)
    by_role = {line.role: line.score for line in rows}
    gains = [_gain(getattr(by_role["student"], figure), getattr(by_role["control"], figure)) for figure in figures]
    shown.add_section()
    shown.add_row("gain", "student - control", *gains, style="bold")
    return shown


def curve(job: Job, points: Sequence[MetricPoint]) -> Curve:
    """AP on the validation images by epoch, from all points of that series; the last one is of the last epoch."""
    epochs = int(job.spec["schedule"]["epochs"])
    last = max((point.step for point in points), default=1)
    return {round(epochs * point.step / last): point.value for point in points}


def curve_table(curves: Mapping[str, Curve]) -> Table:
    """AP while control and student learned. It shows whether a gain is an earlier start, or stays."""
    epochs = sorted(set().union(*curves.values()))
    if len(epochs) > MOST_EPOCHS_SHOWN:
        places = [round(n * (len(epochs) - 1) / (MOST_EPOCHS_SHOWN - 1)) for n in range(MOST_EPOCHS_SHOWN)]
        epochs = [epochs[place] for place in places]
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("AP (val) after epoch", no_wrap=True)
    for epoch in epochs:
        shown.add_column(str(epoch), justify="right", no_wrap=True)
    for role, curve in curves.items():
        shown.add_row(role, *(_number(curve.get(epoch)) for epoch in epochs))
    return shown


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _gain(student: float | None, control: float | None) -> str:
    return "-" if student is None or control is None else f"{student - control:+.1f}"


def footnote(report: Report, scores: Mapping[str, Score], measured: Latency, jobs: Mapping[str, Job]) -> str:
    """How the table's numbers came about."""
    split = scores["student"].split
    images = report.splits[split].images if split in report.splits else 0
    took = ", ".join(f"{role} {clock(_took_s(job))}" for role, job in jobs.items())
    return (
        f"AP on {images} {split} images, one seed. ms/image: median of {measured.passes} passes of one image, "
        f"{measured.threads} thread{'s' * (measured.threads != 1)}.\n"
        "A gain in the first epochs is a faster start. What is left after the last one, when the\n"
        f"learning rate is almost 0, is what the teacher adds.\nTraining took (min:s): {took}."
    )


def _took_s(job: Job) -> float:
    return (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else 0.0
