"""The search for students that fit a latency budget: hundreds of candidates, of which some dozens are timed.

1. A spread of small ones is timed: each family, and in the fastest of them each trunk.
2. From what was timed, the time of all others is estimated: each trunk and each family has a speed of its own, and what
   was timed of a pair corrects its estimate. The largest that should fit is timed next, until it is one that was timed:
   the estimate closes in on the budget from both sides, as in a bisection.
3. Those that are left, the best near the budget, are timed again and again in turn.

Values in, values out: it is given the functions that time, and the clock. Knows no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np

from fgd.budget import HEADROOM, capacity
from fgd.data.index import Image
from fgd.detector_specs import DetectorSpec, TorchvisionTrunk, Trunk
from fgd.errors import SpecError
from fgd.outline import Size, scaled_max_size
from fgd.process.stopwatch import Timing
from fgd.spec_fields import members

WIDTHS = (64, 96, 128, 192, 256)
"""Of the pyramid and the heads."""
SHRUNK = (0.8, 0.65, 0.5)
"""Sizes that are tried besides the whole one."""
SMALLEST = 64
"""Pixels of the shorter side, at least."""
USUAL = Size(min_size=800, max_size=1333)
"""torchvision's: larger images are resized to it."""
DOUBT, IN_VAIN = 1.6, 6
"""What is estimated at so many times the budget may yet fit; after so many looks in vain no other is taken."""
NEAR = 1.15
"""What was over the budget by less, in a few runs, gets another chance."""
FINALISTS = 8
EXPLORED, SPREAD = 0.7, 0.35
"""Shares of the time after which they are known, and after which the spread ends; the rest is for timing them well."""
HOPELESS = 3.0
"""Of the spread, what should take so many times the budget is not even tried."""
SMOOTH = 0.1
"""How strongly a trunk or family that was not timed takes after the others."""

K = TypeVar("K")


@dataclass(frozen=True)
class Figures:
    """What a data set says of sizes."""

    height: int
    width: int
    """Of the usual image, as stored."""
    boxes: tuple[tuple[float, int, int], ...]
    """(square root of the area, height and width of its image), of training boxes."""

    def sides_px(self, size: Size) -> tuple[float, float] | tuple[None, None]:
        """Of a small box, which a tenth of the boxes are smaller than, and of the middle one, at that size. None: there
        are no boxes."""
        if not self.boxes:
            return None, None
        side, height, width = np.array(self.boxes, dtype=float).T
        short, long = np.minimum(height, width), np.maximum(height, width)
        scaled = side * np.minimum(size.min_size / short, size.max_size / long)
        small, median = np.percentile(scaled, (10, 50))
        return float(small), float(median)

    def own_size(self) -> Size:
        """The usual image as it is, unless it is very large."""
        short, long = sorted((self.height, self.width))
        scale = min(1.0, USUAL.min_size / short, USUAL.max_size / long)
        return Size(min_size=max(SMALLEST, round(short * scale)), max_size=max(SMALLEST, round(long * scale)))


def figures_of(images: Sequence[Image]) -> Figures:
    """Of training images. The usual size is the most frequent one; of equally frequent ones the largest."""
    counts = Counter((image.height, image.width) for image in images)
    height, width = max(counts, key=lambda size: (counts[size], size[0] * size[1]))
    boxes = (
        (math.sqrt((right - left) * (bottom - top)), image.height, image.width)
        for image in images
        for (left, top, right, bottom), crowd in zip(image.boxes, image.crowd, strict=True)
        if not crowd
    )
    return Figures(height, width, tuple(boxes))


@dataclass(frozen=True)
class Candidate:
    student: DetectorSpec
    size: Size

    def family(self) -> str:
        return self.student.kind

    def title(self) -> str:
        return f"{self.student.title()} at {self.size.min_size} to {self.size.max_size} px"


@dataclass(frozen=True)
class Cost:
    """What is counted of a candidate without running it at its size."""

    parameters: int
    trunk_gflops: float
    rest_gflops: float
    shown: float = 1.0
    """Share of the pixels of the largest size."""

    @property
    def gflops(self) -> float:
        return self.trunk_gflops + self.rest_gflops

    @property
    def capacity(self) -> float:
        return capacity(self.parameters, self.gflops, self.shown)


