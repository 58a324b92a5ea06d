"""`fgd demo|serve|worker` and `fgd backup|restore|doctor`: to start a service and to look after it.

All but the demo are programs of the service, which this process turns into: the library imports none of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fgd.cli.connection import api_key
from fgd.cli.options import Home
from fgd.cli.printing import leave, out
from fgd.process import children

app = typer.Typer()


@app.command(rich_help_panel="Start here")
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with your own data (COCO, VOC, YOLO, ...) instead of the handwritten digits.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    home: Annotated[Path, typer.Option(help="Folder for service, data and results.")] = Path(".fgd/demo"),
    url: Annotated[
        str | None,
        typer.Option(envvar="FGD_URL", help="Use a service that already runs on this machine."),
    ] = None,
) -> None:
    """Train a teacher, distil it into a student, and compare the two.

    Everything goes through the REST API of a service that the demo starts and stops. Training takes about ten
    minutes on two recent cores, and twice that on older ones. Ctrl-C stops it; the same command continues where it
    stopped.
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
        typer.Option(
            help="Folder below which the service may read data sets and teachers; may be given several times."
        ),
    ] = None,
) -> None:
    """Run the whole service on this machine: API, queue, database, blob store and one worker.

    Ctrl-C stops it within ten seconds; jobs continue from their last checkpoint at the next start. All other settings
    are FGD_* variables. Listening on anything but loopback needs FGD_API_KEY (at least 32 characters).
    """
    roots = [f"--data-root={root}" for root in data_root or ()]
    children.become("deploy", "serve", *_given(host=host, port=port, home=home), *roots)


@app.command(rich_help_panel="Start here")
def worker(home: Home = None) -> None:
    """Run one more worker, for the database, broker and blob store in the FGD_* variables."""
    if home is not None:
        os.environ["FGD_HOME"] = str(home.absolute())
    children.become("worker")


@app.command(rich_help_panel="Maintain a service")
def backup(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
    home: Home = None,
) -> None:
    """Copy database, blobs and checkpoints into a folder, while the service runs.

    It uses the database and store in the FGD_* variables. Exits 1 if files that the database names are missing in the
    store.
    """
    children.become("deploy", "backup", *_given(home=home), "--", str(folder))


@app.command(rich_help_panel="Maintain a service")
def restore(
    folder: Annotated[Path, typer.Argument(help="The folder written by `fgd backup`.", exists=True, file_okay=False)],
    keep_store: Annotated[
        bool, typer.Option("--keep-store", help="The store still has files: keep them all, and add the missing ones.")
    ] = False,
    home: Home = None,
) -> None:
    """Restore a backup into the empty database and store in the FGD_* variables, after checking every byte.

    Jobs that ran when it was made continue from their last checkpoint as soon as a worker runs.
    """
    kept = ["--keep-store"] * keep_store
    children.become("deploy", "restore", *kept, *_given(home=home), "--", str(folder))


@app.command(rich_help_panel="Maintain a service")
def doctor(
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the files that no row names. Stop all workers first.")
    ] = False,
    older_than_h: Annotated[
        float,
        typer.Option(
            min=1.0, help="Only files that are at least this many hours old; younger ones may still get a row."
        ),
    ] = 24.0,
    home: Home = None,
) -> None:
    """Compare database and store: list files that no row names, and rows whose files are missing (exit code 1)."""
    children.become("deploy", "doctor", *["--delete"] * delete, f"--older-than-h={older_than_h}", *_given(home=home))


def _given(**options: object) -> list[str]:
    """Options as the program takes them; those that were not given are left to the FGD_* variables."""
    return [f"--{name}={value}" for name, value in options.items() if value is not None]
