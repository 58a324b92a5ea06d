"""The demo: a teacher, a student distilled from it, and the same student without it, through the REST API.

Knows the client, and how to start the service as a child process. Knows no torch: the one step that loads weights is
a child process too (`fgd.export.measure`). What it has begun is written to <home>/demo.json first and found again
there, so it can be ended at any time and goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.text import Text

from fgd.cli.compare import curve, curve_table, footnote, measure, row, score, table
from fgd.cli.embedded import ServiceDied, handling, service_at
from fgd.cli.watch import Board, report_lines, told
from fgd.client import ApiError, Client, Dataset, Job, StoredEvent
from fgd.data.index import Report
from fgd.detector_specs import FCOS
from fgd.errors import FGDError, WeightsError
from fgd.method_specs import FGD, MethodSpec
from fgd.result_files import MANIFEST, RECIPE, WEIGHTS
from fgd.spec import AdamW, JobSpec, Resources, Schedule
from fgd.spec_fields import TeacherFromJob
from fgd.text.printable import printable

VERSION = 2
"""Raise it when an older demo's work must not be taken up: what was begun under another number is left alone."""

ROLES = ("teacher", "control", "student")
"""In the order they run: one device, one job at a time."""


# --- what is trained ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoPlan:
    """The networks, and how long each learns. Control and student share network, schedule and seed."""

    teacher: FCOS
    teacher_schedule: Schedule
    student: FCOS
    student_schedule: Schedule
    methods: tuple[MethodSpec, ...] = (FGD(),)
    seed: int = 0
    minutes: float = 20.0
    """Forecast for all three on two cores."""


