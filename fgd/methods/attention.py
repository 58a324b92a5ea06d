"""What attentions are softmaxes of, how warm each one is, and how spread out they are on the teacher's maps."""

# N images, C channels, H x W cells of a level, K cells or channels of an image

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgd.method_fields import Attention, Softmax
from fgd.method_specs import FGD, FKD
from fgd.methods.focus import Focus, of_both
from fgd.methods.paired import TEACHER_RMS, PairedMaps, masked
from fgd.methods.perplexity import median_perplexity, temperature_for
from fgd.types import Calibration


def absmean(map_NCHW: Tensor, valid_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Of cells, N1HW, and of channels, NC."""
    return map_NCHW.abs().mean(1, keepdim=True), mean_of_cells(map_NCHW.abs(), valid_N1HW)


def absmax(map_NCHW: Tensor, valid_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    return map_NCHW.abs().amax(1, keepdim=True), (valid_N1HW * map_NCHW.abs()).amax((2, 3))


def square(map_NCHW: Tensor, valid_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    return map_NCHW.square().mean(1, keepdim=True), mean_of_cells(map_NCHW.square(), valid_N1HW)


def mean_of_cells(map_NCHW: Tensor, valid_N1HW: Tensor) -> Tensor:
    return (valid_N1HW * map_NCHW).sum((2, 3)) / valid_N1HW.sum((2, 3)).clamp(min=1)


class Statistic(NamedTuple):
    of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Maps and where they are valid -> of cells, N1HW, and of channels, NC."""
    degree: int
    """It grows with the map's scale to this power."""


STATISTICS = {"absmean": Statistic(absmean, 1), "absmax": Statistic(absmax, 1), "sq": Statistic(square, 2)}


class Temperatures(NamedTuple):
    """Of the attentions of one level; of no consequence where a method does not have one."""

    spatial: float = 1.0
    channel: float = 1.0


def attentions(
    map_NCHW: Tensor, valid_N1HW: Tensor, temperatures: Temperatures, statistic: str = "absmean"
) -> tuple[Tensor, Tensor]:
    """Spatial, N1HW, and channel, NC: softmaxes of the statistic, each of mean 1 over what counts."""
    of_cells_N1HW, of_channels_NC = STATISTICS[statistic].of(map_NCHW, valid_N1HW)
    spatial, channel = temperatures
    logits_N1HW = masked(of_cells_N1HW / spatial, valid_N1HW > 0)
    share_N1HW = logits_N1HW.flatten(1).softmax(1).view_as(logits_N1HW)
    channel_NC = map_NCHW.shape[1] * (of_channels_NC / channel).softmax(1)
    return valid_N1HW.sum((1, 2, 3), keepdim=True) * share_N1HW, channel_NC


def attention_focus(maps: PairedMaps, temperatures: Temperatures, statistic: str = "absmean") -> Iterator[Focus]:
    """Both networks' attentions, spatial and channel."""
    (ours_N1HW, ours_NC), (theirs_N1HW, theirs_NC) = (
        attentions(each, maps.valid_N1HW, temperatures, statistic) for each in (maps.student_NCHW, maps.teacher_NCHW)
    )
    yield from of_both("spatial attention", maps.level, teacher=theirs_N1HW[:, 0], student=ours_N1HW[:, 0])
    yield from of_both("channel attention", maps.level, teacher=theirs_NC, student=ours_NC)


def temperatures(spec: FGD | FKD, levels: Iterable[str], calibration: Calibration) -> dict[str, Temperatures]:
    """Level -> its temperatures: the spec's, or what was measured."""
    if spec.temperature != "auto":
        assert spec.temperature is not None, "fgd.presets.resolve fills it in"
        return dict.fromkeys(levels, Temperatures(spec.temperature, spec.temperature))
    if spec.teacher_attention() is None:
        return dict.fromkeys(levels, Temperatures())
    return {level: Temperatures(**calibration.temperatures[spec.kind][level]) for level in levels}


# --- measuring ------------------------------------------------------------------------------------------------


OfLevels = dict[str, dict[str, dict[str, float]]]
"""Method -> level -> softmax -> a number."""


@dataclass(frozen=True)
class Measured:
    temperatures: OfLevels
    """Of the methods whose temperature is found out."""
    perplexities: OfLevels
    """Of all attentions, medians over the images."""


class AttentionMeter:
    """Collects the statistics of the teacher's maps, image by image."""

    def __init__(self, attentions: Mapping[str, Attention]) -> None:
        """attentions: by the method's kind."""
        self.attentions = attentions
        self.sources = {(each.statistic, each.official) for each in attentions.values()}
        self.found: dict[tuple[Any, ...], list[Tensor]] = {}

    def add(self, level: str, map_NCHW: Tensor, valid_N1HW: Tensor) -> None:
        """valid: 1 where a cell counts, else 0, of the map's type."""
        for name, official in self.sources:
            counts_N1HW = torch.ones_like(valid_N1HW) if official else valid_N1HW
            of_cells_N1HW, of_channels_NC = STATISTICS[name].of(map_NCHW, counts_N1HW)
            for cells_HW, channels_C, counts_HW in zip(
                of_cells_N1HW[:, 0].cpu(), of_channels_NC.cpu(), counts_N1HW[:, 0].cpu(), strict=True
            ):
                self.found.setdefault((name, official, level, "spatial"), []).append(cells_HW[counts_HW > 0])
                self.found.setdefault((name, official, level, "channel"), []).append(channels_C)

    def measured(self, teacher_rms: Mapping[str, float]) -> Measured:
        """Of levels with a scale; a level without one is refused where methods are built."""
        alive = [level for level, rms in teacher_rms.items() if math.isfinite(rms) and rms > 0]
        warm: OfLevels = {}
        spread: OfLevels = {}
        for kind, attention in self.attentions.items():
            for level in list(teacher_rms)[: attention.levels]:
                if level not in alive:
                    continue
                scale = 1.0 if attention.official else TEACHER_RMS / teacher_rms[level]
                found = {softmax: self._of(attention, level, softmax, scale) for softmax in attention.softmaxes}
                warm.setdefault(kind, {})[level] = {softmax: each for softmax, (each, _) in found.items()}
                spread.setdefault(kind, {})[level] = {softmax: each for softmax, (_, each) in found.items()}
        auto = {kind for kind, attention in self.attentions.items() if attention.temperature == "auto"}
        return Measured({kind: each for kind, each in warm.items() if kind in auto}, spread)

    def _of(self, attention: Attention, level: str, softmax: Softmax, scale: float) -> tuple[float, float]:
        """The temperature, and the median perplexity at it. scale: of the maps."""
        by_scale = scale ** STATISTICS[attention.statistic].degree
        unscaled_K = self.found[attention.statistic, attention.official, level, softmax]
        images_K = [by_scale * each.double() for each in unscaled_K]
        temperature = attention.temperature
        if temperature == "auto":
            assert attention.perplexity is not None, "fgd.presets.resolve fills it in"
            temperature = temperature_for(images_K, attention.perplexity)
        assert temperature is not None, "fgd.presets.resolve fills it in"
        return temperature, median_perplexity(images_K, temperature)
