"""The search for students that fit a latency, on a clock and a machine of its own: no network is built."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from fgd import student_search as search
from fgd.budget import BudgetRow, FindStudent, Latency, is_question, milliseconds, ranked, ready_spec
from fgd.data.index import Image
from fgd.detector_specs import FCOS, FasterRCNN
from fgd.errors import ArgumentError
from fgd.outline import Size
from fgd.process.stopwatch import Timing, longest_ms, timed
from fgd.spec import JobSpec
from fgd.student_search import Candidate, Cost, Figures, NotTimed

QUESTION = {"dataset": "ds_" + "0" * 32, "latency_budget_ms": 15}
FIGURES = Figures(240, 320, tuple((side, 240, 320) for side in (12.0, 20.0, 40.0, 80.0)))
SLOWER = {"mobilenet_v3_large": 3.0, "mobilenet_v3_small": 3.0, "mobilenet_v2": 3.0}


def cost_of(each: Candidate) -> Cost:
    """As deep trunks and wide heads are: more of both, more pixels more operations."""
    pixels = each.size.min_size * each.size.max_size / (240 * 320)
    depth = 1 + list(SLOWER | dict.fromkeys(search.get_args(search.Trunk))).index(each.student.backbone)
    width = each.student.fpn_channels / 64
    return Cost(1_000_000 * depth, depth * pixels, width**2 * pixels, shown=pixels)


@dataclass
class Machine:
    """It takes for a candidate what its operations take, some trunks longer for each."""

    costs: dict[Candidate, Cost]
    now: float = 0.0
    asked: list[Candidate] = field(default_factory=list)

    def ms(self, each: Candidate) -> float:
        cost = self.costs[each]
        base = {"fcos": 2.0, "retinanet": 3.0, "faster_rcnn": 30.0}[each.student.kind]
        return base + 4 * SLOWER.get(each.student.backbone, 1.0) * cost.trunk_gflops + 5 * cost.rest_gflops

    def time(self, each: Candidate) -> float:
        self.asked.append(each)
        self.now += 2.0
        return self.ms(each)


def machine() -> Machine:
    found = search.candidates(FIGURES, search.sizes_for(FIGURES, None, None), None)
    return Machine({each: cost_of(each) for each in found})


def explored(
    machine: Machine, budget_ms: float, seconds: float, time: Callable[[Candidate], float] | None = None
) -> Any:
    return search.explore(
        machine.costs,
        budget_ms,
        time or machine.time,
        spread_until=seconds / 2,
        until=seconds,
        clock=lambda: machine.now,
        tell=lambda _: None,
    )


@pytest.mark.parametrize("budget_ms", [12.0, 25.0, 60.0])
def test_the_largest_that_fits_is_found_without_timing_most_of_them(budget_ms: float) -> None:
    one = machine()
    found = explored(one, budget_ms, 1000)
    within = [each for each in one.costs if one.ms(each) <= budget_ms]
    best = max(one.costs[each].capacity for each in within)
    ours = max(one.costs[each].capacity for each, ms in found.timed.items() if ms <= budget_ms)
    assert ours > 0.9 * best
    assert len(one.asked) < len(one.costs) / 8
    assert len(set(one.asked)) == len(one.asked), "nothing is timed twice"


def test_a_search_ends_with_its_time() -> None:
    one = machine()
    found = explored(one, 25.0, 21.0)
    assert one.now <= 23.0, "what was begun is finished"
    assert found.timed


def test_an_unreachable_budget_leads_to_the_fastest() -> None:
    one = machine()
    found = explored(one, 0.5, 1000)
    fastest = min(one.costs, key=one.ms)
    assert fastest in found.timed
    assert fastest in search.finalists(one.costs, found.timed, 0.5)


def test_what_can_not_be_built_is_left_out_and_told() -> None:
    one = machine()

    def time(each: Candidate) -> float:
        if each.student.kind == FCOS().kind:
            raise NotTimed(f"{each.title()}: no")
        return one.time(each)

    found = explored(one, 60.0, 1000, time)
    assert found.left_out
    assert {each.student.kind for each in found.timed} == {"retinanet", "faster_rcnn"}
    assert search.next_to_time(one.costs, found.timed, found.left_out, 60.0) is None or found.timed


def test_the_spread_has_each_family_and_in_the_fastest_each_trunk() -> None:
    one = machine()
    families = search.families(one.costs)
    assert {each.student.kind for each in families} == {"fcos", "retinanet", "faster_rcnn"}
    chosen = search.trunks(one.costs, {each: one.ms(each) for each in families})
    of_fastest = {each.student.backbone for each in chosen + families if each.student.kind == "fcos"}
    assert of_fastest == set(search.get_args(search.Trunk))
    assert len(chosen) <= 10 + 3


def test_what_was_timed_corrects_the_estimate_of_its_like() -> None:
    one = machine()
    of_fcos = [each for each in one.costs if each.student.kind == "fcos"]
    timed_ones = {each: one.ms(each) for each in of_fcos[::7]}
    guessed = search.estimated(one.costs, timed_ones)
    off = [guessed[each] / one.ms(each) for each in of_fcos]
    assert max(off) < 1.6
    assert min(off) > 0.6
    assert all(guessed[each] == ms for each, ms in timed_ones.items())


def test_the_front_has_nothing_that_another_excels() -> None:
    ms = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.0, "e": 4.0}
    worth = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0, "e": 4.0}
    assert search.front(ms, worth) == ["a", "b", "e"]


# --- sizes and candidates -------------------------------------------------------------------------------------


def image(width: int, height: int, side: int, crowd: bool = False) -> Image:
    box = (0.0, 0.0, float(side), float(side))
    return Image(id=0, file="", name="", width=width, height=height, boxes=(box,), labels=(1,), crowd=(crowd,))


def test_the_usual_image_is_the_most_frequent_and_crowds_are_no_boxes() -> None:
    found = search.figures_of([image(640, 480, 10), image(100, 100, 20), image(640, 480, 30, crowd=True)])
    assert (found.height, found.width) == (480, 640)
    assert [side for side, *_ in found.boxes] == [10.0, 20.0]


def test_a_size_that_is_given_is_the_only_one() -> None:
    given = Size(min_size=99, max_size=101)
    assert search.sizes_for(FIGURES, given, Size(min_size=240, max_size=320)) == (given,)


@pytest.mark.parametrize(
    ("height", "width", "first"),
    [(240, 320, (240, 320)), (320, 240, (240, 320)), (3000, 4000, (800, 1067)), (40, 50, (64, 64))],
)
def test_sizes_begin_with_the_images_own_and_fall(height: int, width: int, first: tuple[int, int]) -> None:
    sizes = search.sizes_for(Figures(height, width, ()), None, None)
    assert (sizes[0].min_size, sizes[0].max_size) == first
    sides = [each.min_size for each in sizes]
    assert sides == sorted(set(sides), reverse=True)
    assert min(sides) >= 64


def test_the_teachers_size_is_the_whole_one() -> None:
    assert search.sizes_for(FIGURES, None, Size(min_size=480, max_size=640))[0] == Size(min_size=480, max_size=640)


def test_small_boxes_keep_a_cell_of_the_finest_level() -> None:
    tiny = Figures(240, 320, tuple((side, 240, 320) for side in (9.0, 9.0, 9.0)))
    sizes = search.sizes_for(tiny, None, None)
    found = search.candidates(tiny, sizes, None)
    of_stride_8 = {each.size for each in found if each.student.levels()[0].stride == 8}
    of_stride_4 = {each.size for each in found if each.student.levels()[0].stride == 4}
    assert of_stride_8 == {sizes[0]}, "9 px of 8 are left at the whole size alone"
    assert of_stride_4 == set(sizes)


def test_boxes_are_as_large_as_their_image_is_shown() -> None:
    figures = Figures(100, 100, ((10.0, 100, 100), (10.0, 200, 400)))
    small, median = figures.sides_px(Size(min_size=50, max_size=100))
    assert small == pytest.approx(2.5 + 0.1 * 2.5)
    assert median == pytest.approx(3.75)
    assert Figures(10, 10, ()).sides_px(Size(min_size=50, max_size=100)) == (None, None)


def test_levels_are_shared_by_stride() -> None:
    assert search.levels_shared(FCOS(), FCOS(backbone="resnet50")) == 5
    assert search.levels_shared(FasterRCNN(), FCOS()) == 3


# --- timing ---------------------------------------------------------------------------------------------------


def stopwatch_of(ticks: dict[str, itertools.cycle[float]]) -> Callable[[Callable[[], Any]], Timing]:
    return lambda run: Timing(next(ticks[run()]))


def test_all_run_in_turn_after_warming_up() -> None:
    order: list[str] = []
    runs: dict[str, Callable[[], Any]] = {name: (lambda name=name: order.append(name)) for name in "ab"}

    def stopwatch(run: Callable[[], object]) -> Timing:
        run()
        return Timing(float(len(order)))

    times = search.in_turn(runs, most=3, until=9.0, clock=lambda: 0.0, stopwatch=stopwatch, tell=lambda _: None)
    assert order == list("ab" * 5)
    assert [each.ms for each in times["a"]] == [5.0, 7.0, 9.0], "the first two rounds do not count"


def test_rounds_end_with_the_time_but_for_a_few() -> None:
    clock = itertools.count()
    times = search.in_turn(
        {"a": lambda: None},
        most=100,
        until=20.0,
        clock=lambda: float(next(clock)),
        stopwatch=lambda _: Timing(1.0),
        tell=lambda _: None,
    )
    assert 3 <= len(times["a"]) < 30
    late = search.in_turn(
        {"a": lambda: None},
        most=100,
        until=-1.0,
        clock=lambda: 0.0,
        stopwatch=lambda _: Timing(1.0),
        tell=lambda _: None,
    )
    assert len(late["a"]) == 3


@pytest.mark.parametrize(("ms", "runs"), [(10.0, 6), (40.0, 3)])
def test_what_is_too_slow_after_two_runs_is_dropped(ms: float, runs: int) -> None:
    ran: list[int] = []

    def stopwatch(run: Callable[[], object]) -> Timing:
        run()
        return Timing(ms)

    assert search.briefly(lambda: ran.append(1), 22.5, stopwatch=stopwatch) == ms
    assert len(ran) == runs, "with the first, which allocates"


def test_what_other_processes_took_is_not_in_the_time() -> None:
    assert longest_ms({"1": 0, "2": 5_000_000}, {"1": 2_000_000, "2": 5_500_000, "3": 10**9}) == 2.0
    assert longest_ms({}, {}) == 0.0
    assert timed(lambda: sum(range(1000))).ms > 0


def latency(median: float, low: float | None = None) -> Latency:
    return Latency.of([Timing(low or median), Timing(median), Timing(median)])


@pytest.mark.parametrize(
    ("median", "verdict"), [(9.5, "fits"), (9.52, "fits"), (9.6, "tight"), (10.0, "tight"), (10.1, "over")]
)
def test_a_student_fits_with_room_to_spare(median: float, verdict: str) -> None:
    assert latency(median).verdict(10.0) == verdict


def test_the_spread_and_the_waiting_are_told() -> None:
    found = Latency.of([Timing(float(n), waited_ms=float(n)) for n in range(1, 12)])
    assert (found.median_ms, found.p10_ms, found.p90_ms, found.min_ms, found.runs) == (6.0, 2.0, 10.0, 1.0, 11)
    assert found.noise() == 5.0
    assert found.waited_share == 0.5


def row(title: str, median: float, capacity: float) -> BudgetRow:
    one = latency(median)
    return BudgetRow(
        title=title, student={}, size=Size(min_size=64, max_size=64), input=(64, 64), latency=one,
        verdict=one.verdict(10.0), parameters=1, gflops=1.0, mb=1.0, capacity=capacity, levels=5, levels_shared=None,
        small_box_px=1.0, median_box_px=1.0, spec={},
    )  # fmt: skip


def test_the_largest_that_fits_comes_first_and_the_fastest_of_the_others() -> None:
    rows = [
        row("slow", 14.0, 9),
        row("over", 11.0, 8),
        row("tight", 9.9, 7),
        row("small", 2.0, 1),
        row("large", 9.0, 5),
    ]
    assert [each.title for each in ranked(rows)] == ["large", "small", "tight", "over", "slow"]


# --- the question ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        (QUESTION, True),
        (QUESTION | {"student": {}}, False),
        ({"dataset": "x"}, False),
        ({}, False),
        ([], False),
        (FindStudent.model_validate(QUESTION), True),
    ],
)
def test_a_body_that_names_a_student_is_a_jobs(body: Any, asks: bool) -> None:
    assert is_question(body) is asks


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"latency_budget_ms": 0}, "latency_budget_ms"),
        ({"latency_budget_ms": "15"}, "latency_budget_ms"),
        ({"runtime": "tensorrt"}, "runtime"),
        ({"threads": 0}, "threads"),
        ({"size": {"min_size": 64}}, "size"),
        ({"size": {"min_size": 65, "max_size": 64}}, "size"),
        ({"seconds": 5}, "seconds"),
        ({"schedule": {}}, "schedule"),
    ],
)
def test_a_wrong_question_is_refused_at_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        FindStudent.model_validate(QUESTION | changes)
    assert {each["loc"][0] for each in refused.value.errors()} == {field}


@pytest.mark.parametrize(
    ("text", "ms"), [("15ms", 15.0), ("15", 15.0), (" 7.5 MS", 7.5), ("0.5s", 500.0), (".5 s", 500.0)]
)
def test_a_latency_is_read_with_its_unit(text: str, ms: float) -> None:
    assert milliseconds(text) == ms


@pytest.mark.parametrize("text", ["", "fast", "-3", "3min", "1e3", "nan", "inf", "ms"])
def test_what_is_no_latency_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="15ms"):
        milliseconds(text)


def test_a_ready_spec_is_a_job_with_the_methods_numbers() -> None:
    question = FindStudent.model_validate(
        QUESTION | {"teacher": {"model": "mdl_" + "0" * 32}, "threads": 2, "runtime": "torch"}
    )
    found = ready_spec(question, FCOS(fpn_channels=64), Size(min_size=96, max_size=128), images=5)
    job = JobSpec.model_validate(found)
    assert (job.student.backbone, job.student.fpn_channels) == ("resnet18", 64)
    assert found["methods"][0]["alpha"] == 1.6e-3
    assert (job.schedule.min_size, job.schedule.max_size, job.schedule.batch_size) == (96, 128, 5)
    assert (job.latency_budget_ms, job.latency.runtime, job.latency.threads) == (15, "torch", 2)
    plain = JobSpec.model_validate(
        ready_spec(FindStudent.model_validate(QUESTION), FCOS(), Size(min_size=96, max_size=128), 50)
    )
    assert (plain.teacher, plain.methods, plain.schedule.batch_size) == (None, (), 8)
