"""Draws a training's events on a terminal. Knows only events."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fgd.event_log import shown
from fgd.events import Emit, Evaluated, Event, Failed, Finished, Note, Phase, Started, Stepped
from fgd.text.printable import printable


def draw(console: Console | None = None) -> Emit:
    """An `emit` that keeps one bar and prints what is worth keeping above it."""
    progress = Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps  {task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
    task = progress.add_task("loading", total=None, figures="")

    def emit(event: Event) -> None:
        match event:
            case Started():
                progress.start()
                progress.update(task, total=event.total_steps, completed=event.step)
                machine = f"{event.device}, {event.threads} thread{'s' * (event.threads != 1)}, {event.precision}"
                progress.console.print(printable(machine), markup=False)
            case Phase():
                progress.update(task, description=printable(event.phase))
            case Stepped():
                figures = (
                    f"loss {shown(event.values.get('loss/total'))}  {shown(event.values.get('images_per_s'))} img/s"
                )
                progress.update(task, completed=event.step, figures=figures)
            case Evaluated():
                ap, ap50 = shown(event.values.get("ap")), shown(event.values.get("ap50"))
                progress.console.print(f"epoch {event.epoch}  {event.split}  AP {ap}  AP50 {ap50}")
            case Note():
                style = "yellow" if event.level == "warning" else ""
                progress.console.print(printable(event.message), style=style, markup=False)
            case Finished():
                progress.stop()
                progress.console.print(printable(f"result in {event.folder}"), markup=False)
            case Failed():
                progress.stop()

    return emit
