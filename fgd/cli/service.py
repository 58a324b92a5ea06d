"""`fgd demo|serve|worker` and `fgd backup|restore|doctor`: to start a service and to look after it.

All but the demo are programs of the service, which this process turns into: the library imports none of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fgd.cli.options import Home, api_key
from fgd.cli.printing import leave, out
from fgd.process import children

app = typer.Typer()


@app.command(rich_help_panel="Start here")
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of your own (COCO, VOC, YOLO), not the handwritten digits.", exists=True, file_okay=False
        ),
    ] = None,
    home: Annotated[Path, typer.Option(help="Folder for service, data and results.")] = Path(".fgd/demo"),
    url: Annotated[
        str | None,
        typer.Option(envvar="FGD_URL", help="Use a running service on this machine instead of an embedded one."),
    ] = None,
) -> None:
    """Train a teacher, distil it into a student, and compare the two.

    Everything goes through the REST API of a service that the demo starts and stops itself. On two cores it takes
    at most 15 minutes. Ctrl-C stops it; the same command goes on where it stopped.
    """
    from fgd.cli.demo import run

    leave(run(home=home, data=data, url=url, api_key=api_key(), console=out))


@app.command(rich_help_panel="Start here")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind. [default: 8000]")] = None,
    home: Home = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder below which data sets and teachers may be read; may be given several times."),
    ] = None,
) -> None:
    """Run the whole service on this machine: API, queue, database, blob store and one worker.

    Ctrl-C stops it within ten seconds; jobs go on from their last checkpoint at the next start. Every other setting
    is an FGD_* variable. A bind that is not loopback needs FGD_API_KEY (at least 32 characters).
    """
    roots = [f"--data-root={root}" for root in data_root or ()]
    children.become("deploy", "serve", *_given(host=host, port=port, home=home), *roots)


@app.command(rich_help_panel="Start here")
def worker(home: Home = None) -> None:
    """Run one more worker, for the database, broker and blob store that the FGD_* variables name."""
    if home is not None:
        os.environ["FGD_HOME"] = str(home.absolute())
    children.become("worker")


@app.command(rich_help_panel="Look after a service")
def backup(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    home: Home = None,
) -> None:
    """Copy database, blobs and checkpoints into a folder, while the service runs.

    For the database and store that the FGD_* variables name. Exits 1 if rows name files that the store has lost.
    """
    children.become("deploy", "backup", *_given(home=home), "--", str(folder))


@app.command(rich_help_panel="Look after a service")
def restore(
    folder: Annotated[Path, typer.Argument(help="What `fgd backup` wrote.", exists=True, file_okay=False)],
    keep_store: Annotated[
        bool, typer.Option("--keep-store", help="The store still has its files; all stay, what is missing is added.")
    ] = False,
    home: Home = None,
) -> None:
    """Bring a backup back into the empty database and store that the FGD_* variables name, checked to the last byte.

    Jobs that ran when it was made go on from their last checkpoint as soon as a worker runs.
    """
    kept = ["--keep-store"] * keep_store
    children.become("deploy", "restore", *kept, *_given(home=home), "--", str(folder))


@app.command(rich_help_panel="Look after a service")
def doctor(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the files that no row names. No worker may run.")
    ] = False,
    older_than_h: Annotated[
        float, typer.Option(min=1.0, help="Only files at least so many hours old; younger ones may get a row.")
    ] = 24.0,
    home: Home = None,
) -> None:
    """Compare database and store: files that no row names, and rows whose files are gone (exit code 1)."""
    children.become("deploy", "doctor", *["--delete"] * delete, f"--older-than-h={older_than_h}", *_given(home=home))


def _given(**options: object) -> list[str]:
    """Options as the program takes them; those that were not given are left to the FGD_* variables."""
    return [f"--{name}={value}" for name, value in options.items() if value is not None]
