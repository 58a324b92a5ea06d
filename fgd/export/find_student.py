"""Builds, exports and times untrained students until those are known that fit a latency budget best.

What to time next is decided in `fgd.student_search`; this brings the networks, the files and the clock.
"""

# N images, C channels, H x W pixels

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgd.budget import (
    NOISY,
    BudgetRow,
    BudgetTable,
    FindStudent,
    Latency,
    TimedTeacher,
    bare,
    ranked,
    ready_spec,
)
from fgd.data.index import Image
from fgd.data.transforms import Transform
from fgd.detector_specs import DetectorSpec
from fgd.detectors import Detector, build
from fgd.engine.device import processor_name
from fgd.errors import UserError
from fgd.events import Emit, Phase
from fgd.export import latency
from fgd.export.latency import Runner
from fgd.outline import Size
from fgd.process import stopwatch
from fgd.recipe import Recipe
from fgd.student_search import (
    EXPLORED,
    SPREAD,
    WIDTHS,
    Candidate,
    Cost,
    Figures,
    NotTimed,
    briefly,
    candidates,
    explore,
    figures_of,
    finalists,
    front,
    in_turn,
    levels_shared,
    refused_sizes,
    sizes_for,
)
from fgd.types import Batch, Target

COUNTED_AT = 128
"""Pixels, both ways, of the image on which operations are counted: as many for each pixel as on a larger one."""
TOO_SLOW = 1.5
"""What takes so many times the budget is not run a third time."""
ROUNDS = 60
TEACHER_RUNS = 12
TELL_S = 1.0
"""Between two words on how far it is."""


@dataclass
class Workshop:
    """What is needed to build and run a candidate. Files of candidates that were exported stay in `folder`."""

    question: FindStudent
    classes: tuple[str, ...]
    figures: Figures
    threads: int
    folder: Path
    parameters: dict[Candidate, int] = field(default_factory=dict)
    numbers: dict[Candidate, int] = field(default_factory=dict)

    def recipe(self, student: DetectorSpec, size: Size) -> Recipe:
        return Recipe(detector=student, classes=self.classes, min_size=size.min_size, max_size=size.max_size)

    def input_of(self, size: Size) -> tuple[int, int]:
        return Transform(size.min_size, size.max_size).size_of(self.figures.height, self.figures.width)

    def padded_input_of(self, size: Size) -> tuple[int, int]:
        return Transform(size.min_size, size.max_size).padded_size_of(self.figures.height, self.figures.width)

    def image(self, size: Size) -> Tensor:
        """1 x 3 x H x W of noise in 0..1: convolutions take the same time for any image."""
        return torch.rand(1, 3, *self.input_of(size), generator=torch.Generator().manual_seed(0))

    def runner(self, each: Candidate) -> Runner:
        """Raises NotTimed."""
        number = self.numbers.setdefault(each, len(self.numbers))
        file, image_1CHW = self.folder / f"{number}.onnx", self.image(each.size)
        try:
            if file.exists():
                return Runner(latency.in_onnxruntime(file, image_1CHW, self.threads), file.stat().st_size)
            detector = built(self.recipe(each.student, each.size))
            self.parameters[each] = parameters_of(detector.module)
            latency.find_as_many_as_trained(detector, image_1CHW)
            return latency.runner(detector, image_1CHW, self.question.runtime, self.threads, file)
        except Exception as error:
            raise NotTimed(f"{each.title()}: {type(error).__name__}: {error}"[:500]) from error

    def briefly(self, each: Candidate) -> float:
        """Raises NotTimed."""
        too_slow_ms = TOO_SLOW * self.question.latency_budget_ms
        return briefly(self.runner(each).run, too_slow_ms, stopwatch=stopwatch.timed)


def find(
    question: FindStudent,
    images: Sequence[Image],
    classes: tuple[str, ...],
    teacher: Detector | None,
    emit: Emit,
) -> BudgetTable:
    """images: of the training split. Raises FGDError if no candidate can be timed at all."""
    began = perf_counter()
    latency.refuse_without_runtime(question.runtime)
    tell = said_now_and_then(emit)
    figures = figures_of(images)
    given = Size(min_size=question.size.min_size, max_size=question.size.max_size) if question.size else None
    network = teacher.recipe.detector if teacher is not None else None
    of_teacher = Size(min_size=teacher.recipe.min_size, max_size=teacher.recipe.max_size) if teacher else None
    sizes = sizes_for(figures, given, of_teacher)
    chosen = candidates(figures, sizes, network)
    if not chosen:
        refused_sizes(sizes[0], network)
    threads = latency.threads_of_host(question.threads)
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="fgd-budget-") as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shop = Workshop(question, classes, figures, threads, Path(folder))
        tell(f"counting the operations of {len(chosen)} students")
        costs = counted(shop, chosen)
        found = explore(
            costs,
            question.latency_budget_ms,
            shop.briefly,
            spread_until=began + SPREAD * question.seconds,
            until=began + EXPLORED * question.seconds,
            clock=perf_counter,
            tell=tell,
        )
        last = finalists(costs, found.timed, question.latency_budget_ms)
        if not last:
            raise UserError(f"no student could be timed: {next(iter(found.left_out.values()))}")
        runners = {each: shop.runner(each) for each in last}
        until = began + question.seconds * (0.9 if teacher is not None else 1.0)
        times = in_turn(
            {each: runner.run for each, runner in runners.items()},
            most=ROUNDS,
            until=until,
            clock=perf_counter,
            stopwatch=stopwatch.timed,
            tell=tell,
        )
        sizes_mb = {each: runner.bytes / 1e6 for each, runner in runners.items()}
        runners.clear()
        of_the_teacher = timed_teacher(shop, teacher, began + question.seconds, tell) if teacher is not None else None
    rows = [
        row(shop, each, costs[each], Latency.of(times[each]), sizes_mb[each], len(images), network) for each in last
    ]
    rows = without_excelled(rows)
    return answer(
        question, rows, threads, of_the_teacher, len(chosen), len(found.timed), perf_counter() - began, found.left_out
    )


