"""The methods of distillation: what a request says of each, and what it takes of detectors. Knows no torch.

Numbers left out are None and come from `fgd.presets.resolve`; a weight of 0 switches its term off.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from fgd.detector_specs import DetectorSpec, Need
from fgd.spec_fields import Bool, NonNegativeFloat, PositiveFloat, Spec, members


class Method_(Spec):
    """What every method has."""

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    """What it takes of student and teacher; it is for families that offer all of it."""

    def teaches(self) -> bool:
        """Whether any term is on."""
        return True

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        """The layer that it trains at a level of these widths, in words; "none" where it trains none."""
        del student_channels, teacher_channels
        return "none"

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        """Why it cannot carry knowledge from this teacher to this student, though both offer what it needs."""
        del student, teacher
        return None


def convolution_if_unlike(student_channels: int, teacher_channels: int) -> str:
    """Of a method that needs maps of one width and no other layer: what `Method_.adapter` says."""
    return "none" if student_channels == teacher_channels else "1x1 convolution"


class FGD(Method_):
    """Focal and Global Knowledge Distillation for Detectors (arXiv 2111.11837), equations 1-13.

    Focal only: {"lambda": 0}. Global only: {"alpha": 0, "beta": 0, "gamma": 0}. Foreground only: {"beta": 0}.
    """

    kind: Literal["fgd"] = "fgd"
    alpha: NonNegativeFloat | None = None
    """Weight of the foreground's feature term (equation 8)."""
    beta: NonNegativeFloat | None = None
    """Weight of the background's feature term (equation 8)."""
    gamma: NonNegativeFloat | None = None
    """Weight of the attention term (equation 9)."""
    lambda_: NonNegativeFloat | None = Field(default=None, alias="lambda")
    """Weight of the global term (equation 12)."""
    temperature: PositiveFloat | None = None
    """T of both attentions (equations 6 and 7)."""
    compat: Literal["default", "official"] = "default"
    """"official": the numbers of the reference code, its box geometry and its raw sums included. "default": boxes
    relative to the padded input and clamped, features brought to a common scale, sums scaled to the reference
    geometry, so that the weights mean the same at any size and width."""
    box_cells: Literal["tight", "inclusive"] | None = None
    """Which cells belong to a box: "tight" those whose centre lies in it, "inclusive" every cell it touches and
    one more, as the reference does. Default: tight; official is always inclusive."""
    freeze_teacher_gc: Bool = False
    """Keep the teacher's context block as initialised; the reference trains it along with the student's."""

    @model_validator(mode="after")
    def _official_is_inclusive(self) -> Self:
        if self.compat == "official" and self.box_cells == "tight":
            raise ValueError('compat "official" counts cells inclusively; leave out box_cells')
        return self

    def teaches(self) -> bool:
        """Whether any term is on."""
        return any(weight != 0 for weight in (self.alpha, self.beta, self.gamma, self.lambda_))

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)


class Mimic(Method_):
    """Plain imitation of the neck's maps, FitNets' hint applied to detectors: the baseline FGD must beat."""

    kind: Literal["mimic"] = "mimic"
    weight: NonNegativeFloat | None = None
    """Weight of the squared error, summed over channels and averaged over valid cells."""

    def teaches(self) -> bool:
        """Whether its term is on."""
        return self.weight != 0

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)


MethodSpec = Annotated[FGD | Mimic, Field(discriminator="kind")]


def unserved(method: MethodSpec, detector: DetectorSpec) -> str | None:
    """Why a network of this family cannot be student or teacher of `method`."""
    lacking = [need for need in get_args(Need) if need in method.needs - detector.offers]
    if not lacking:
        return None
    return (
        f"{method.kind} needs {' and '.join(lacking)} of student and teacher, but {detector.kind} has no "
        f"{' and no '.join(lacking)}; families that have them: {', '.join(families_for(type(method))) or 'none'}"
    )


def families_for(method: type[Method_]) -> list[str]:
    """The kinds of detectors that offer what it takes."""
    return [family.model_fields["kind"].default for family in members(DetectorSpec) if method.needs <= family.offers]
