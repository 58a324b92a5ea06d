"""`fgd artifact ...`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, JobId, Url
from fgd.cli.printing import Columns, answer, byte_bars, fail, print_line, size_text, table
from fgd.process.exit_codes import FAILED, REFUSED
from fgd.text.printable import printable

if TYPE_CHECKING:
    from fgd.client import Artifact, Client

app = typer.Typer(no_args_is_help=True, help="List and download a job's result files.")


@app.command("list")
def artifact_list(job: JobId, as_json: AsJson = False, url: Url = URL) -> None:
    """List a job's result files."""
    with client_of(url) as client:
        columns: Columns = {"id": None, "name": None, "MB": "right", "sha256": None}
        answer(client.artifacts(job), as_json, table(columns, _cells))


def _cells(artifact: Artifact) -> list[str]:
    return [artifact.id, artifact.name, f"{artifact.size / 1e6:.2f}", artifact.sha256]


@app.command("download")
def artifact_download(
    job: JobId,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to; created if missing. [default: one with the job's name]",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="Only the file with this name; may be given several times.")
    ] = None,
    url: Url = URL,
) -> None:
    """Download a job's result files, and verify every checksum.

    An interrupted download goes on where it stopped; a file that is already there is not fetched again.
    """
    with client_of(url) as client:
        artifacts = client.artifacts(job)
        if not artifacts:
            fail(f"job {job} has no artifacts; it is {client.job(job).state}", FAILED)
        folder = to if to is not None else Path(folder_name(client.job(job).name))
        if missing := set(name or ()) - {found.name for found in artifacts}:
            have = ", ".join(found.name for found in artifacts)
            fail(f"job {job} has no artifact {', '.join(sorted(missing))}; it has: {have}", REFUSED)
        for artifact in artifacts:
            if not name or artifact.name in name:
                print_line(
                    f"{_download(client, artifact, folder)}  {size_text(artifact.size)}  sha256 {artifact.sha256} ok"
                )


def folder_name(name: str) -> str:
    """A job's name may be anything; a folder's may not."""
    return re.sub(r"[^\w.-]+", "_", name[:60]).strip(".") or "result"


def _download(client: Client, artifact: Artifact, folder: Path) -> Path:
    with byte_bars() as bars:
        task = bars.add_task(printable(artifact.name), total=artifact.size)
        return client.download(artifact, folder, lambda there: bars.update(task, completed=there))