def counted(shop: Workshop, chosen: Sequence[Candidate]) -> dict[Candidate, Cost]:
    """Of each. Trunks, and widths of each family, are counted by themselves, once: what both decide together, the
    layers between them, is small."""
    students = list(dict.fromkeys(each.student for each in chosen))
    first, size = students[0], chosen[0].size
    trunks = {name: of_trunk(shop.recipe(first.but(backbone=name), size)) for name in {s.backbone for s in students}}
    least = min(trunks, key=lambda name: trunks[name].parameters)  # the quickest to build
    base = trunks[least]
    rests = {family: of_rests(shop, family, least, size) for family in {type(each) for each in students}}
    pixels = {size: math.prod(shop.input_of(size)) for size in {each.size for each in chosen}}

    def cost(each: Candidate) -> Cost:
        area = math.prod(shop.padded_input_of(each.size)) / COUNTED_AT**2
        trunk, rest = trunks[each.student.backbone], rests[type(each.student)][each.student.fpn_channels]
        return Cost(
            parameters=trunk.parameters + rest.parameters - base.parameters,
            trunk_gflops=trunk.trunk_gflops * area,
            rest_gflops=rest.rest_gflops * area,
            shown=pixels[each.size] / max(pixels.values()),
        )

    return {each: cost(each) for each in chosen}


def of_trunk(recipe: Recipe) -> Cost:
    """Of the trunk alone, in which nothing is computed."""
    with torch.device("meta"):
        trunk = build(recipe).eval().trunk
        images_1CHW = torch.zeros(1, 3, COUNTED_AT, COUNTED_AT)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trunk(images_1CHW)
    return Cost(parameters_of(trunk), counter.get_total_flops() / 1e9, 0.0)


