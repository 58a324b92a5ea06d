"""What an INT8 file keeps of a float32 file's AP, and how much faster it is, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgd.exported import Int8Report
from fgd.text.printable import printable


def show(report: Int8Report, console: Console) -> None:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("")
    for title in ("float32", "int8"):
        drawn.add_column(title, justify="right", no_wrap=True)
    for name, *cells in rows(report):
        drawn.add_row(Text(printable(name)), *cells)
    console.print(drawn)
    for line in notes(report):
        console.print(Text(printable(line)), soft_wrap=True)


def rows(report: Int8Report) -> Iterator[tuple[str, ...]]:
    """What each is, of the float32 file and of the INT8 file."""
    pair = report.float32, report.int8
    yield "AP", *(f"{each.ap:.2f}" for each in pair)
    yield "AP50", *(f"{each.ap50:.2f}" for each in pair)
    yield "AP75", *(f"{each.ap75:.2f}" for each in pair)
    for classes in zip(*(each.per_class for each in pair), strict=True):
        yield f"AP of {classes[0].name}", *("-" if each.ap is None else f"{each.ap:.2f}" for each in classes)
    yield "ms/batch", *(f"{each.latency.median_ms:.1f}" for each in pair)
    yield "p10-p90", *(f"{each.latency.p10_ms:.1f}-{each.latency.p90_ms:.1f}" for each in pair)
    yield "MB", *(f"{each.bytes / 1e6:.1f}" for each in pair)


def notes(report: Int8Report) -> Iterator[str]:
    faster = report.float32.latency.median_ms / report.int8.latency.median_ms
    changed = f"loses {report.ap_loss:.2f}" if report.ap_loss >= 0 else f"wins {-report.ap_loss:.2f}"
    yield (
        f"{faster:.2f} times as fast on {report.threads} thread{'s' * (report.threads != 1)} of {report.device}; "
        f"{changed} AP, of {report.max_ap_loss:g} allowed, on {report.images} validation images; calibrated on "
        f"{report.calibration_images} training images"
    )
    for each in report.left_out:
        yield f"float32: {each.layers}, {each.weights} weights; alone they win {each.ap_gain:.2f} AP"
