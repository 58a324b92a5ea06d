"""`fgd workers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, Url
from fgd.cli.printing import Columns, answer, clock, table

if TYPE_CHECKING:
    from fgd.client import Worker

app = typer.Typer()

COLUMNS: Columns = {
    "id": None, "host": None, "state": None, "slots": "right", "devices": None, "torch": None, "last beat": None,
    "runs": None,
}  # fmt: skip


@app.command(rich_help_panel="Use a service")
def workers(as_json: AsJson = False, url: Url = URL) -> None:
    """List the workers: what each has, whether it is alive, and what it is running."""
    with client_of(url) as client:
        answer(client.workers(), as_json, table(COLUMNS, cells))


def cells(worker: Worker) -> list[str]:
    return [
        worker.id,
        worker.host,
        (worker.complaint or "ready") if worker.live else "silent",
        f"{worker.free_slots} of {worker.slots} free",
        ", ".join(str(device.get("name", "?")) for device in worker.devices) or worker.facts.get("cpu", "cpu"),
        worker.versions.get("torch", "-"),
        clock(worker.last_beat),
        ", ".join(f"{run.job} ({run.name})" for run in worker.running) or "-",
    ]
