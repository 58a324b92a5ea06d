"""What a difference to the control is worth: its 95 % interval, and how much of the gap to the teacher it closes.

Runs are paired: a student's with the control's of the same seed, which saw the same batches. Two intervals:

    over seeds             the mean of the paired differences, +- Student's t times their standard error: another seed
                           would have given another difference
    over seeds and images  bootstrap that draws seeds and images again, both with replacement: other test images would
                           have, too. Images are drawn once for all runs of a resample, for all runs were tested on
                           the same ones: the bootstrap of crossed factors (Owen, The pigeonhole bootstrap, Ann. Appl.
                           Stat. 2007; percentiles: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 13).
                           Of S seeds the spread over seeds is widened by sqrt(S / (S - 1)), which the bootstrap of a
                           small sample lacks (Hesterberg, What Teachers Should Know About the Bootstrap, 2015, 5).

With one pair there is no interval over seeds, and the other is over images alone. AP, AP points and gaps: 0 to 100.
"""

# B resamples, S paired seeds

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgd.statistics.average_precision import average_precision, draw, resampled
from fgd.statistics.matching import Floats, Matches

CONFIDENCE = 0.95
RESAMPLES = 1000
SMALLEST_GAP = 1.0
"""AP points between control and teacher; under it a share of the gap is noise divided by noise."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float | None
    high: float | None
    """None: there is one pair of runs, and the interval is over seeds."""
    seeds: tuple[int, ...]
    """Those that both arms have, which it is of."""
    left_out: tuple[int, ...] = ()
    """Seeds that only one of them has, or whose figure is missing."""

    @property
    def above_zero(self) -> bool:
        """Whether all of the interval is."""
        return self.low is not None and self.low > 0.0


def difference(student: Mapping[int, float | None], control: Mapping[int, float | None]) -> Estimate | None:
    """Mean of student minus control over the seeds of both, with Student's t interval. None without a pair.

    student, control: the figure of each seed, such as AP; None or NaN where it is missing.
    """
    seeds, left_out = _paired(_known(student), _known(control))
    if not seeds:
        return None
    differences_S = np.array([_number(student[seed]) - _number(control[seed]) for seed in seeds])
    return _with_t(float(differences_S.mean()), differences_S, seeds, left_out)


def difference_over_images(
    student: Mapping[int, Matches],
    control: Mapping[int, Matches],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    iou: float | None = None,
    area: str = "all",
) -> Estimate | None:
    """The same over seeds and images, by bootstrap. None without a pair, or where no image has a box.

    student, control: by seed the matches of a run (`match`), all of the same images: one split, or val and test
    `joined`. seed: of the resamples; equal seeds give equal intervals. iou, area: see `average_precision`.
    Raises ValueError where runs are of different images.
    """
    seeds, left_out = _paired(student, control)
    ours, theirs = (
        {s: drawn(arm[s], resamples, seed, iou=iou, area=area) for s in seeds} for arm in (student, control)
    )
    found = difference_of_drawn(ours, theirs, seed)
    return found and dataclasses.replace(found, left_out=left_out)


@dataclass(frozen=True)
class Drawn:
    """AP of a run on its images, and on each of B resamples of them: all that an interval over images needs of it."""

    once: float
    value_B: Floats
    images: str
    """Of which images and classes; equal for runs that can be compared."""


def drawn(
    run: Matches, resamples: int = RESAMPLES, seed: int = 0, *, iou: float | None = None, area: str = "all"
) -> Drawn:
    """The same resamples for all runs of the same images, number of resamples and seed."""
    counts_BI = draw(len(run.image_id), resamples, (seed, 0))
    images = hashlib.sha256(json.dumps(run.classes).encode() + run.image_id.astype("<i8").tobytes()).hexdigest()
    return Drawn(average_precision(run, iou=iou, area=area), resampled(run, counts_BI, iou=iou, area=area), images)


def difference_of_drawn(student: Mapping[int, Drawn], control: Mapping[int, Drawn], seed: int = 0) -> Estimate | None:
    """As `difference_over_images`, of runs that were drawn before. Raises ValueError where they are of different images
    or resamples."""
    found = _drawn_pairs(student, control, seed)
    if found is None:
        return None
    values = found.over_seeds(found.student_BS - found.control_BS)
    students_S, controls_S = found.once
    return _with_percentiles(float(np.mean(students_S - controls_S)), values, found.seeds, found.left_out)


def gap_closed(
    student: Mapping[int, float | None], control: Mapping[int, float | None], teacher: float | None
) -> Estimate | None:
    """(student - control) / (teacher - control), means over the seeds of both: 1 is a student as good as the teacher.

    The interval is over seeds, of the ratio by the delta method (its residuals), with Student's t. None without a
    pair, without a teacher's figure, or where the teacher is less than SMALLEST_GAP above the control.
    """
    seeds, left_out = _paired(_known(student), _known(control))
    if not seeds or teacher is None or math.isnan(teacher):
        return None
    students_S = np.array([_number(student[seed]) for seed in seeds])
    controls_S = np.array([_number(control[seed]) for seed in seeds])
    gap = teacher - float(controls_S.mean())
    if gap < SMALLEST_GAP:
        return None
    share = float((students_S - controls_S).mean()) / gap
    residuals_S = (students_S - controls_S - share * (teacher - controls_S)) / gap
    return _with_t(share, residuals_S, seeds, left_out)


def gap_closed_over_images(
    student: Mapping[int, Matches],
    control: Mapping[int, Matches],
    teacher: Matches,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    iou: float | None = None,
    area: str = "all",
) -> Estimate | None:
    """The same over seeds and images, by bootstrap; the teacher is drawn on the same images.

    None as in `gap_closed`, and where more than one in forty resamples has a smaller gap than SMALLEST_GAP: then the
    interval has no end.
    """
    seeds, left_out = _paired(student, control)
    ours, theirs = (
        {s: drawn(arm[s], resamples, seed, iou=iou, area=area) for s in seeds} for arm in (student, control)
    )
    found = gap_closed_of_drawn(ours, theirs, drawn(teacher, resamples, seed, iou=iou, area=area), seed)
    return found and dataclasses.replace(found, left_out=left_out)


def gap_closed_of_drawn(
    student: Mapping[int, Drawn], control: Mapping[int, Drawn], teacher: Drawn, seed: int = 0
) -> Estimate | None:
    """As `gap_closed_over_images`, of runs that were drawn before."""
    found = _drawn_pairs(student, control, seed, teacher)
    if found is None:
        return None
    students_S, controls_S = found.once
    gap = teacher.once - float(controls_S.mean())
    gaps_B = teacher.value_B[found.some_B] - found.over_seeds(found.control_BS)
    large = gaps_B >= SMALLEST_GAP
    if not gap >= SMALLEST_GAP or np.mean(large) < 1.0 - (1.0 - CONFIDENCE) / 2:
        return None
    shares = found.over_seeds(found.student_BS - found.control_BS)[large] / gaps_B[large]
    share = float(np.mean(students_S - controls_S)) / gap
    return _with_percentiles(share, shares, found.seeds, found.left_out)


def students_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t that a Student variable of so many degrees of freedom stays within, on either side of 0, with that
    probability. By the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


# --- inside ---


@dataclass(frozen=True)
class _Pairs:
    """AP of each resample of the images (B) and run (S), and how often each seed was drawn."""

    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    once: tuple[Floats, Floats]
    """Student's and control's figures on the images as they are."""
    student_BS: Floats
    control_BS: Floats
    some_B: NDArray[np.bool_]
    """Resamples that have a box; the others are left out."""
    drawn_BS: Floats

    def over_seeds(self, values_BS: Floats) -> Floats:
        """The mean over the seeds that each resample drew, with the spread of a sample that is not small."""
        count = len(self.seeds)
        middle_B = values_BS.mean(axis=1)
        wider = math.sqrt(count / (count - 1)) if count > 1 else 1.0
        mean_B: Floats = middle_B + wider * ((self.drawn_BS * values_BS).sum(axis=1) / count - middle_B)
        return mean_B


def _drawn_pairs(
    student: Mapping[int, Drawn], control: Mapping[int, Drawn], seed: int, teacher: Drawn | None = None
) -> _Pairs | None:
    seeds, left_out = _paired(student, control)
    if not seeds:
        return None
    students, controls = [student[each] for each in seeds], [control[each] for each in seeds]
    runs = [*students, *controls, *([teacher] if teacher is not None else [])]
    if len({(run.images, len(run.value_B)) for run in runs}) > 1:
        raise ValueError("the runs are not of the same images and classes; compare those of one data set")
    once = [np.array([run.once for run in arm]) for arm in (students, controls)]
    if np.isnan(once).any():
        return None
    of_student, of_control = (np.stack([run.value_B for run in arm], axis=1) for arm in (students, controls))
    some_B = ~np.isnan(of_student[:, 0])  # whether there is a box depends on the images alone
    drawn_BS = draw(len(seeds), len(some_B), (seed, 1)).astype(np.float64)
    return _Pairs(seeds, left_out, (once[0], once[1]), of_student[some_B], of_control[some_B], some_B, drawn_BS[some_B])


def _paired(one: Mapping[int, object], other: Mapping[int, object]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(sorted(one.keys() & other.keys())), tuple(sorted(one.keys() ^ other.keys()))


def _known(values: Mapping[int, float | None]) -> Mapping[int, float]:
    return {seed: value for seed, value in values.items() if value is not None and not math.isnan(value)}


def _number(value: float | None) -> float:
    assert value is not None, "only seeds with a figure are paired"
    return value


def _with_t(value: float, samples_S: Floats, seeds: tuple[int, ...], left_out: tuple[int, ...]) -> Estimate:
    count = len(seeds)
    if count < 2:
        return Estimate(value, None, None, seeds, left_out)
    half = students_t(count - 1) * float(samples_S.std(ddof=1)) / math.sqrt(count)
    return Estimate(value, value - half, value + half, seeds, left_out)


def _with_percentiles(value: float, drawn_B: Floats, seeds: tuple[int, ...], left_out: tuple[int, ...]) -> Estimate:
    if not drawn_B.size:
        return Estimate(value, None, None, seeds, left_out)
    tail = 100.0 * (1.0 - CONFIDENCE) / 2
    low, high = (float(each) for each in np.percentile(drawn_B, [tail, 100.0 - tail]))
    return Estimate(value, low, high, seeds, left_out)


def _within(t: float, freedom: int) -> float:
    """Probability that a Student variable is between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for n in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (n - 1) / n
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
