"""`fgd study ...`: methods, students and seeds compared."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from fgd.cli.connection import URL, client_of
from fgd.cli.facts import moment
from fgd.cli.files import read_spec
from fgd.cli.names import named, with_ids
from fgd.cli.options import AsJson, NameFilter, NewName, Settings, Url
from fgd.cli.printing import Columns, answer, err, fail, leave, out, print_json, print_line, show_one, table
from fgd.process.exit_codes import DONE, FAILED, REFUSED
from fgd.text.printable import printable

if TYPE_CHECKING:
    from fgd.client import BoardRow, Client, Interval, Leaderboard, Study

app = typer.Typer(no_args_is_help=True, help="Compare methods, students and seeds: a grid of jobs with a leaderboard.")

StudyId = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="Id (std_...) or name of a study.", show_default=False, callback=named("study")
    ),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        metavar="NAME[=METHODS]",
        help='An arm: fgd, or \'focal only={"kind": "fgd", "lambda": 0}\', or \'both=[...]\'; may be repeated.',
    ),
]
Seeds = Annotated[str | None, typer.Option(metavar="0,1,2", help="Seeds; 0-4 are five.")]
StudyFile = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE", help="A study, or a job's spec to make one of, YAML or JSON; - reads standard input."
    ),
]
StudyName = Annotated[str | None, typer.Option("--name", help="Its name. [default: the file's]")]
Control = Annotated[bool, typer.Option("--control/--no-control", help="Add the arms without methods to compare with.")]


@app.command("submit")
def study_submit(
    spec: StudyFile = None,
    settings: Settings = None,
    arm: Arms = None,
    seeds: Seeds = None,
    name: StudyName = None,
    control: Control = True,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Submit a study and print its id. Options replace what the file says.

    Examples:

    - `fgd study submit study.yaml --set schedule.epochs=24`
    - `fgd study submit job.json --arm fgd --arm mimic --seeds 0-2 --watch`
    """
    body = body_of(spec, settings, arm, seeds, name, control)
    with client_of(url) as client:
        study = client.submit_study(with_ids(client, body))
        answer(study, as_json, lambda study: print_line(study.id))
        if not as_json:
            err.print(Text(f"{study.jobs.get('total', 0)} jobs: {plan_of(study)}"), soft_wrap=True)
        if watch:
            leave(_watch(client, study.id))


