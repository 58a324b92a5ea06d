"""`fgd job table`: jobs sorted by AP or by their gain over the control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, Url
from fgd.cli.printing import Columns, answer, table

if TYPE_CHECKING:
    from fgd.client import Summary


def job_table(
    sort: Annotated[
        str, typer.Option(help="created, name, state, ap or gain; with a minus the greatest first.")
    ] = "-gain",
    search: Annotated[str, typer.Option(help="Text in the name or in a label, or a whole id.")] = "",
    state: Annotated[list[str] | None, typer.Option(help="Of this state; may be given several times.")] = None,
    worse: Annotated[bool, typer.Option("--worse", help="Only jobs that are worse than their control.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many to list at most.")] = 50,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List jobs with their AP and their gain over the control: the same student, trained without a teacher.

    Examples:

    - `fgd job table`
    - `fgd job table --sort ap --state running`
    - `fgd job table --worse`
    """
    with client_of(url) as client:
        found = client.summaries(limit, sort=sort, search=search, states=state or (), worse=worse)
    columns: Columns = {
        "id": None, "name": None, "state": None, "methods": None, "AP": "right", "control": "right", "gain": "right",
    }  # fmt: skip
    answer(found, as_json, table(columns, _cells))


def _cells(job: Summary) -> list[str]:
    scores = ["" if value is None else f"{value:.1f}" for value in (job.ap, job.control_ap)]
    gain = "" if job.gain is None else f"{job.gain:+.1f}"
    return [job.id, job.name, job.state, ", ".join(job.methods), *scores, gain]
