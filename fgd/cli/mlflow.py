"""`fgd job mlflow`: ended jobs as runs of an MLflow server, through this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.names import named
from fgd.cli.options import Url, job_ids
from fgd.cli.printing import fail, note, print_line
from fgd.cli.reports import whole_report
from fgd.process.exit_codes import REFUSED
from fgd.tracking.names import ADDRESS, EXPERIMENT

if TYPE_CHECKING:
    from fgd.client import Artifact, Client, Job
    from fgd.tracking.mlflow import MlflowServer
    from fgd.tracking.runs import TrackedFile

PIECE = 1 << 20
"""Bytes of a file that are sent at once."""

Jobs = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB...",
        help="Ids or names of jobs.",
        show_default=False,
        autocompletion=job_ids,
        callback=named("job"),
    ),
]


def job_mlflow(
    jobs: Jobs,
    tracking_uri: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", metavar="URL", help="Address of the MLflow server.")
    ],
    experiment: Annotated[
        str, typer.Option(envvar="MLFLOW_EXPERIMENT_NAME", help="Where the runs go; made if there is none.")
    ] = EXPERIMENT,
    url: Url = URL,
) -> None:
    """Copy ended jobs to an MLflow server: settings, figures, state and files.

    A job has one run, so copying it again adds what is missing. The server's account comes from
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN. MLflow need not be installed.

    Example: `fgd job mlflow JOB --tracking-uri http://127.0.0.1:5000`
    """
    from fgd.tracking.mlflow import Account, MlflowServer

    if ADDRESS.fullmatch(tracking_uri) is None:
        fail("--tracking-uri: it is http(s)://host:port, without an account or a query", REFUSED)
    with client_of(url) as client, MlflowServer(tracking_uri, Account.of_environment()) as server:
        found = [client.job(job) for job in jobs]
        for job in found:
            if not job.ended:
                fail(f"{job.id} is {job.state}; copy it once it has ended", REFUSED)
        place = server.experiment(experiment)
        for job in found:
            print_line(_copy(client, server, place, job, f"{url.rstrip('/')}/#/jobs/{job.id}"))


def _copy(client: Client, server: MlflowServer, experiment: str, job: Job, url: str) -> str:
    """Returns the run's address."""
    from fgd.tracking import runs

    told = runs.TrackedJob(
        id=job.id,
        name=job.name,
        state=job.state,
        spec=job.spec,
        labels=job.metadata,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        failure=f"{job.failure.code}: {job.failure.message}" if job.failure else None,
        url=url,
    )
    report = whole_report(client, job.id, "val").model_dump(mode="json")
    run = runs.open_run(server, experiment, told)
    runs.describe(server, run, told)
    runs.describe_result(server, run, report)
    runs.add_points(server, run, [client.metrics(job.id)], _nothing)
    runs.set_state(server, run, told)
    if server.takes_files(run):
        with tempfile.TemporaryDirectory() as folder:
            files = [_file(client, artifact, Path(folder)) for artifact in client.artifacts(job.id)]
            runs.add_files(server, run, files, _nothing)
        runs.add_files(server, run, runs.made_files(told, report, client.job_report_page(job.id)), _nothing)
    else:
        note(f"{job.id}: without its files: this MLflow keeps them at {run.files_at}, not at the server itself")
    return run.url(server.url)


def _file(client: Client, artifact: Artifact, folder: Path) -> TrackedFile:
    """Downloaded when it is needed, and gone once it was sent."""
    from fgd.tracking.runs import TrackedFile

    def content() -> Iterator[bytes]:
        path = client.download(artifact, folder)
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        path.unlink()

    return TrackedFile(artifact.name, artifact.size, content)


def _nothing() -> None:
    pass
