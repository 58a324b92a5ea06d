"""What tests/unit/test_breadth.py adds to fgd/method_specs.py and fgd/detector_specs.py of a copy,
all that follows the imports."""

from __future__ import annotations

from typing import Literal

from fgd.detector_specs import Detector_, DetectorSpec, Level
from fgd.method_specs import Method_
from fgd.spec_fields import NonNegativeFloat, WeightsRef


class Correlation(Method_):
    """One minus the correlation of teacher and student, channel by channel, as PKD (arXiv 2207.02039) has it."""

    kind: Literal["correlation"] = "correlation"
    weight: NonNegativeFloat | None = None
    """Weight of the term, which is summed over levels."""

    def teaches(self) -> bool:
        return self.weight != 0

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        widths = {level.stride: level.channels for level in teacher.levels()}
        for level in student.levels():
            if (width := widths.get(level.stride, level.channels)) != level.channels:
                return f"correlation has no adapters, and {level.name} has {level.channels} channels and {width}"
        return None


class Soft(Method_):
    """The teacher's class logits as soft labels, place by place."""

    needs = frozenset({"logits"})

    kind: Literal["soft"] = "soft"
    weight: NonNegativeFloat | None = None
    """Weight of the term."""

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        return None if type(student) is type(teacher) else "soft compares place with place, for one family alone"


class Cross(Method_):
    """The student's maps through the rest of the teacher's tower, as CrossKD (arXiv 2306.11369) has it."""

    needs = frozenset({"logits", "towers"})

    kind: Literal["cross"] = "cross"
    weight: NonNegativeFloat | None = None
    """Weight of the term."""

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        return None if student.levels() == teacher.levels() else "cross is for heads of one width"


class Asked(Method_):
    """The teacher's second stage answers to the student's proposals."""

    needs = frozenset({"proposals"})

    kind: Literal["asked"] = "asked"
    weight: NonNegativeFloat | None = None
    """Weight of the term."""


class Pan(Detector_):
    """A small network of its own: a path aggregating neck, a head a level, points instead of anchors."""

    offers = frozenset({"features", "logits", "boxes", "anchors", "towers"})

    kind: Literal["pan"] = "pan"
    weights: Literal["none"] | WeightsRef = "none"
    """Where the network starts."""

    def levels(self) -> tuple[Level, ...]:
        return Level("p3", 8, 64), Level("p4", 16, 96), Level("p5", 32, 128)
