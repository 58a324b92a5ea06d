"""`fgd job plan`: what a job would do and cost, or which student fits a latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fgd.cli.connection import URL, client_of
from fgd.cli.files import read_spec
from fgd.cli.names import named, with_ids
from fgd.cli.options import (
    AsJson,
    Budget,
    RuntimeOption,
    SearchSeconds,
    Settings,
    SpecFile,
    StudentSize,
    StudentThreads,
    Url,
)
from fgd.cli.printing import answer, err, leave, print_line
from fgd.process.exit_codes import DONE, FAILED
from fgd.text.printable import printable

if TYPE_CHECKING:
    from fgd.client import Plan


def job_plan(
    spec: SpecFile = None,
    settings: Settings = None,
    budget: Budget = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="With --budget: id or name of the data set.", show_default=False, callback=named("dataset")),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="With --budget: the teacher, a job or a model.", show_default=False, callback=named("job", "model")
        ),
    ] = None,
    runtime: RuntimeOption = "onnxruntime",
    threads: StudentThreads = None,
    size: StudentSize = None,
    seconds: SearchSeconds = None,
    wait: Annotated[bool, typer.Option(help="Wait until a worker has tried a few steps.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Show what a job would do and cost, without submitting it.

    With --budget 15ms --dataset DATASET instead of a spec: a worker builds, exports and times students, and the table
    shows which fit, the largest first. --json adds a spec for each, which `fgd job submit` takes.
    """
    from fgd.cli.plan_lines import outline_lines, strength_lines

    if (spec is None and not settings) == (budget is None):
        raise typer.BadParameter("give either a spec or --budget")
    if budget is not None:
        leave(_find_student(_question(budget, dataset, teacher, runtime, threads, size, seconds), wait, as_json, url))
    body = read_spec(spec, settings or ())
    with client_of(url) as client:
        body = with_ids(client, body)
        plan = client.plan(body)
        if not as_json and plan.outline is not None:
            for line in (*outline_lines(plan.outline), *strength_lines(body)):
                print_line(line)
        if wait and not plan.ended:
            with err.status(Text(printable(plan.waiting_reason or "a worker is trying a few steps"))):
                plan = client.wait_plan(plan.id)
    answer(plan, as_json, _print_cost)
    leave(FAILED if plan.state == "failed" else DONE)


def _question(
    budget: str,
    dataset: str | None,
    teacher: str | None,
    runtime: str,
    threads: int | None,
    size: tuple[int, int] | None,
    seconds: float | None,
) -> Mapping[str, Any]:
    """Ids and numbers are checked by the service."""
    from fgd.budget import milliseconds

    if dataset is None:
        raise typer.BadParameter("--budget needs --dataset, the id or name of a data set")
    kind = "job" if teacher is not None and teacher.startswith("job_") else "model"
    return {
        "dataset": dataset,
        "latency_budget_ms": milliseconds(budget),
        "runtime": runtime,
        **({"teacher": {kind: teacher}} if teacher is not None else {}),
        **({"threads": threads} if threads is not None else {}),
        **({"size": {"min_size": size[0], "max_size": size[1]}} if size is not None else {}),
        **({"seconds": seconds} if seconds is not None else {}),
    }


def _find_student(question: Mapping[str, Any], wait: bool, as_json: bool, url: str) -> int:
    """The exit code."""
    with client_of(url) as client:
        plan = client.find_student(question)
        if wait and not plan.ended:
            with err.status(Text(printable(plan.waiting_reason or "a worker is looking for students"))) as status:

                def show(seen: Plan | None) -> None:
                    if seen is not None and (said := seen.phase or seen.waiting_reason):
                        status.update(Text(printable(said)))

                plan = client.wait_plan(plan.id, show)
    answer(plan, as_json, _print_students)
    return FAILED if plan.state == "failed" else DONE


def _print_students(plan: Plan) -> None:
    if plan.students is not None:
        from fgd.text.budget_table import print_table

        print_table(plan.students)
    elif plan.error is None:
        print_line(f"{plan.id}: {plan.phase or plan.waiting_reason or plan.state}")
    else:
        _print_cost(plan)


def _print_cost(plan: Plan) -> None:
    from fgd.cli.plan_lines import measured_lines

    if plan.measured is not None:
        for line in measured_lines(plan.measured):
            print_line(line)
    elif plan.error is not None:
        where = f"{plan.error.pointer}: " if plan.error.pointer else ""
        told = printable(f"{plan.error.code}: {where}{plan.error.message}", keep="\n")
        err.print(told, style="red", markup=False, highlight=False)
