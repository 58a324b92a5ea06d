"""`fgd job ...`."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fgd.cli import facts
from fgd.cli.artifacts import folder_name
from fgd.cli.connection import URL, client_of
from fgd.cli.files import read_spec
from fgd.cli.names import named, with_ids
from fgd.cli.options import AsJson, JobId, NameFilter, Settings, SpecFile, Url
from fgd.cli.printing import Columns, answer, clock, err, fail, leave, note, out, print_line, show_one, table
from fgd.process.exit_codes import DONE, FAILED, REFUSED
from fgd.text.printable import printable

if TYPE_CHECKING:
    from fgd.client import Attempt, Checkpoint, Client, Job, MetricPoint, StoredEvent

TIMES = ["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]

app = typer.Typer(no_args_is_help=True, help="Submit jobs, watch them, cancel them.")


@app.command("submit")
def job_submit(
    spec: SpecFile = None,
    settings: Settings = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Submit a job and print its id.

    Options --set replace what the file says, in their order; VALUE is YAML or JSON. Without a file they are the spec.

    Examples:

    - `fgd job submit spec.yaml --set schedule.epochs=24 --set methods.0.kind=fgd`
    - `fgd job submit spec.json --set 'student={kind: fcos, backbone: resnet18}' --watch`
    """
    body = read_spec(spec, settings or ())
    with client_of(url) as client:
        job = client.submit(with_ids(client, body))
        answer(job, as_json, lambda job: print_line(job.id))
        if not watch and err.is_terminal:
            note(f"next: fgd job watch {job.id}")
        if watch:
            leave(_watch(client, job.id))


