"""The students that fit a latency budget, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgd.budget import NOISY, BudgetRow, BudgetTable
from fgd.text.printable import printable

BUSY = 0.02
"""Less is not worth a line."""
COLOURS = {"fits": "green", "tight": "yellow", "over": "red"}


def print_table(table: BudgetTable, console: Console | None = None) -> None:
    """Where the console is no terminal the table is drawn as wide as it is."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200)
    console.print(Text(printable(table.message), style="bold"))
    console.print(drawn(table))
    for line in notes(table):
        console.print(Text(printable(line)), soft_wrap=True)


def drawn(table: BudgetTable) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("#", justify="right")
    shown.add_column("student", overflow="fold")
    for title in ("size", "ms/image", "p10-p90"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column(f"{table.latency_budget_ms:g} ms", no_wrap=True)
    columns = ["params", "GFLOPs", "MB", "small/median box", *(["levels shared"] if table.teacher else [])]
    for title in columns:
        shown.add_column(title, justify="right")
    for place, row in enumerate(table.rows, start=1):
        texts = cells(place, row, with_teacher=table.teacher is not None)
        shown.add_row(*(Text(text, style=COLOURS.get(text, "")) for text in texts))
    return shown


def cells(place: int, row: BudgetRow, *, with_teacher: bool) -> list[str]:
    height, width = row.input
    latency = row.latency
    return [
        str(place),
        printable(row.title),
        f"{height}x{width}",
        f"{latency.median_ms:.1f}",
        f"{latency.p10_ms:.1f}-{latency.p90_ms:.1f}",
        row.verdict,
        f"{row.parameters / 1e6:.1f} M",
        f"{row.gflops:.1f}",
        f"{row.mb:.1f}",
        "-" if row.small_box_px is None else f"{row.small_box_px:.0f}/{row.median_box_px:.0f} px",
        *([f"{row.levels_shared} of {row.levels}"] if with_teacher else []),
    ]


def notes(table: BudgetTable) -> Iterator[str]:
    threads = f"{table.threads} thread{'s' * (table.threads != 1)}"
    yield (
        f"{table.runtime} on {threads} of {table.device}, one image at a time; {table.timed} of {table.candidates} "
        f"students timed in {table.seconds:.0f} s"
    )
    if (teacher := table.teacher) is not None:
        said = teacher.latency.said() if teacher.latency else "not timed"
        yield f"teacher: {teacher.title} at {teacher.input[0]}x{teacher.input[1]}, {said}"
    if table.noise <= NOISY:
        yield f"noise: the slowest tenth of the runs took {table.noise:.2f} times the fastest tenth"
    if table.waited_share > BUSY:
        yield (
            f"busy: other processes had the processor for {table.waited_share:.0%} of the time; that is not in the "
            "figures"
        )
    for warning in table.warnings:
        yield f"note: {warning}"
