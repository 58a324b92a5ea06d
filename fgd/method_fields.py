"""What several methods have in common: a temperature that is found out, the attention behind it, shares of terms.
Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from fgd.spec_fields import Float, PositiveFloat, Spec


def _number_or_auto(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise PydanticCustomError("temperature", 'must be a number, without quotes, or "auto"')
    return value


def _which(value: Any) -> str:
    return "word" if isinstance(value, str) else "number"


Temperature = Annotated[
    Annotated[PositiveFloat, Tag("number")] | Annotated[Literal["auto"], Tag("word")],
    Discriminator(_which),
    BeforeValidator(_number_or_auto),
]
"""Of a softmax. "auto": so that its perplexity on the teacher's maps is the method's `perplexity`."""
Perplexity = Annotated[Float, Field(gt=0, lt=1)]
"""exp(entropy) of a softmax as a share of what it runs over: 1 if all count alike."""

Statistic = Literal["absmean", "absmax", "sq"]
Softmax = Literal["spatial", "channel"]
"""Over the cells of a level, or over its channels."""


@dataclass(frozen=True)
class Attention:
    """Softmaxes of the teacher's maps that a method weighs cells and channels by."""

    softmaxes: tuple[Softmax, ...]
    temperature: float | Literal["auto"] | None
    perplexity: float | None
    """What "auto" aims at."""
    statistic: Statistic = "absmean"
    """What they are softmaxes of: of |F| or F^2, over channels or cells."""
    levels: int | None = None
    """How many of the shared levels, the finest first; None: all."""
    official: bool = False
    """Maps as they are, padding included; else maps of a common scale, valid cells only."""


class FGDShares(Spec):
    """How strong each of FGD's terms is beside the others, where `rho` says how strong all of them are."""

    fg: PositiveFloat | None = None
    """Of the foreground's feature term. Default: 1."""
    bg: PositiveFloat | None = None
    """Of the background's feature term. Default: 1."""
    unsplit: PositiveFloat | None = None
    """Of the one feature term that there is with `split` false. Default: what both parts have."""
    attention: PositiveFloat | None = None
    """Of the attention term. Default: 0.1."""
    global_: PositiveFloat | None = Field(default=None, alias="global")
    """Of the global term. Default: 1."""

    def by_term(self) -> dict[str, float]:
        """Of those that are given, by the term's name in the losses."""
        return {name.removesuffix("_"): value for name, value in self if value is not None}
