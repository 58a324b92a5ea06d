"""Options and arguments that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fgd.cli.connection import URL, api_key
from fgd.cli.names import named

Url = Annotated[  # read before all others, which may have names for the service to look up
    str,
    typer.Option("--url", envvar="FGD_URL", help="Address of the service.", rich_help_panel="Service", is_eager=True),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Home = Annotated[Path | None, typer.Option(help="Folder for everything the service writes. [default: .fgd]")]
NameFilter = Annotated[
    str | None, typer.Option("--name", help="The whole name; * at either end stands for anything: '*cells*'.")
]
NewName = Annotated[str, typer.Option("--name", help="Another name.", show_default=False)]
SpecFile = Annotated[
    str | None,
    typer.Argument(metavar="SPEC", help="File with the job's spec, YAML or JSON; - reads standard input."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a field of the spec: schedule.epochs=24, methods.0.kind=fgd; repeatable.",
    ),
]


def job_ids(incomplete: str) -> list[tuple[str, str]]:
    """For the shell's Tab: the newest jobs with names and states; none if no service answers at once."""
    from fgd.client import Client
    from fgd.errors import FGDError

    try:
        with Client(os.environ.get("FGD_URL") or URL, api_key(), timeout_s=2.0, attempts=1) as client:
            return [(job.id, f"{job.name}, {job.state}") for job in client.jobs(50) if job.id.startswith(incomplete)]
    except (FGDError, OSError):
        return []


JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Id (job_...) or name of a job.",
        show_default=False,
        autocompletion=job_ids,
        callback=named("job"),
    ),
]
DatasetId = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="Id (ds_...) or name of a data set.",
        show_default=False,
        callback=named("dataset"),
    ),
]
ModelId = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Id (mdl_...) or name of a model.", show_default=False, callback=named("model")
    ),
]
Budget = Annotated[
    str | None, typer.Option(metavar="15ms", help="Find students that answer within this time.", show_default=False)
]
RuntimeOption = Annotated[str, typer.Option(help="With --budget: what runs the student, onnxruntime or torch.")]
StudentThreads = Annotated[
    int | None, typer.Option(min=1, help="With --budget: threads that one image gets. [default: all]")
]
StudentSize = Annotated[
    tuple[int, int] | None,
    typer.Option(metavar="MIN MAX", help="With --budget: only this size. [default: sizes that suit the data set]"),
]
SearchSeconds = Annotated[
    float | None, typer.Option(min=10, max=3600, help="With --budget: how long to search. [default: 300]")
]
