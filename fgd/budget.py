"""A latency budget: the question "which student fits?", and the table that answers it. Knows no torch.

The question is the body of `POST /v1/plans` without a student, and what `fgd plan --budget` asks. How candidates are
found and timed is in `fgd.student_search` and `fgd.export.latency`.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from fgd.detector_specs import DetectorSpec
from fgd.errors import ArgumentError
from fgd.method_specs import FGD
from fgd.outline import PlanPart, Size
from fgd.presets import complete
from fgd.process.stopwatch import Timing
from fgd.spec import JobSpec, LatencyBudget, Milliseconds, Runtime, Schedule
from fgd.spec_fields import DatasetRef, Int, Name, Seconds, Spec, TeacherRef

HEADROOM = 0.05
"""A student fits if its median is below the budget by this share: another run differs by a few per cent."""
NOISY = 1.25
"""Where the slowest tenth of the runs begins so many times above the fastest tenth, the machine had other work."""
PLAIN_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")
Verdict = Literal["fits", "tight", "over"]


class InputSize(Spec):
    """Pixels, as torchvision means them, and as `schedule` has them."""

    min_size: Annotated[Int, Field(ge=32, le=8192)]
    """Shorter side after resizing."""
    max_size: Annotated[Int, Field(ge=32, le=8192)]
    """Longest side after resizing."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size {self.min_size} is larger than max_size {self.max_size}")
        return self


class FindStudent(Spec):
    """Which students answer within a time? A worker builds, exports and times some, untrained, one image at a time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "dataset": "ds_0123456789abcdef0123456789abcdef",
                    "teacher": {"job": "job_0123456789abcdef0123456789abcdef"},
                    "latency_budget_ms": 15,
                    "runtime": "onnxruntime",
                    "threads": 1,
                }
            ]
        }
    )

    name: Name = "student"
    """Of the plan and of the specs that it proposes."""
    dataset: DatasetRef
    """Its images say how large the input is, and its boxes how small it may be."""
    teacher: TeacherRef | None = None
    """Who will teach the student with FGD; null: plain training."""
    latency_budget_ms: Milliseconds
    """Milliseconds that the student may take for one image: normalising, network, boxes and their suppression."""
    runtime: Runtime = "onnxruntime"
    """What runs it: the exported file in onnxruntime, or the network in torch."""
    threads: Annotated[Int, Field(ge=1, le=1024)] | None = None
    """Processor threads that one image gets. Default: all that the worker gives a slot."""
    size: InputSize | None = None
    """Only this size. Default: the images' own size (with a teacher: the teacher's), and smaller ones as long as the
    small boxes of the data set keep a cell of the finest level."""
    seconds: Annotated[Seconds, Field(ge=10, le=3600)] = 300.0
    """How long the search may take. More time finds students that use the budget better."""

    def budget(self) -> LatencyBudget:
        return LatencyBudget(runtime=self.runtime, threads=self.threads)

    def template(self) -> JobSpec:
        """A job with these references, to look them up by. Its student is any."""
        return JobSpec.model_validate(
            {
                "name": self.name,
                "teacher": self.teacher,
                "student": {"norm": "group"},  # which trains at any size
                "dataset": self.dataset,
                "methods": (FGD(),) if self.teacher is not None else (),
                "schedule": {"batch_size": 1},
            }
        )


class Latency(PlanPart):
    """Milliseconds for one image, over many runs; without what other processes took the processor away (where the
    kernel says how long: Linux)."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    runs: int
    waited_share: float
    """Of the time on the wall, how much was such waiting: 0 on a machine without other work."""

    @classmethod
    def of(cls, timings: Sequence[Timing]) -> Self:
        times_ms = [each.ms for each in timings]
        waited_ms = sum(each.waited_ms for each in timings)
        tenths = statistics.quantiles(times_ms if len(times_ms) > 1 else times_ms * 2, n=10, method="inclusive")
        return cls(
            median_ms=statistics.median(times_ms),
            p10_ms=tenths[0],
            p90_ms=tenths[-1],
            min_ms=min(times_ms),
            runs=len(times_ms),
            waited_share=waited_ms / (waited_ms + sum(times_ms)),
        )

    def noise(self) -> float:
        """How many times the slow runs take the time of the fast ones."""
        return self.p90_ms / self.p10_ms

    def verdict(self, budget_ms: float) -> Verdict:
        if self.median_ms * (1 + HEADROOM) <= budget_ms:
            return "fits"
        return "tight" if self.median_ms <= budget_ms else "over"

    def said(self) -> str:
        return f"{self.median_ms:.1f} ms (p10 {self.p10_ms:.1f}, p90 {self.p90_ms:.1f}, {self.runs} runs)"