@app.command("list")
def study_list(
    state: Annotated[
        list[str] | None,
        typer.Option(help="queued, running, paused, succeeded, failed, cancelled; may be given several times."),
    ] = None,
    name: NameFilter = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most.")] = 20,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """List studies, newest first."""
    with client_of(url) as client:
        found = client.studies(limit, name=name, states=state or ())
    columns: Columns = {"id": None, "name": None, "state": None, "ended": "right", "jobs": "right", "created": None}
    answer(found, as_json, table(columns, _cells))


def _cells(study: Study) -> list[str]:
    ended = sum(study.jobs.get(state, 0) for state in ("succeeded", "failed", "cancelled"))
    total, created = study.jobs.get("total", 0), f"{study.created_at.astimezone():%Y-%m-%d %H:%M}"
    return [study.id, study.name, study.state, str(ended), str(total), created]


@app.command("show")
def study_show(
    study: StudyId,
    split: Annotated[str, typer.Option(help="val or test: whose images the AP is of.")] = "val",
    wait: Annotated[bool, typer.Option(help="Wait for the intervals over images.")] = True,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the leaderboard as CSV.")] = False,
    as_json: AsJson = False,
    url: Url = URL,
) -> None:
    """Show a study's leaderboard: AP, the difference to the control with its 95 % interval, cost, time to quality.

    With --json, or in a pipe, it prints the leaderboard as JSON, with every run.
    """
    if split not in ("val", "test"):
        fail(f"--split {split}: it is val or test", REFUSED)
    chosen: Literal["val", "test"] = "test" if split == "test" else "val"
    with client_of(url) as client:
        board = client.leaderboard(study, chosen)
        if wait and board.pending:
            with err.status(Text("intervals over images are being worked out; Ctrl-C ends the waiting")):
                while board.pending:
                    time.sleep(1.0)
                    board = client.leaderboard(study, chosen)
        if as_csv:
            print_line(client.leaderboard_csv(study, chosen).rstrip(), keep="\r\n")
            return
        if as_json or not out.is_terminal:
            print_json(board)
            return
        show_one(client.study(study), False, facts_of)
    show_board(board)


@app.command("watch")
def study_watch(study: StudyId, url: Url = URL) -> None:
    """Watch a study to its end. Ctrl-C stops the watching, not the study.

    Exits 0 if all its jobs succeeded, 1 if any failed or was cancelled.
    """
    with client_of(url) as client:
        leave(_watch(client, study))


@app.command("extend")
def study_extend(
    study: StudyId, seeds: Seeds = None, arm: Arms = None, as_json: AsJson = False, url: Url = URL
) -> None:
    """Add seeds, or arms. What the study has already is left as it is.

    Example: `fgd study extend STUDY --seeds 3,4`
    """
    if not seeds and not arm:
        fail("nothing to add: give --seeds or --arm", REFUSED)
    added = [arm_of(text) for text in arm or ()]
    with client_of(url) as client:
        found = client.extend_study(study, seeds=seeds_of(seeds) if seeds else (), arms=added)
    answer(found, as_json, lambda study: print_line(f"{study.id}  {study.jobs.get('total', 0)} jobs: {plan_of(study)}"))


@app.command("retry")
def study_retry(study: StudyId, url: Url = URL) -> None:
    """Make a new job in place of each that failed, was cancelled or was deleted."""
    with client_of(url) as client:
        found = client.retry_study(study)
    print_line(f"{found.id}  {found.state}")


@app.command("pause")
def study_pause(study: StudyId, url: Url = URL) -> None:
    """Pause all jobs that have not ended. Those that run save a checkpoint first."""
    with client_of(url) as client:
        found = client.pause_study(study)
    print_line(f"{found.id}  {'pausing' if found.state == 'running' else found.state}")


@app.command("resume")
def study_resume(study: StudyId, url: Url = URL) -> None:
    """Resume all paused jobs."""
    with client_of(url) as client:
        found = client.resume_study(study)
    print_line(f"{found.id}  {found.state}")


@app.command("cancel")
def study_cancel(
    study: StudyId,
    now: Annotated[bool, typer.Option("--now", help="Kill them. By default each saves a checkpoint first.")] = False,
    url: Url = URL,
) -> None:
    """Cancel all jobs that have not ended. Those that have keep their results."""
    with client_of(url) as client:
        found = client.cancel_study(study, "now" if now else "graceful")
    print_line(f"{found.id}  {found.state if found.ended else 'cancelling'}")


@app.command("change")
def study_change(study: StudyId, name: NewName, as_json: AsJson = False, url: Url = URL) -> None:
    """Give a study another name."""
    with client_of(url) as client:
        changed = client.change_study(study, name=name)
    answer(changed, as_json, lambda study: print_line(f"{study.id}  changed"))


@app.command("delete")
def study_delete(
    study: StudyId,
    jobs: Annotated[bool, typer.Option("--jobs", help="Delete its jobs too. By default they stay.")] = False,
    url: Url = URL,
) -> None:
    """Delete a study whose jobs have all ended."""
    with client_of(url) as client:
        client.delete_study(study, jobs=jobs)
    print_line(f"{study}  deleted")


# --- what is typed --------------------------------------------------------------------------------------------


def body_of(
    spec: str | None,
    settings: list[str] | None,
    arm: list[str] | None,
    seeds: str | None,
    name: str | None,
    control: bool,
) -> dict[str, Any]:
    """A study's body as the file and the options say it."""
    body = as_study(read_spec(spec, settings or (), "study"), spec or "--set")
    given = {"arms": [arm_of(text) for text in arm or ()], "seeds": seeds_of(seeds) if seeds else [], "name": name}
    body |= {field: value for field, value in given.items() if value}
    return body if control else body | {"control": False}


def as_study(body: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A study's body as it is; of a job's spec one with the same methods, student and seed."""
    study = dict(body)
    if "arms" in study or not study.keys() & {"methods", "student", "seed"}:
        return study
    if both := study.keys() & {"students", "seeds"}:
        fail(f"{source}: {min(both)} belongs to a study, which has arms; methods, student, seed to a job", REFUSED)
    methods, student, seed = study.pop("methods", []), study.pop("student", {}), study.pop("seed", 0)
    kinds = [str(method.get("kind")) for method in methods if isinstance(method, dict)] if methods else []
    arms = [{"name": " + ".join(kinds)[:40] or "methods", "methods": methods}] if methods else []
    return {**study, "arms": arms, "students": [student], "seeds": [seed]}


def arm_of(text: str) -> dict[str, Any]:
    """ "fgd", or a name and its methods as JSON."""
    from fgd.text.strict_json import NotJSON, parse

    name, equals, said = text.partition("=")
    if not equals:
        return {"name": name, "methods": [{"kind": name}]}
    try:
        methods = parse(said)
    except NotJSON as error:
        fail(f'--arm {name}: {error}; write --arm \'{name}={{"kind": "fgd"}}\'', REFUSED)
    if not isinstance(methods, dict | list):
        fail(f"--arm {name}: a method {{...}} or a list of them belongs behind the =", REFUSED)
    return {"name": name, "methods": methods if isinstance(methods, list) else [methods]}


def seeds_of(text: str) -> list[int]:
    """ "0,1,4-6" """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part)
        if match is None:
            fail(f"--seeds {text}: write numbers, as in 0,1,2 or 0-4", REFUSED)
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if not first <= last < first + 1000:
            fail(f"--seeds {text}: {part.strip()} is no range of at most 1000 seeds", REFUSED)
        found += range(first, last + 1)
    return found


# --- what is shown --------------------------------------------------------------------------------------------


def facts_of(study: Study) -> Iterable[tuple[str, str]]:
    yield "id", study.id
    yield "name", study.name
    yield "state", f"{study.state}; {counts(study)}"
    yield "plan", f"{study.jobs.get('total', 0)} jobs: {plan_of(study)}"
    yield "created", moment(study.created_at)
    yield "finished", moment(study.finished_at)


def plan_of(study: Study) -> str:
    sizes = (len(study.arms), "arm"), (len(study.students), "student"), (len(study.seeds), "seed")
    return " x ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in sizes)


def counts(study: Study) -> str:
    return ", ".join(f"{count} {state}" for state, count in study.jobs.items() if count and state != "total")


def show_board(board: Leaderboard) -> None:
    """As a table; below it what keeps figures from being there."""
    several = len({row.student for row in board.rows}) > 1
    columns: Columns = {
        "arm": None,
        **({"student": None} if several else {}),
        "runs": "right",
        f"AP ({board.split})": "right",
        "difference [95 % over seeds]": "right",
        "[95 % over seeds and images]": "right",
        "gap closed": "right",
        "device time": "right",
        "control's AP after": "right",
    }

    def cells(row: BoardRow) -> list[str]:
        return _board_cells(row, several)

    table(columns, cells)(board.rows)
    reasons = {row.images_reason for row in board.rows if row.images_reason}
    for reason in sorted(reasons):
        err.print(Text(printable(f"no interval over images: {reason}")), soft_wrap=True)
    failed = [(row, run) for row in board.rows for run in row.runs if run.state == "failed"]
    for row, run in failed:
        told = f"{row.arm}, seed {run.seed}: {run.job} failed: {run.failure}"
        err.print(Text(printable(told), style="red"), soft_wrap=True)


def _board_cells(row: BoardRow, several: bool) -> list[str]:
    quality = row.quality
    reached = "-"
    if quality is not None and quality.step is not None:
        share = f" ({quality.steps_ratio:.0%})" if quality.steps_ratio is not None else ""
        reached = f"step {quality.step:.0f}{share}, {quality.reached} of {quality.runs}"
    elif quality is not None:
        reached = f"never, 0 of {quality.runs}"
    return [
        row.arm,
        *([row.student] if several else []),
        f"{row.succeeded}/{len(row.runs)}",
        "-" if row.ap is None else f"{row.ap:.1f}",
        "-" if row.difference is None else f"{row.difference.value:+.1f} {bounds(row.difference)}".rstrip(),
        bounds(row.difference_over_images) or "-",
        "-" if row.gap_closed is None else f"{row.gap_closed.value:.0%}",
        "-" if row.device_seconds is None else duration(row.device_seconds),
        reached,
    ]


def bounds(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"[{interval.low:+.1f}, {interval.high:+.1f}]"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _watch(client: Client, study_id: str) -> int:
    said: Sequence[str] = ()

    def show(study: Study | None) -> None:
        nonlocal said
        now = ["the service does not answer"] if study is None else [f"{study.state}: {counts(study)}"]
        if now != said:
            said = now
            print_line(f"{time.strftime('%H:%M:%S')}  {now[0]}")

    study = client.wait_study(study_id, show)
    print_line(f"{study.id} {study.state}; next: fgd study show {study.id}")
    return DONE if study.state == "succeeded" else FAILED
