"""`fgd study plan`: how many jobs a study would have, and what they would cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fgd.cli.connection import URL, client_of
from fgd.cli.names import with_ids
from fgd.cli.options import AsJson, Settings, Url
from fgd.cli.printing import Columns, err, leave, note, print_line, table
from fgd.cli.studies import Arms, Control, Seeds, StudyFile, StudyName, body_of
from fgd.process.exit_codes import DONE, FAILED
from fgd.text.printable import printable

if TYPE_CHECKING:
    from fgd.client import Client, OutlinedRun, Plan, StudyOutline


def study_plan(
    spec: StudyFile = None,
    settings: Settings = None,
    arm: Arms = None,
    seeds: Seeds = None,
    name: StudyName = None,
    control: Control = True,
    wait: Annotated[bool, typer.Option(help="Wait until a worker has tried a few steps of each run.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Show which jobs a study would have and what they would cost, without submitting it.

    A worker tries a few steps of one job of each arm and student, one after the other.

    Example: `fgd study plan job.json --arm fgd --arm mimic --seeds 0-2`
    """
    body = body_of(spec, settings, arm, seeds, name, control)
    with client_of(url) as client:
        outline = client.outline_study(with_ids(client, body))
        if not as_json:
            note(f"{outline.jobs} jobs")
        plans = list(_plans(client, outline.runs, wait))
    if as_json:
        found = {**outline.model_dump(mode="json"), "plans": [plan.model_dump(mode="json") for plan in plans]}
        print_line(json.dumps(found, indent=2), keep="\n")
    else:
        _show(outline, plans)
    leave(FAILED if any(plan.state == "failed" for plan in plans) else DONE)


def _plans(client: Client, runs: Sequence[OutlinedRun], wait: bool) -> Iterator[Plan]:
    """Of one job of each run, when it has been measured."""
    for place, run in enumerate(runs if wait else (), start=1):
        with err.status(Text(printable(f"a worker is trying a few steps: {run.arm}, {place} of {len(runs)}"))):
            plan = client.plan(run.spec)
            yield plan if plan.ended else client.wait_plan(plan.id)


def _show(outline: StudyOutline, plans: Sequence[Plan]) -> None:
    from fgd.cli.plan_lines import hours

    costs = [plan.measured for plan in plans] or [None] * len(outline.runs)
    columns: Columns = {
        "arm": None, "student": None, "against": None, "jobs": "right", "one job": "right", "memory": "right",
    }  # fmt: skip
    table(columns, lambda cells: cells)(
        [
            run.arm, run.student, run.against or "-", str(run.jobs),
            hours(cost.hours) if cost is not None else "-",
            f"{cost.memory_peak_mb:.0f} MiB" if cost is not None else "-",
        ]
        for run, cost in zip(outline.runs, costs, strict=True)
    )  # fmt: skip
    known = [cost.hours * run.jobs for run, cost in zip(outline.runs, costs, strict=True) if cost is not None]
    if len(known) == len(outline.runs):
        note(f"{outline.jobs} jobs: {hours(sum(known))} if they run one after the other")
    for run, plan in zip(outline.runs, plans, strict=False):
        if plan.error is not None:
            note(f"{run.arm}, {run.student}: {plan.error.code}: {plan.error.message}")