class BudgetRow(PlanPart):
    """A student that was built, exported and timed."""

    title: str
    student: dict[str, Any]
    """As in a job's spec."""
    size: Size
    """`schedule.min_size` and `schedule.max_size`."""
    input: tuple[int, int]
    """Height and width of the image that was timed: the data set's usual one at that size."""
    latency: Latency
    verdict: Verdict
    """"fits": the median is below the budget by 5 per cent. "tight": below it by less. "over": above it."""
    parameters: int
    gflops: float
    """Of trunk, pyramid and the heads' convolutions for one image, 10^9 floating point operations."""
    mb: float
    """Of the file, 10^6 bytes."""
    capacity: float
    """What the rows are ordered by: the geometric mean of the parameters in millions and of gflops, times the share of
    the pixels that this size has of the largest one. It stands for what the student can learn, which only a training
    shows."""
    levels: int
    """Of the student's pyramid."""
    levels_shared: int | None
    """Of these the ones of a stride that the teacher has too; null without a teacher."""
    small_box_px: float | None
    """Side of a small box (a tenth of the training boxes are smaller) at that size, pixels; null: there are none."""
    median_box_px: float | None
    """Side of the middle box."""
    spec: dict[str, Any]
    """A job that trains it: the body of POST /v1/jobs. All else is at its defaults."""


class TimedTeacher(PlanPart):
    title: str
    parameters: int
    input: tuple[int, int]
    latency: Latency | None
    """As the students'; null: it cannot be exported, or the time was over."""


class BudgetTable(PlanPart):
    """Students of which none is both faster and larger than another; those that fit come first, the largest first."""

    latency_budget_ms: float
    runtime: Runtime
    threads: int
    device: str
    """The processor's name."""
    message: str
    """What came out, in a sentence or two."""
    fits: bool
    """Whether any row does."""
    missed_by_ms: float | None
    """By how much the fastest row is over the budget; null if one is within it."""
    noise: float
    """How many times the slowest tenth of the runs takes the time of the fastest tenth; over 1.25 the medians are
    those of a busy machine."""
    waited_share: float
    """How much of the time on the wall other processes had the processor; that is not in the latencies."""
    rows: tuple[BudgetRow, ...]
    teacher: TimedTeacher | None
    candidates: int
    """How many there were to choose from."""
    timed: int
    """How many of them were built and timed."""
    seconds: float
    """That the search took."""
    warnings: tuple[str, ...] = ()

    def asked_by(self, question: FindStudent) -> BudgetTable:
        """The same with the references of `question`, where a worker searched with paths instead."""
        named = {name: dumped(getattr(question, name)) for name in ("dataset", "teacher")}
        rows = (row.model_copy(update={"spec": row.spec | named}) for row in self.rows)
        return self.model_copy(update={"rows": tuple(rows)})


def is_question(body: Any) -> bool:
    """Whether a body of POST /v1/plans asks for a student, instead of naming one."""
    if isinstance(body, Mapping):
        return "student" not in body and bool({"latency_budget_ms", "runtime", "seconds", "size"} & body.keys())
    return isinstance(body, FindStudent)


def ready_spec(question: FindStudent, student: DetectorSpec, size: Size, images: int) -> dict[str, Any]:
    """The body of a job that trains `student`. images: of the training split."""
    teacher = question.teacher
    batch = Schedule.model_fields["batch_size"].default
    fewer = {"batch_size": images} if images < batch else {}
    methods = [complete(FGD(), type(student)).model_dump(mode="json")] if teacher is not None else []
    return {
        "name": question.name,
        "teacher": dumped(teacher),
        "student": bare(student),
        "dataset": dumped(question.dataset),
        "methods": methods,
        "schedule": {"min_size": size.min_size, "max_size": size.max_size, **fewer},
        "latency_budget_ms": question.latency_budget_ms,
        "latency": question.budget().model_dump(mode="json"),
    }


def bare(student: DetectorSpec) -> dict[str, Any]:
    """What makes it this network."""
    said = student.model_dump(mode="json", exclude_defaults=True)
    return {"kind": student.kind, **said}


def dumped(ref: Any) -> Any:
    return ref.model_dump(mode="json") if isinstance(ref, Spec) else ref


def milliseconds(text: str) -> float:
    """15, 15ms, 0.5s. Raises ArgumentError."""
    for unit, factor in (("ms", 1.0), ("s", 1000.0), ("", 1.0)):
        number = text.strip().lower().removesuffix(unit)
        if text.strip().lower().endswith(unit) and PLAIN_NUMBER.fullmatch(number.strip()):
            return float(number) * factor
    raise ArgumentError(f"{text!r} is no latency; write milliseconds, such as 15ms")


def ranked(rows: Sequence[BudgetRow]) -> tuple[BudgetRow, ...]:
    """Those that fit before those that just do, both the largest first; then those over the budget, fastest first."""
    order = {"fits": 0, "tight": 1, "over": 2}

    def key(row: BudgetRow) -> tuple[int, float]:
        return order[row.verdict], row.latency.median_ms if row.verdict == "over" else -row.capacity

    return tuple(sorted(rows, key=key))


def capacity(parameters: int, gflops: float, shown: float) -> float:
    """shown: share of the pixels of the largest size that was tried."""
    return math.sqrt(parameters / 1e6 * gflops) * shown