@app.command("list")
def job_list(
    state: Annotated[
        list[str] | None,
        typer.Option(help="queued, running, paused, succeeded, failed, cancelled; may be given several times."),
    ] = None,
    name: NameFilter = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="With this metadata; may be given several times.")
    ] = None,
    created_after: Annotated[
        datetime | None,
        typer.Option(formats=TIMES, metavar="TIME", help="Submitted at this time or later; local time."),
    ] = None,
    created_before: Annotated[
        datetime | None, typer.Option(formats=TIMES, metavar="TIME", help="Submitted before this time.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Jobs of this study.", callback=named("study"))
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List jobs, newest first. A job is listed if it matches all filters, and any of the given states.

    Examples:

    - `fgd job list --state running --state queued`
    - `fgd job list --name 'cells*' --metadata owner=ada --limit 500 --json`
    - `fgd job list --created-after 2026-11-01 --created-before 2026-12-01`
    """
    labels = dict(_label(text) for text in metadata or ())
    with client_of(url) as client:
        jobs = client.jobs(
            limit,
            states=state or (),
            name=name,
            metadata=labels,
            created_after=created_after,
            created_before=created_before,
            study=study,
        )
    columns: Columns = {"id": None, "name": None, "state": None, "epoch": None, "AP": "right", "created": None}
    answer(jobs, as_json, table(columns, _cells))


def _cells(job: Job) -> list[str]:
    from fgd.cli.watch import figures

    now = figures(job)
    return [
        job.id,
        job.name,
        f"{job.state}, {now.status}" if job.state == "running" else now.status,
        now.epoch.removeprefix("epoch "),
        now.ap.removeprefix("AP "),
        f"{job.created_at.astimezone():%Y-%m-%d %H:%M}",
    ]


@app.command("show")
def job_show(job: JobId, as_json: AsJson = False, url: Url = URL) -> None:
    """Show a job's state, result and settings. With --json, or in a pipe, it prints everything as JSON."""
    with client_of(url) as client:
        show_one(client.job(job), as_json, facts.of_job)


@app.command("watch")
def job_watch(job: JobId, url: Url = URL) -> None:
    """Watch a job to its end. Ctrl-C stops the watching, not the job; run the command again to continue watching.

    On a screen it draws how far the job is, and AP on the validation images above that of the control, if there is one.
    It waits while the service restarts. Exits 0 if the job succeeded, 1 if it failed or was cancelled.
    """
    with client_of(url) as client:
        leave(_watch(client, job))


@app.command("cancel")
def job_cancel(
    job: JobId,
    now: Annotated[bool, typer.Option("--now", help="Kill it. By default it saves a checkpoint first.")] = False,
    url: Url = URL,
) -> None:
    """Cancel a job: it ends without a result."""
    with client_of(url) as client:
        found = client.cancel(job, "now" if now else "graceful")
    print_line(f"{found.id}  {found.state if found.ended else 'cancelling'}")


@app.command("pause")
def job_pause(job: JobId, url: Url = URL) -> None:
    """Pause a job. A running one saves a checkpoint first, then releases its device."""
    with client_of(url) as client:
        found = client.pause(job)
    print_line(f"{found.id}  {'pausing' if found.state == 'running' else found.state}")


@app.command("resume")
def job_resume(job: JobId, url: Url = URL) -> None:
    """Resume a paused job from its last checkpoint."""
    with client_of(url) as client:
        found = client.resume(job)
    print_line(f"{found.id}  {found.state}")


@app.command("stop")
def job_stop(job: JobId, url: Url = URL) -> None:
    """Finish a job early: its best weights so far become the result.

    `cancel` ends a job without a result.
    """
    with client_of(url) as client:
        found = client.stop(job)
    print_line(f"{found.id}  {found.state if found.ended else 'finishing early'}")


@app.command("change")
def job_change(
    job: JobId,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Higher runs first; for a job that has not ended.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Add or replace a label; may be repeated.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Remove a label; may be repeated.")] = None,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Change a job's name, priority or labels, at any time.

    Example: `fgd job change JOB --priority 10 --metadata owner=ada --drop try`
    """
    given, dropped = dict(_label(text) for text in metadata or ()), set(drop or ())
    if name is None and priority is None and not given and not dropped:
        fail("nothing to change: give --name, --priority, --metadata or --drop", REFUSED)
    if both := sorted(given.keys() & dropped):
        fail(f"--metadata and --drop both name {', '.join(both)}", REFUSED)
    with client_of(url) as client:
        labels = None
        if given or dropped:
            before = client.job(job).metadata
            if absent := sorted(dropped - before.keys()):
                have = f"it has {', '.join(sorted(before))}" if before else "it has none"
                fail(f"{job} has no label {', '.join(absent)}; {have}", REFUSED)
            labels = {key: value for key, value in (before | given).items() if key not in dropped}
        changed = client.change(job, name=name, metadata=labels, priority=priority)
    answer(changed, as_json, lambda job: print_line(f"{job.id}  changed"))


@app.command("delete")
def job_delete(job: JobId, url: Url = URL) -> None:
    """Delete a job that has ended, with its log, metrics and files. Refused while another job needs its weights."""
    with client_of(url) as client:
        client.delete_job(job)
    print_line(f"{job}  deleted")


@app.command("attempts")
def job_attempts(job: JobId, as_json: AsJson = False, url: Url = URL) -> None:
    """List each time a worker took the job: where, how it ended, and how many steps were lost."""
    with client_of(url) as client:
        columns: Columns = {
            "attempt": "right", "host": None, "device": None, "started": None, "ended": None, "outcome": None,
            "exit": None, "steps": "right", "lost": "right", "reason": None,
        }  # fmt: skip
        answer(client.attempts(job), as_json, table(columns, _cells_of_attempt))


def _cells_of_attempt(attempt: Attempt) -> list[str]:
    return [
        str(attempt.attempt),
        attempt.host,
        attempt.device or "-",
        clock(attempt.started_at),
        clock(attempt.finished_at) if attempt.finished_at else "-",
        attempt.outcome or "running",
        attempt.signal or ("-" if attempt.exit is None else str(attempt.exit)),
        str(attempt.steps_done),
        str(attempt.lost_steps),
        f"{attempt.code}: {attempt.reason}" if attempt.code else attempt.reason or "",
    ]


@app.command("checkpoints")
def job_checkpoints(job: JobId, as_json: AsJson = False, url: Url = URL) -> None:
    """List the weights of a job that can be promoted to a model: the last, the best, and the pinned checkpoints."""
    with client_of(url) as client:
        columns: Columns = {"id": None, "step": "right", "MB": "right", "kept as": None, "created": None}
        answer(client.checkpoints(job), as_json, table(columns, _cells_of_checkpoint))


def _cells_of_checkpoint(kept: Checkpoint) -> list[str]:
    return [
        kept.id,
        "-" if kept.step is None else str(kept.step),
        f"{kept.size / 1e6:.1f}",
        " ".join(word for word, true in (("best", kept.best), ("pinned", kept.pinned)) if true) or "-",
        f"{kept.created_at.astimezone():%Y-%m-%d %H:%M}",
    ]


@app.command("pin")
def job_pin(
    job: JobId,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Id of a checkpoint: ckpt_...", show_default=False)
    ],
    off: Annotated[bool, typer.Option("--off", help="Unpin it: it is kept only as long as others.")] = False,
    url: Url = URL,
) -> None:
    """Keep a checkpoint when newer ones come, and after the job's end."""
    with client_of(url) as client:
        found = client.unpin(job, checkpoint) if off else client.pin(job, checkpoint)
    print_line(f"{found.id}  {'pinned' if found.pinned else 'not pinned'}")


@app.command("events")
def job_events(
    job: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job has ended.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Print the events of a job, one per line.

    Examples: `fgd job events JOB --follow`; `fgd job events JOB --follow --after 17 --json | jq .type`
    """

    def show(event: StoredEvent) -> None:
        if event.seq > after:
            print_line(event.model_dump_json() if as_json else _event_line(event))

    with client_of(url) as client:
        if follow:
            for event in client.follow(job, after):
                show(event)
            return
        for event in client.events(job, after):
            show(event)


@app.command("logs")
def job_logs(
    job: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which attempt. [default: the last]")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job has ended.")] = False,
    url: Url = URL,
) -> None:
    """Print what the trainer wrote to its log."""
    write = _log_writer()
    with client_of(url) as client:
        offset, reading = 0, attempt
        while True:
            ended = not follow or client.job(job).ended  # asked before reading: then nothing is missed
            while (chunk := client.logs(job, attempt, offset)).content or chunk.attempt != reading:
                if chunk.attempt != reading:  # a new attempt has a new log
                    offset, reading = 0, chunk.attempt
                    continue
                write(chunk.content)
                offset = chunk.next_offset
            sys.stdout.buffer.flush()
            if ended:
                return
            time.sleep(1.0)


@app.command("metrics")
def job_metrics(
    job: JobId,
    name: Annotated[str | None, typer.Option(help="Print all points of this series.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split: val or test.")] = None,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Print the last value of every series, or all values of one."""
    with client_of(url) as client:
        points = client.metrics(job, name, split) if name else client.latest(job)
    points = [point for point in points if split is None or point.split == split]
    columns: Columns = {"series": None, "split": None, "step": "right", "value": "right"}
    answer(points, as_json, table(columns, _cells_of_point))


@app.command("tensorboard")
def job_tensorboard(
    jobs: Annotated[
        list[str],
        typer.Argument(help="Ids or names of jobs.", metavar="JOB...", show_default=False, callback=named("job")),
    ],
    to: Annotated[Path, typer.Option(help="Folder to write to; each job gets its own in it.", file_okay=False)] = Path(
        "tensorboard"
    ),
    url: Url = URL,
) -> None:
    """Write losses, rates and AP of jobs as TensorBoard event files.

    Look at them with `tensorboard --logdir FOLDER`. The command needs no TensorBoard. Run again, it brings what a
    running job has reported since.
    """
    with client_of(url) as client:
        for job in jobs:
            found = client.job(job)
            print_line(str(client.tensorboard(found.id, to / f"{folder_name(found.name)}-{found.id}")))


def _cells_of_point(point: MetricPoint) -> list[str]:
    value = "-" if point.value is None else f"{point.value:.6g}"
    return [point.name, point.split or "", str(point.step), value]


def _watch(client: Client, job_id: str) -> int:
    from fgd.cli.curve import ApCurve
    from fgd.cli.watch import Board, told

    job = client.job(job_id)
    curve = ApCurve(client)
    with Board(out, [job.name]) as board:

        def on_event(event: StoredEvent) -> None:
            if text := told(event):
                board.say(job.name, text)

        def on_job(seen: Job | None) -> None:
            board.draw(curve.of(seen))
            board.show(job.name, seen)

        job = client.wait(job_id, on_event, on_job)
    if not out.is_terminal:  # on a screen they stand there already
        for line in curve.lines:
            print_line(line)
    if job.state == "succeeded":
        print_line(f"{job.id} succeeded; next: fgd artifact download {job.id}, fgd report {job.id} --html report.html")
        return DONE
    reason = f": {job.failure.code}: {job.failure.message}" if job.failure else ""
    err.print(Text(printable(f"{job.id} {job.state}{reason}", keep="\n"), style="red"))
    if job.failure:
        if job.failure.advice:
            err.print(Text(printable(f"advice: {job.failure.advice}", keep="\n")), soft_wrap=True)
        err.print(Text(printable(f"next: fgd job logs {job.id}")))
    return FAILED


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        fail(f"--metadata {text}: write KEY=VALUE, as in --metadata owner=ada", REFUSED)
    return key, value


def _log_writer() -> Callable[[bytes], None]:
    """Writes pieces of a log: as they are into a file or pipe, to a screen without what would steer it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a piece may end within a character

    def write(piece: bytes) -> None:
        if sys.stdout.isatty():
            typer.echo(printable(decoder.decode(piece), keep="\n\t"), nl=False)
        else:
            sys.stdout.buffer.write(piece)

    return write


def _event_line(event: StoredEvent) -> str:
    data = " ".join(f"{key}={_short(value)}" for key, value in event.data.items())
    attempt = f"attempt {event.attempt}" if event.attempt else ""
    return f"{event.seq:>5}  {event.at.astimezone():%H:%M:%S}  {attempt:<10}  {event.type}  {data}".rstrip()


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