def of_rests(shop: Workshop, family: type[DetectorSpec], trunk: str, size: Size) -> dict[int, Cost]:
    """Of a family by width. Layers have as many weights as the product of their widths, so that three widths say what
    the others have."""
    some = (WIDTHS[0], WIDTHS[len(WIDTHS) // 2], WIDTHS[-1])
    counts = [of_whole(shop.recipe(family(backbone=trunk, fpn_channels=width), size)) for width in some]
    parameters = np.polyfit(some, [each.parameters for each in counts], 2)
    gflops = np.polyfit(some, [each.rest_gflops for each in counts], 2)
    return {w: Cost(round(float(np.polyval(parameters, w))), 0.0, float(np.polyval(gflops, w))) for w in WIDTHS}


def of_whole(recipe: Recipe) -> Cost:
    detector = built(recipe)
    images_1CHW = torch.zeros(1, 3, COUNTED_AT, COUNTED_AT)
    sizes, nothing = ((COUNTED_AT, COUNTED_AT),), Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with torch.no_grad():
        with FlopCounterMode(display=False) as trunk:
            detector.trunk(images_1CHW)
        with FlopCounterMode(display=False) as whole:
            detector.predict(
                detector.features(images_1CHW), Batch(images_1CHW, sizes, sizes, (nothing,), (0,)), regions=False
            )
    in_trunk, in_all = trunk.get_total_flops(), whole.get_total_flops()
    return Cost(parameters_of(detector.module), in_trunk / 1e9, (in_all - in_trunk) / 1e9)


def parameters_of(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def built(recipe: Recipe) -> Detector:
    return build(recipe).eval()


def timed_teacher(shop: Workshop, teacher: Detector, until: float, tell: Callable[[str], None]) -> TimedTeacher:
    size = Size(min_size=teacher.recipe.min_size, max_size=teacher.recipe.max_size)
    tell("timing the teacher")
    with contextlib.suppress(Exception):  # it has no export, or a file that is too large
        one = latency.runner(
            teacher.eval(), shop.image(size), shop.question.runtime, shop.threads, shop.folder / "teacher.onnx"
        )
        times = in_turn(
            {"teacher": one.run},
            most=TEACHER_RUNS,
            until=until,
            clock=perf_counter,
            stopwatch=stopwatch.timed,
            tell=latency.silent,
        )["teacher"]
        return told_teacher(teacher, shop.input_of(size), Latency.of(times))
    return told_teacher(teacher, shop.input_of(size), None)


def told_teacher(teacher: Detector, size: tuple[int, int], measured: Latency | None) -> TimedTeacher:
    return TimedTeacher(
        title=teacher.recipe.detector.title(),
        parameters=parameters_of(teacher.module),
        input=size,
        latency=measured,
    )


def row(
    shop: Workshop,
    each: Candidate,
    cost: Cost,
    measured: Latency,
    mb: float,
    images: int,
    teacher: DetectorSpec | None,
) -> BudgetRow:
    exact = replace(cost, parameters=shop.parameters[each])
    small, median = shop.figures.sides_px(each.size)
    return BudgetRow(
        title=each.student.title(),
        student=bare(each.student),
        size=each.size,
        input=shop.input_of(each.size),
        latency=measured,
        verdict=measured.verdict(shop.question.latency_budget_ms),
        parameters=exact.parameters,
        gflops=exact.gflops,
        mb=mb,
        capacity=exact.capacity,
        levels=len(each.student.levels()),
        levels_shared=levels_shared(each.student, teacher) if teacher is not None else None,
        small_box_px=small,
        median_box_px=median,
        spec=ready_spec(shop.question, each.student, each.size, images),
    )


def without_excelled(rows: Sequence[BudgetRow]) -> list[BudgetRow]:
    """What turned out slower than a larger one, now that all were timed well, is left out."""
    places = range(len(rows))
    kept = front({n: rows[n].latency.median_ms for n in places}, {n: rows[n].capacity for n in places})
    return [rows[n] for n in kept]


def answer(
    question: FindStudent,
    rows: Sequence[BudgetRow],
    threads: int,
    teacher: TimedTeacher | None,
    candidates: int,
    timed: int,
    seconds: float,
    left_out: Mapping[Candidate, str],
) -> BudgetTable:
    best = ranked(rows)
    fits = best[0].verdict == "fits"
    fastest = min(rows, key=lambda each: each.latency.median_ms)
    missed = fastest.latency.median_ms - question.latency_budget_ms
    noise = sorted(each.latency.noise() for each in rows)[len(rows) // 2]
    waited = sum(each.latency.waited_share for each in rows) / len(rows)
    return BudgetTable(
        latency_budget_ms=question.latency_budget_ms,
        runtime=question.runtime,
        threads=threads,
        device=processor_name(),
        message=message_of(question, best, fastest, missed),
        fits=fits,
        missed_by_ms=missed if missed > 0 else None,
        noise=noise,
        waited_share=waited,
        rows=best,
        teacher=teacher,
        candidates=candidates,
        timed=timed,
        seconds=seconds,
        warnings=tuple(warnings(question, rows, noise, left_out)),
    )


def message_of(question: FindStudent, best: Sequence[BudgetRow], fastest: BudgetRow, missed: float) -> str:
    budget, first = question.latency_budget_ms, best[0]
    if first.verdict == "fits":
        return f"{titled(first)} is the largest that fits {budget:g} ms: {first.latency.said()}"
    if first.verdict == "tight":
        return (
            f"nothing fits {budget:g} ms with room to spare; {titled(first)} is just below it: {first.latency.said()}"
        )
    return (
        f"nothing fits {budget:g} ms; the fastest found is {titled(fastest)}: {fastest.latency.said()}, "
        f"{missed:.1f} ms ({missed / budget:.0%}) over it"
    )


def titled(row: BudgetRow) -> str:
    return f"{row.title} at {row.size.min_size} to {row.size.max_size} px"


def warnings(
    question: FindStudent, rows: Sequence[BudgetRow], noise: float, left_out: Mapping[Candidate, str]
) -> Iterator[str]:
    if noise > NOISY:
        yield (
            f"the slowest tenth of the runs took {noise:.2f} times the fastest tenth: the machine had other work, and "
            "on a quiet one more may fit"
        )
    if question.teacher is not None and len({row.size for row in rows}) > 1:
        yield (
            "the teacher sees the same images as the student, so that at a smaller size than its own it may know less: "
            "the event teacher_checked of the job says how much"
        )
    if left_out:
        why = next(iter(left_out.values()))
        yield f"{len(left_out)} students could not be timed, for example {why}"


def said_now_and_then(emit: Emit) -> Callable[[str], None]:
    last = -TELL_S

    def tell(phase: str) -> None:
        nonlocal last
        if perf_counter() - last >= TELL_S:
            last = perf_counter()
            emit(Phase(phase=phase))

    return tell