# --- candidates -----------------------------------------------------------------------------------------------


def sizes_for(figures: Figures, given: Size | None, of_teacher: Size | None) -> tuple[Size, ...]:
    """Falling. With a teacher its own size first, for it sees the same images."""
    if given is not None:
        return (given,)
    whole = of_teacher or figures.own_size()
    sides = [whole.min_size, *(32 * round(whole.min_size * share / 32) for share in SHRUNK)]
    chosen = [side for place, side in enumerate(sides) if place == 0 or SMALLEST <= side < min(sides[:place])]
    return tuple(Size(min_size=side, max_size=scaled_max_size(whole.min_size, whole.max_size, side)) for side in chosen)


def students() -> Iterator[DetectorSpec]:
    """Families x trunks x widths; of a family with several versions the first."""
    for family in members(DetectorSpec):
        build: Callable[..., DetectorSpec] = family
        if issubclass(family, TorchvisionTrunk):
            for trunk in get_args(Trunk):
                yield from (build(backbone=trunk, fpn_channels=width) for width in WIDTHS)


def candidates(figures: Figures, sizes: Sequence[Size], teacher: DetectorSpec | None) -> tuple[Candidate, ...]:
    """Every student at every size at which the small boxes keep a cell of its finest level; the largest size is always
    among them."""
    small = [figures.sides_px(size)[0] for size in sizes]
    return tuple(
        Candidate(student, size)
        for student in students()
        if teacher is None or levels_shared(student, teacher)
        for place, (size, side) in enumerate(zip(sizes, small, strict=True))
        if place == 0 or side is None or side >= student.levels()[0].stride
    )


def levels_shared(student: DetectorSpec, teacher: DetectorSpec) -> int:
    return len({level.stride for level in student.levels()} & {level.stride for level in teacher.levels()})


# --- what is timed --------------------------------------------------------------------------------------------


def families(costs: Mapping[Candidate, Cost]) -> list[Candidate]:
    """The cheapest of each family."""
    return first_of_each(cheapest_first(costs), Candidate.family)


