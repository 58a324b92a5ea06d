"""The command `fgd`: its groups of commands in one, and what becomes of an error. Knows exit codes.

The work is done by the client or by other processes. Everything but typer is imported inside the commands:
`fgd --help` answers at once, and no command loads torch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from fgd.cli import (
    artifacts,
    datasets,
    job_detections,
    job_focus,
    job_plan,
    job_spec,
    job_table,
    jobs,
    library,
    mlflow,
    models,
    reports,
    service,
    studies,
    study_plan,
    task_groups,
    tasks,
    workers,
)
from fgd.cli.printing import err, note, print_error, print_line
from fgd.process.exit_codes import REFUSED, UNREACHABLE, exit_code, message_of
from fgd.text.printable import printable

ENDS = """
First steps, with a service of your own (`fgd serve`, in another terminal):

- `fgd dataset add cells FOLDER` imports your data; from here on its name is enough
- `fgd job spec --dataset cells > teacher.yaml` writes a spec to change
- `fgd job submit teacher.yaml --watch` trains it
- `fgd job spec --dataset cells --teacher cells-teacher > student.yaml`, and so on with the student

Environment variables: FGD_URL, the address of the service; FGD_API_KEY, its key.

Exit codes:

- 0: done
- 1: it failed: a job failed or was cancelled, a data set was rejected, a checksum did not match
- 2: the command or the request is wrong: a misspelt option, a path that does not exist, a spec that is refused
- 3: no service answers, or it is broken; the same for the hub and for MLflow
- 130: interrupted
"""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    # A traceback must not print local variables: one may be a key.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil a large detector into a small one: submit a job, watch it, download the student.",
    epilog=ENDS,
)
jobs.app.command("spec")(job_spec.job_spec)
jobs.app.command("plan")(job_plan.job_plan)
jobs.app.command("table")(job_table.job_table)
jobs.app.command("detections")(job_detections.job_detections)
jobs.app.command("focus")(job_focus.job_focus)
jobs.app.command("report")(reports.job_report)
jobs.app.command("mlflow")(mlflow.job_mlflow)
studies.app.command("plan")(study_plan.study_plan)
for commands in (service, reports, tasks, library, workers):
    app.add_typer(commands.app)
GROUPS = {
    "dataset": datasets.app, "job": jobs.app, "study": studies.app, "model": models.app, "artifact": artifacts.app,
    "evaluation": task_groups.evaluation, "exported": task_groups.exported, "prediction": task_groups.prediction,
}  # fmt: skip
for name, group in GROUPS.items():
    app.add_typer(group, name=name, rich_help_panel="Use a service")


def _print_version(wanted: bool) -> None:
    if wanted:
        from fgd import version

        print_line(f"fgd {version.ours()}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[  # the callback answers
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script. Errors that were foreseen end in a message, not a traceback."""
    from fgd.errors import FGDError

    try:
        app(prog_name="fgd")
    except (FGDError, OSError) as error:
        sys.exit(_tell(error))


def _tell(error: Exception) -> int:
    print_error(message_of(error))
    from fgd.cli.hub import HubAway, HubError
    from fgd.client import ApiError, ForeignAnswer, Unreachable
    from fgd.tracking.mlflow import TrackingAway, TrackingRefused

    match error:
        case ApiError(status=401):
            err.print("set FGD_API_KEY to the service's key", highlight=False)
            return REFUSED
        case ApiError(status=status) if status >= 500:
            err.print(Text(printable(f"request id: {error.request_id or 'none'}; see the service's log")))
            return UNREACHABLE
        case ApiError(code=code) if code.startswith("http_"):  # without a problem of ours
            note("this service answers differently; check the address, and any proxy on the way")
            return UNREACHABLE
        case Unreachable() | ForeignAnswer() | HubAway() | TrackingAway():
            return UNREACHABLE
        case ApiError() | HubError() | TrackingRefused():
            return REFUSED
    return exit_code(error)
