"""What the study's lines say, as Markdown: a table for each setting, and one of all methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fgd.statistics.curves import Point, plateau, time_to_quality
from fgd.statistics.intervals import Drawn, Estimate, difference, difference_of_drawn, gap_closed
from tests.studies.comparison import plan
from tests.studies.comparison.record import Finished

CONTROL = "control"
WEAK_GAP = 3.0
"""AP points that a teacher must be above the control."""
Lines = Mapping[str, Finished]


def markdown(lines: Lines) -> str:
    return "\n".join(row for setting in plan.SETTINGS for row in of_setting(setting, lines))


def of_setting(setting: str, lines: Lines) -> Iterator[str]:
    arms = {arm: of_arm(setting, arm, lines) for arm in plan.SETTINGS[setting].seeds}
    if not any(arms.values()):
        return
    teacher = lines.get(f"{plan.SETTINGS[setting].taught_by or setting}/{plan.TEACHER}/0")
    taught = teacher.ap["ap"] if teacher else None
    yield from (f"### {setting}", "")
    yield heading(taught, of_arm(*plan.control_of(setting, CONTROL), lines))
    yield ""
    yield (
        "| arm | seeds | AP | minus control | over seeds | over seeds and images | gap closed "
        "| reaches the control's AP after |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for arm, runs in arms.items():
        if runs:
            yield row(arm, runs, of_arm(*plan.control_of(setting, arm), lines), taught)
    yield ""


def of_arm(setting: str, arm: str, lines: Lines) -> dict[int, Finished]:
    """By seed."""
    named = ((seed, lines.get(f"{setting}/{arm}/{seed}")) for seed in range(plan.SETTINGS[setting].seeds.get(arm, 0)))
    return {seed: line for seed, line in named if line is not None}


def heading(taught: float | None, controls: Mapping[int, Finished]) -> str:
    told = []
    mean = np.mean([ap_of(each) for each in controls.values()]) if controls else None
    if taught is not None:
        weak = mean is not None and taught - mean < WEAK_GAP
        told.append(f"Teacher: AP {taught:.1f}{' (**weak teacher**)' if weak else ''}.")
    stands = [plateau(points(each), each.steps) for each in controls.values()]
    rises = [each.rise for each in stands if each is not None]
    if rises:
        count = sum(each.stands for each in stands if each is not None)
        told.append(
            "Over the last third of the schedule the control's validation AP rises by "
            f"{np.mean(rises):.1f} on average; {count} of {len(rises)} controls stand at their plateau."
        )
    return " ".join(told)


def row(arm: str, runs: Mapping[int, Finished], controls: Mapping[int, Finished], taught: float | None) -> str:
    aps, of_controls = ({seed: ap_of(each) for seed, each in of.items()} for of in (runs, controls))
    values = np.array(list(aps.values()))
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    cells = [arm, str(len(runs)), f"{values.mean():.1f}{spread}"]
    if arm == CONTROL or not controls:
        cells += [""] * 5
    else:
        over_seeds = difference(aps, of_controls)
        over_both = difference_of_drawn(kept(runs), kept(controls))
        gap = gap_closed(aps, of_controls, taught)
        cells += [
            f"{over_seeds.value:+.1f}" if over_seeds else "",
            interval(over_seeds),
            interval(over_both),
            f"{100 * gap.value:.0f} %" if gap else "",
            reached(runs, controls),
        ]
    return "| " + " | ".join(cells) + " |"


def interval(of: Estimate | None) -> str:
    if of is None or of.low is None or of.high is None:
        return ""
    text = f"{of.low:+.1f} to {of.high:+.1f}"
    return f"**{text}**" if of.low > 0 or of.high < 0 else text


def reached(runs: Mapping[int, Finished], controls: Mapping[int, Finished]) -> str:
    """Median share of the control's steps, and how many runs reach its final validation AP at all."""
    pairs = [(runs[seed], controls[seed]) for seed in runs.keys() & controls.keys()]
    found = [time_to_quality(points(run), control.curve[-1][1], control.steps) for run, control in pairs]
    ratios = [each.steps_ratio for each in found if each is not None]
    if not pairs:
        return ""
    median = f"{100 * float(np.median(ratios)):.0f} % of its steps" if ratios else "never"
    return median + (f" ({len(ratios)} of {len(pairs)})" if 0 < len(ratios) < len(pairs) else "")


def kept(runs: Mapping[int, Finished]) -> dict[int, Drawn]:
    return {seed: Drawn(ap_of(each), np.array(each.drawn), each.images) for seed, each in runs.items()}


def points(run: Finished) -> list[Point]:
    return [Point(step, ap) for step, ap in run.curve]


def ap_of(run: Finished) -> float:
    ap = run.ap["ap"]
    assert ap is not None, "every set of the study has boxes"
    return ap
