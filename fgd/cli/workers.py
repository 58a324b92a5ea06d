"""`fgd workers`."""

from __future__ import annotations

import typer

from fgd.cli.options import URL, AsJson, Url, client_of
from fgd.cli.printing import clock, print_json, print_table

app = typer.Typer()


@app.command(rich_help_panel="Use a service")
def workers(as_json: AsJson = False, url: Url = URL) -> None:
    """List the workers: what each has, whether it is there, and what it runs."""
    with client_of(url) as client:
        found = client.workers()
    if as_json:
        print_json(found)
        return
    print_table(
        {
            "id": None, "host": None, "state": None, "slots": "right", "devices": None, "torch": None,
            "last beat": None, "runs": None,
        },
        (
            [
                worker.id,
                worker.host,
                (worker.complaint or "ready") if worker.live else "silent",
                f"{worker.free_slots} of {worker.slots} free",
                ", ".join(str(device.get("name", "?")) for device in worker.devices) or worker.facts.get("cpu", "cpu"),
                worker.versions.get("torch", "-"),
                clock(worker.last_beat),
                ", ".join(f"{run.job} ({run.name})" for run in worker.running) or "-",
            ]
            for worker in found
        ),
    )  # fmt: skip  # fmt: skip
