"""`fgd report`, which is `fgd job report` too: a job beside its control and its teacher."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from fgd.cli.connection import URL, client_of
from fgd.cli.options import AsJson, JobId, Url
from fgd.cli.printing import err, fail, out, print_json, print_line
from fgd.process.exit_codes import REFUSED

if TYPE_CHECKING:
    from fgd.client import Client, JobReport


app = typer.Typer()


@app.command("report", rich_help_panel="Use a service")
def job_report(
    job: JobId,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as one HTML page that opens offline.", dir_okay=False)
    ] = None,
    split: Annotated[str, typer.Option(help="val or test: whose images the figures are of.")] = "val",
    wait: Annotated[bool, typer.Option(help="Wait until all is worked out.")] = True,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Show a job beside its control and its teacher: AP, the difference with its interval, sizes, latency, gap closed.

    With --json, or in a pipe, it prints everything as JSON. Example: `fgd report JOB --html report.html`
    """
    if split not in ("val", "test"):
        fail(f"--split {split}: it is val or test", REFUSED)
    chosen: Literal["val", "test"] = "test" if split == "test" else "val"
    if html is not None and not html.absolute().parent.is_dir():
        fail(f"--html {html}: there is no folder {html.absolute().parent}", REFUSED)
    with client_of(url) as client:
        report = whole_report(client, job, chosen) if wait else client.job_report(job, chosen)
        if html is not None:
            html.write_text(client.job_report_page(job, chosen), encoding="utf-8")
            print_line(str(html))
            return
    if as_json or not out.is_terminal:
        print_json(report)
        return
    for line in report_lines(report):
        print_line(line)


def whole_report(client: Client, job: str, split: Literal["val", "test"]) -> JobReport:
    """Once all its figures are worked out."""
    report = client.job_report(job, split)
    if report.pending:
        told = "figures, latency and pictures are being worked out; --no-wait shows what there is"
        with err.status(Text(told)):
            while report.pending:
                time.sleep(0.5)
                report = client.job_report(job, split)
    return report


def report_lines(report: JobReport) -> Iterator[str]:
    yield f"{report.job}  {report.name}  {report.state}, {report.split} images of {report.dataset_name}"
    for each in report.networks:
        ap, size = each.get("ap"), each.get("bytes")
        facts = [
            f"AP {ap:.1f}" if ap is not None else "AP not known",
            f"{each['parameters']:,} parameters" if each.get("parameters") else None,
            f"{size / 1e6:.1f} MB" if size else None,
            f"{each['gflops']:.1f} GFLOPs" if each.get("gflops") else None,
            *(_time(speed) for speed in each.get("speeds") or ()),
        ]
        yield f"{each.get('role')}  {each.get('name')}  {', '.join(fact for fact in facts if fact)}"
    if report.comparison is not None:
        yield from _compared(report.comparison)
    elif report.control_request is not None:
        yield "no control was run; this trains it:"
        yield from str(report.control_request.get("command", "")).splitlines()


def _time(speed: dict[str, Any]) -> str:
    time_ = speed["time"]
    return f"batch of {speed['batch']}: {time_['median_ms']:.1f} ms ({time_['p10_ms']:.1f} to {time_['p90_ms']:.1f})"


def _compared(found: dict[str, Any]) -> Iterator[str]:
    names = {
        "difference": "AP points above the control, over seeds",
        "difference_over_images": "AP points above the control, over seeds and images",
        "gap_closed": "share of the gap to the teacher closed",
    }
    for name, words in names.items():
        if (each := found.get(name)) is not None:
            known = each.get("low") is not None and each.get("high") is not None
            ends = f" ({each['low']:+.2f} to {each['high']:+.2f})" if known else ""
            yield f"{words}: {each['value']:+.2f}{ends}"