def trunks(costs: Mapping[Candidate, Cost], timed: Mapping[Candidate, float]) -> list[Candidate]:
    """The cheapest of each trunk in the fastest family, the cheapest first; then of each family one in the middle, for
    how it grows."""
    cheap = cheapest_first(costs)
    fastest = min(timed, key=lambda each: timed[each]).family() if timed else cheap[0].family()
    of_family = {family: [each for each in cheap if each.family() == family] for family in {c.family() for c in cheap}}
    chosen = first_of_each(of_family[fastest], lambda each: each.student.backbone)
    chosen += (own[len(own) // 2] for own in of_family.values())
    return [each for each in chosen if each not in timed]


def cheapest_first(costs: Mapping[Candidate, Cost]) -> list[Candidate]:
    return sorted(costs, key=lambda each: costs[each].gflops)


def first_of_each(ordered: Iterable[Candidate], what: Callable[[Candidate], str]) -> list[Candidate]:
    found: dict[str, Candidate] = {}
    for each in ordered:
        found.setdefault(what(each), each)
    return list(found.values())


def estimated(costs: Mapping[Candidate, Cost], timed: Mapping[Candidate, float]) -> dict[Candidate, float]:
    """Milliseconds of every candidate: as timed, or as the others let expect."""
    if not timed:
        return {each: cost.gflops for each, cost in costs.items()}
    names = ["all"]
    for each in costs:
        names += [f"base {each.family()}", f"head {each.family()}", f"trunk {each.student.backbone}"]
    place = {name: n for n, name in enumerate(dict.fromkeys(names))}

    def parts(each: Candidate) -> list[float]:
        row = [0.0] * len(place)
        row[place[f"base {each.family()}"]] = 1.0
        row[place[f"head {each.family()}"]] = costs[each].rest_gflops
        row[place[f"trunk {each.student.backbone}"]] = costs[each].trunk_gflops
        return row

    # Least squares of the relative errors; each speed is drawn to the common one, whose scale is that of the data.
    rows = [[value / ms for value in parts(each)] for each, ms in timed.items()]
    wanted = [1.0] * len(rows)
    scale = float(np.median([ms / costs[each].gflops for each, ms in timed.items()]))
    for name, n in place.items():
        row = [0.0] * len(place)
        if name.startswith("base "):
            row[n] = SMOOTH / min(timed.values()) / 10
        elif name != "all":
            row[n], row[place["all"]] = SMOOTH / scale, -SMOOTH / scale
        rows.append(row)
        wanted.append(0.0)
    found, *_ = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)
    least = np.array([0.0 if name.startswith("base ") else scale / 20 for name in place])
    speeds = np.maximum(found, least)

    def plain(each: Candidate) -> float:
        return max(float(np.dot(parts(each), speeds)), 1e-3)

    of_pair: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for each, ms in timed.items():
        of_pair.setdefault(pair(each), []).append((costs[each].gflops, ms / plain(each)))
    return {each: timed.get(each) or plain(each) * nearest(of_pair.get(pair(each), []), costs[each]) for each in costs}


def pair(each: Candidate) -> tuple[str, str]:
    return each.family(), each.student.backbone


def nearest(ratios: Iterable[tuple[float, float]], cost: Cost) -> float:
    """By how much the nearest in size of the same family and trunk was slower than estimated."""
    return min(ratios, key=lambda each: abs(np.log(each[0] / cost.gflops)), default=(0.0, 1.0))[1]


def front(ms: Mapping[K, float], worth: Mapping[K, float]) -> list[K]:
    """Those of which no other is as fast and worth more, or faster and worth as much; the fastest first."""
    kept: list[K] = []
    best = float("-inf")
    for each in sorted(ms, key=lambda each: (ms[each], -worth[each])):
        if worth[each] > best:
            best = worth[each]
            kept.append(each)
    return kept


def next_to_time(
    costs: Mapping[Candidate, Cost], timed: Mapping[Candidate, float], left_out: Iterable[Candidate], budget_ms: float
) -> Candidate | None:
    """The largest untimed one that should fit and that nothing timed excels; if none should, the fastest. None: what
    should be best was timed."""
    gone = set(left_out)
    ms = {each: value for each, value in estimated(costs, timed).items() if each not in gone}
    within = {each: value for each, value in ms.items() if value <= budget_ms * (1 - HEADROOM / 2)}
    if not within:
        fastest = min(ms, key=lambda each: ms[each], default=None)
        return fastest if fastest not in timed else None
    best = front(within, {each: costs[each].capacity for each in within})
    return next((each for each in reversed(best[-FINALISTS:]) if each not in timed), None)


def worth_a_look(
    costs: Mapping[Candidate, Cost], timed: Mapping[Candidate, float], left_out: Iterable[Candidate], budget_ms: float
) -> Candidate | None:
    """For estimates err: of those that are larger than the best that was timed, the one that should miss the budget
    by the least, and not by far."""
    gone = {*left_out, *timed}
    largest = max((costs[each].capacity for each, ms in timed.items() if ms <= budget_ms), default=0.0)
    ms = {
        each: value
        for each, value in estimated(costs, timed).items()
        if each not in gone and value <= budget_ms * DOUBT and costs[each].capacity > largest
    }
    return min(ms, key=lambda each: ms[each], default=None)


@dataclass(frozen=True)
class Explored:
    timed: dict[Candidate, float]
    """Milliseconds, of few runs."""
    left_out: dict[Candidate, str]
    """Could not be built or exported: why."""


class NotTimed(Exception):
    """A candidate that cannot be built or exported; says why."""


def explore(
    costs: Mapping[Candidate, Cost],
    budget_ms: float,
    time_briefly: Callable[[Candidate], float],
    *,
    spread_until: float,
    until: float,
    clock: Callable[[], float],
    tell: Callable[[str], None],
) -> Explored:
    """Both times are of `clock`; what is being timed then is finished. time_briefly raises NotTimed."""
    timed: dict[Candidate, float] = {}
    left_out: dict[Candidate, str] = {}

    def time(each: Candidate) -> None:
        try:
            timed[each] = time_briefly(each)
        except NotTimed as error:
            left_out[each] = str(error)

    for small in (families(costs), None):
        for each in small or trunks(costs, timed):
            if timed and clock() >= spread_until:
                break
            if small is None and timed and estimated(costs, timed)[each] > HOPELESS * budget_ms:
                continue
            tell(f"timing a spread of students, {len(timed)} done")
            time(each)
    in_vain = 0
    while clock() < until and in_vain < IN_VAIN:
        chosen = next_to_time(costs, timed, left_out, budget_ms)
        if chosen is None:
            in_vain += 1
            chosen = worth_a_look(costs, timed, left_out, budget_ms)
        if chosen is None:
            break
        said = best_said(costs, timed, budget_ms)
        tell(f"closing in on {budget_ms:g} ms, {len(timed)} of {len(costs)} students timed; {said}")
        time(chosen)
        if timed.get(chosen, math.inf) <= budget_ms:
            in_vain = 0
    return Explored(timed, left_out)


def best_said(costs: Mapping[Candidate, Cost], timed: Mapping[Candidate, float], budget_ms: float) -> str:
    within = [each for each, ms in timed.items() if ms <= budget_ms]
    if within:
        best = max(within, key=lambda each: costs[each].capacity)
        return f"largest within it: {best.title()}, {timed[best]:.1f} ms"
    if not timed:
        return "none ran yet"
    fastest = min(timed, key=lambda each: timed[each])
    return f"fastest: {fastest.title()}, {timed[fastest]:.1f} ms"


def finalists(costs: Mapping[Candidate, Cost], timed: Mapping[Candidate, float], budget_ms: float) -> list[Candidate]:
    """Of the timed ones the best up to a little over the budget, largest first; if there is none, the fastest few."""
    near = {each: ms for each, ms in timed.items() if ms <= budget_ms * NEAR}
    if not near:
        return front(timed, {each: costs[each].capacity for each in timed})[:3]
    return front(near, {each: costs[each].capacity for each in near})[::-1][:FINALISTS]


def in_turn(
    runs: Mapping[K, Callable[[], object]],
    *,
    most: int,
    until: float,
    clock: Callable[[], float],
    stopwatch: Callable[[Callable[[], object]], Timing],
    tell: Callable[[str], None],
    least: int = 3,
    warm_up: int = 2,
) -> dict[K, list[Timing]]:
    """Each run of each, `most` rounds of one run each, so that whatever else the machine does meets all
    alike. After `until` no further round is begun, but `least` are always made."""
    times: dict[K, list[Timing]] = {each: [] for each in runs}
    for turn in range(warm_up + most):
        if turn >= warm_up + least and clock() >= until:
            break
        if turn >= warm_up:
            tell(f"timing the best {len(runs)} in turn, round {turn - warm_up + 1} of {most}")
        for each, run in runs.items():
            timing = stopwatch(run)
            if turn >= warm_up:
                times[each].append(timing)
    return times


def briefly(
    run: Callable[[], object],
    too_slow_ms: float,
    *,
    stopwatch: Callable[[Callable[[], object]], Timing],
    runs: int = 5,
    limit_ms: float = 3000.0,
) -> float:
    """Milliseconds: the median of a few runs. One that is too slow after two of them is run no more."""
    stopwatch(run)  # allocates
    times_ms: list[float] = []
    while len(times_ms) < runs and (len(times_ms) < 2 or sum(times_ms) < limit_ms):
        times_ms.append(stopwatch(run).ms)
        if len(times_ms) == 2 and min(times_ms) > too_slow_ms:
            break
    return float(np.median(times_ms)) if len(times_ms) > 2 else min(times_ms)


def refused_sizes(size: Size, teacher: DetectorSpec | None) -> None:
    """Raise SpecError where no candidate is left."""
    if teacher is not None:
        raise SpecError(
            f"no student that the service knows has a pyramid level of a stride that {teacher.title()} has", "/teacher"
        )
    raise SpecError(f"no student can be built at {size.min_size} to {size.max_size} px", "/size")