def plan(report: Report, own_data: bool) -> DemoPlan:
    """Networks and schedules for a data set: about 10 minutes for the teacher and 5 for each student on 2 cores without
    bf16, half of that with it.

    Both students learn until their learning rate ends near 0 and more epochs add little: after 4 epochs the control
    had AP 21 where FGD had 63, and most of that was a faster start.
    """
    teacher, student = FCOS(backbone="resnet34", fpn_channels=96), FCOS(backbone="resnet18", fpn_channels=64)
    # Small batches: from scratch, in so few minutes, what counts is the number of updates (measured on the digits:
    # AP 31 after 300 steps of 4 images, 14 after 150 steps of 8).
    often = {"batch_size": 4, "optimizer": AdamW(lr=6e-4)}
    if not own_data:
        # A digit mirrored is another digit, or none.
        digits = often | {"min_size": 96, "max_size": 96, "flip": "none"}
        return DemoPlan(
            teacher=teacher,
            teacher_schedule=Schedule(epochs=10, evaluate_every=5, **digits),
            student=student,
            student_schedule=Schedule(epochs=8, evaluate_every=2, **digits),
        )
    room = fit(report)
    shared = often | {"batch_size": room.batch_size, "min_size": room.min_size, "max_size": room.max_size}
    return DemoPlan(
        teacher=teacher,
        teacher_schedule=Schedule(epochs=room.epochs, evaluate_every=max(1, room.epochs // 6), **shared),
        student=student,
        student_schedule=Schedule(
            epochs=max(1, round(room.epochs * 0.75)), evaluate_every=max(1, room.epochs // 6), **shared
        ),
        minutes=room.minutes,
    )


BUDGET_S = 330.0
"""For the teacher; the two students together take about as long."""
COST_S_PER_MPX = 10.0
"""To train the teacher (ResNet-34, FPN 96) on one megapixel, on two cores with AVX2 only."""
EVALUATION_SHARE = 0.35
"""Cost of looking at a pixel without learning from it."""
MOST_PX = 192 * 256
LEAST_PX = 128 * 160
FEWEST_EPOCHS, MOST_EPOCHS = 6, 40


@dataclass(frozen=True)
class Room:
    """What fits into the budget."""

    min_size: int
    max_size: int
    epochs: int
    batch_size: int
    minutes: float


def fit(report: Report) -> Room:
    """Image size and epochs for a data set of any size: as large as it is up to 192x256, at least 6 epochs of it.

    The report knows only the smallest and largest side; their geometric mean stands for the usual one. A set too large
    for the budget at 128x160 takes longer, and `minutes` says so.
    """
    train, val = report.splits["train"], report.splits.get("val")
    width, height = math.sqrt(train.width[0] * train.width[1]), math.sqrt(train.height[0] * train.height[1])
    images = train.images + EVALUATION_SHARE * (val.images if val else 0) / 2  # evaluated every other epoch or less
    s_per_px = COST_S_PER_MPX / 1e6
    affordable_px = BUDGET_S / (FEWEST_EPOCHS * images * s_per_px)
    pixels = min(width * height, max(LEAST_PX, min(MOST_PX, affordable_px)))
    scale = math.sqrt(pixels / (width * height))
    short, long = (max(32, 32 * int(scale * side / 32 + 0.1)) for side in sorted((width, height)))
    epoch_s = images * short * long * s_per_px
    epochs = max(FEWEST_EPOCHS, min(MOST_EPOCHS, int(BUDGET_S / epoch_s)))
    return Room(short, long, epochs, min(4, train.images), minutes=2 * epochs * epoch_s / 60)


def teacher_spec(plan: DemoPlan, dataset_id: str) -> JobSpec:
    return JobSpec(
        name="demo-teacher",
        teacher=None,
        student=plan.teacher,
        dataset=dataset_id,
        methods=(),
        schedule=plan.teacher_schedule,
        seed=plan.seed,
    )


def control_spec(plan: DemoPlan, dataset_id: str) -> JobSpec:
    return JobSpec(
        name="demo-control",
        teacher=None,
        student=plan.student,
        dataset=dataset_id,
        methods=(),
        schedule=plan.student_schedule,
        seed=plan.seed,
    )


def student_spec(plan: DemoPlan, dataset_id: str, teacher_job: str) -> JobSpec:
    """The control, and a teacher, whose maps are kept: nothing else differs."""
    return control_spec(plan, dataset_id).but(
        name="demo-student",
        teacher=TeacherFromJob(job=teacher_job),
        methods=plan.methods,
        resources=Resources(teacher_cache_gib=2.0),
    )


# --- what was begun -------------------------------------------------------------------------------------------


class DemoJobs(BaseModel):
    """One thing asked of the service. `key` is its Idempotency-Key: asking again gives the same thing."""

    key: str
    asked: str
    """Digest of what was asked for."""
    id: str | None = None
    """None: the answer was never heard."""


class DemoState(BaseModel):
    """<home>/demo.json: the data set and the jobs, by role."""

    begun: dict[str, DemoJobs] = {}


class Memory:
    """Keeps the state on disk: a thing is written down before it is asked for, and again with the id it got."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state = DemoState.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            self._state = DemoState()  # a torn or foreign file: what it knew is only repeated, never lost

    def obtain(self, name: str, asked: str, find: Callable[[str], Found | None], make: Callable[[str], Found]) -> Found:
        """The thing of this name if the same was asked for before and it is still of use, else a new one.

        find: by id; None if it is gone or of no use. make: by Idempotency-Key.
        """
        known = self._state.begun.get(name)
        if known is not None and known.asked == asked and known.id is not None:
            found = find(known.id)
            if found is not None:
                return found
            known = None
        if known is None or known.asked != asked:
            known = DemoJobs(key=f"demo-{uuid.uuid4().hex}", asked=asked)
            self._keep(name, known)
        found = make(known.key)
        self._keep(name, known.model_copy(update={"id": found.id}))
        return found

    def _keep(self, name: str, begun: DemoJobs) -> None:
        self._state = DemoState(begun={**self._state.begun, name: begun})
        partial = self._path.with_name(f".{self._path.name}.part")
        partial.write_text(self._state.model_dump_json(indent=2))
        os.replace(partial, self._path)


Found = TypeVar("Found", Job, Dataset)


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()


def fingerprint(folder: Path) -> str:
    """Changes when a file of the folder does: names, sizes and times, not the content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = ((path.relative_to(folder).as_posix(), path.stat()) for path in files)
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


# --- the demo -------------------------------------------------------------------------------------------------


class DemoError(FGDError):
    """The demo cannot go on; the message says what to do."""


def run(
    home: Path, data: Path | None = None, url: str | None = None, api_key: str | None = None, *, console: Console
) -> int:
    """The whole demo. Returns the exit code: 0, 1 failed, 130 interrupted.

    home: folder for state, service and results. data: a COCO folder; None: the digits. url: a running service on this
    machine; None: an embedded one, which is stopped in the end.
    """
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    data = data.absolute() if data else None
    with handling(signal.default_int_handler):  # SIGTERM and a closed terminal end it as Ctrl-C does
        try:
            return Demo(home, data, console).run(url, api_key)
        except (DemoError, ServiceDied, WeightsError) as error:
            console.print(Text(printable(f"\n{error}", keep="\n"), style="red"), soft_wrap=True)
            return 1
        except KeyboardInterrupt:
            kept = f"\nStopped. Everything so far is kept in {_near(home)}; run the same command again to continue."
            if url:
                kept += " A job that is running on your service continues there; `fgd job cancel JOB` cancels it."
            console.print(Text(printable(kept, keep="\n")), soft_wrap=True)
            return 130


class Demo:
    """The demo's steps in order. `home`, `data`, `console`: see `run`."""

    def __init__(self, home: Path, data: Path | None, console: Console) -> None:
        self._home = home
        self._own = data
        self._console = console
        self._memory = Memory(home / "demo.json")

    def run(self, url: str | None, api_key: str | None) -> int:
        self._say(1, "data: composing handwritten digits over photographs" if not self._own else f"data: {self._own}")
        folder = self._own or self._digits()
        with service_at(url, self._home, [folder]) as (address, service), Client(address, api_key) as client:
            self._say(2, f"service: {address}" + ("" if url else f" (its log: {_near(self._home / 'serve.log')})"))
            if service:
                service.wait_ready(client)
            check = service.check if service else _nothing
            dataset = self._import(client, folder, url or "embedded", check)
            if dataset.state == "rejected":
                raise DemoError(rejected(client, folder, dataset))
            report = client.report(dataset.id)
            chosen = plan(report, own_data=self._own is not None)
            self._tell_plan(report, chosen)
            jobs = self._train(client, chosen, dataset.id, url or "embedded", check)
            self._say(5, "downloading, checking SHA-256, loading into plain torchvision")
            folders = {role: self._download(client, jobs[role], role) for role in ROLES}
            scores = {role: score(client.latest(jobs[role].id)) for role in ROLES}
            learned = {
                role: curve(jobs[role], client.metrics(jobs[role].id, "ap", "val")) for role in ("control", "student")
            }
        self._console.print("      measuring their speed")
        measured = measure([folders[role] for role in ROLES], self._test_images(folder))
        self._console.print()
        self._console.print(table([row(role, jobs[role], scores[role], measured, folders[role]) for role in ROLES]))
        self._console.print(curve_table(learned))
        self._console.print(Text(footnote(report, scores, measured, jobs)), soft_wrap=True)
        self._console.print(Text(printable(next_steps(self._home, folders["student"]), keep="\n")), soft_wrap=True)
        return 0

    def _say(self, number: int, text: str) -> None:
        self._console.print(Text.assemble((f"[{number}/5] ", "bold"), printable(text)), soft_wrap=True)

    def _digits(self) -> Path:
        from fgd.data.digits import compose  # scikit-learn takes a second

        return compose(self._home / f"digits-{VERSION}")

    def _import(self, client: Client, folder: Path, where: str, check: Callable[[], None]) -> Dataset:
        asked = digest(where, str(folder), fingerprint(folder))
        dataset = self._memory.obtain(
            "dataset",
            asked,
            find=lambda known: unless_gone(lambda: client.dataset(known)),
            make=lambda key: client.add_dataset(f"demo {folder.name}", folder, idempotency_key=key),
        )
        return client.wait_dataset(dataset.id, lambda _: check())

    def _tell_plan(self, report: Report, chosen: DemoPlan) -> None:
        sizes = ", ".join(f"{split.images} {name}" for name, split in report.splits.items())
        self._say(3, f"images: {sizes}; classes: {', '.join(report.classes)}")
        if report.defect_counts:
            kinds = ", ".join(f"{count} x {code}" for code, count in report.defect_counts.items())
            self._console.print(Text(printable(f"      defects, corrected or left out: {kinds}")), soft_wrap=True)
        self._say(
            4,
            f"training: {chosen.teacher.title()} teaches {chosen.student.title()}; about "
            f"{chosen.minutes:.0f} minutes on two cores; a student's loss is shown as detection+distillation",
        )

    def _train(
        self, client: Client, chosen: DemoPlan, dataset_id: str, where: str, check: Callable[[], None]
    ) -> dict[str, Job]:
        """All three jobs, ended well; control and student are submitted once the teacher stands."""
        jobs: dict[str, Job] = {}
        with Board(self._console, ROLES) as board:
            teacher = self._begin(client, "teacher", teacher_spec(chosen, dataset_id), where)
            jobs["teacher"] = self._follow(client, "teacher", teacher, board, check)
            specs = {
                "control": control_spec(chosen, dataset_id),
                "student": student_spec(chosen, dataset_id, teacher.id),
            }
            for role, spec in specs.items():
                jobs[role] = self._begin(client, role, spec, where)
                board.show(role, jobs[role])
            for role in ("control", "student"):
                jobs[role] = self._follow(client, role, jobs[role], board, check)
        return jobs

    def _begin(self, client: Client, role: str, spec: JobSpec, where: str) -> Job:
        def find(known: str) -> Job | None:
            job = unless_gone(lambda: client.job(known))
            return job if job is not None and job.state not in ("failed", "cancelled") else None

        asked = digest(where, spec.model_dump(mode="json", by_alias=True))
        return self._memory.obtain(role, asked, find, make=lambda key: client.submit(spec, key))

    def _follow(self, client: Client, role: str, job: Job, board: Board, check: Callable[[], None]) -> Job:
        def on_job(seen: Job | None) -> None:
            check()
            board.show(role, seen)

        def on_event(event: StoredEvent) -> None:
            if text := told(event):
                board.say(role, text)

        told_before = client.events(job.id)  # by an earlier run of the demo
        job = client.wait(job.id, on_event, on_job, after=told_before[-1].seq if told_before else 0)
        if job.state != "succeeded":
            raise DemoError(why(role, job, client.log_tail(job.id)))
        return job

    def _download(self, client: Client, job: Job, role: str) -> Path:
        folder = self._home / "results" / role
        artifacts = {artifact.name: artifact for artifact in client.artifacts(job.id)}
        for name in (WEIGHTS, "model.py", RECIPE, MANIFEST):
            if name not in artifacts:
                raise DemoError(f"job {job.id} has no {name}; it has {', '.join(artifacts) or 'no artifacts'}")
            client.download(artifacts[name], folder)
        weights = artifacts[WEIGHTS]
        self._console.print(
            Text(printable(f"      {role:<8} {weights.size / 1e6:6.2f} MB  sha256 {weights.sha256}")), soft_wrap=True
        )
        return folder

    def _test_images(self, folder: Path) -> list[Path]:
        """A few of the images the AP was measured on, as the user has them."""
        from fgd.data.formats import read

        index, _, sources = read(folder, verify="headers")
        split = index.splits.get("test") or index.splits["val"]
        return [sources[image.file] for image in split[:32]]


def rejected(client: Client, folder: Path, dataset: Dataset) -> str:
    """What is wrong with a data set, and what to do."""
    try:
        lines = report_lines(client.report(dataset.id))
    except ApiError:  # the import ended before there was anything to report
        lines = [f"  {dataset.error}"]
    return "\n".join(
        [f"{folder} cannot be used for training:", *lines, "Fix these files, then run the same command again."]
    )


def _nothing() -> None:
    pass


def unless_gone(get: Callable[[], Found]) -> Found | None:
    """None if the service does not know it (any more)."""
    try:
        return get()
    except ApiError as error:
        if error.status == 404:
            return None
        raise


ADVICE = {
    "user_error": "Something is wrong with the request or the data; the message says what.",
    "teacher_unfit": "The teacher learned too little to teach. More images or epochs help.",
    "loss_non_finite": "The training diverged. Please report this, with the log.",
    "host_out_of_memory": "The machine has too little memory; close other programs and run the same command again.",
    "gpu_out_of_memory": "The GPU has too little free memory; stop other programs on it, then run the command again.",
    "no_space": "The disk is full; free some space and run the same command again.",
}


def why(role: str, job: Job, log: Sequence[str]) -> str:
    """What a person needs who wants to know why a job did not succeed, and what to do."""
    if job.failure is None:
        return f"The {role}'s job {job.id} was {job.state}. Run the same command again to start it from scratch."
    lines = [f"The {role}'s job {job.id} failed: {job.failure.code}: {job.failure.message}"]
    if log:
        lines += ["The end of its log:", *(f"  {line}" for line in log)]
    return "\n".join(
        [*lines, ADVICE.get(job.failure.code, "Run the same command again; it starts this job from scratch.")]
    )


def next_steps(home: Path, student: Path) -> str:
    """What to type next."""
    here, weights = _near(home), _near(student)
    return f"""
Use the student in plain torchvision:
  import runpy
  from safetensors.torch import load_file
  student = runpy.run_path("{weights}/model.py")["build"]().eval()
  student.load_state_dict(load_file("{weights}/student.safetensors"))

What to run next:
  make demo DATA=path/to/coco               the same with your own images
  make serve                                the service, with its API at http://127.0.0.1:8000/docs
  {f".venv/bin/fgd serve --home {here}":<41} the demo's service again; then in another terminal:
  .venv/bin/fgd job list                    its jobs; see also `fgd job --help`"""


def _near(path: Path) -> Path:
    """Relative to where the user stands, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
