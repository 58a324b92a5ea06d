"""Attentions of a stated perplexity: the temperatures that are found, and what methods do with them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fgd.detector_specs import FCOS
from fgd.engine.teacher import in_words, peaked
from fgd.method_specs import FGD, FKD
from fgd.methods import build
from fgd.methods.attention import AttentionMeter
from fgd.methods.base import Method
from fgd.methods.fgd import FGDLoss
from fgd.methods.fgd_variants import VariedFGDLoss
from fgd.presets import complete
from fgd.types import Calibration, View
from tests.unit.methods.made_up import CALIBRATION, IMAGES, SCHEDULE, STRIDES, batch, pair, view

OF_CELL: dict[str, Callable[[Tensor], Tensor]] = {
    "absmean": lambda x: x.abs().mean(),
    "absmax": lambda x: x.abs().max(),
    "sq": lambda x: x.square().mean(),
}


def uneven(seed: int, size: float = 1.0) -> View:
    """Maps whose cells and channels are not all alike."""
    made = view(seed)
    features = {}
    for level, map_NCHW in made.features.items():
        _, channels, height, width = map_NCHW.shape
        by_channel = torch.linspace(0.2, 3.0, channels)[:, None, None]
        by_cell = torch.linspace(0.1, 2.0, height * width).view(height, width)
        features[level] = size * by_channel * by_cell * map_NCHW
    return replace(made, features=features)


def calibrated(spec: FGD | FKD, teacher: View) -> Calibration:
    """As a training does."""
    attention = spec.teacher_attention()
    meter = AttentionMeter({spec.kind: attention} if attention is not None else {})
    rms = {}
    for level, map_NCHW in teacher.features.items():
        valid_N1HW = torch.zeros_like(map_NCHW[:, :1])
        for n, (height, width) in enumerate(IMAGES):
            valid_N1HW[n, :, : -(-height // STRIDES[level]), : -(-width // STRIDES[level])] = 1
        meter.add(level, map_NCHW, valid_N1HW)
        energy = (valid_N1HW * map_NCHW.square()).sum() / (valid_N1HW.sum() * map_NCHW.shape[1])
        rms[level] = float(energy.sqrt())
    found = meter.measured(rms)
    return Calibration(rms, CALIBRATION.boxes_per_image, found.temperatures, found.perplexities)


def perplexity(numbers: list[float], temperature: float) -> float:
    """By the formula, number by number."""
    most = max(numbers)
    weights = [math.exp((each - most) / temperature) for each in numbers]
    shares = [each / sum(weights) for each in weights]
    return math.exp(-sum(each * math.log(each) for each in shares if each)) / len(numbers)


@pytest.mark.parametrize("statistic", list(OF_CELL))
@pytest.mark.parametrize("target", [0.3, 0.7])
def test_auto_finds_the_temperature_of_each_level_and_attention(statistic: str, target: float) -> None:
    spec = complete(FGD.model_validate({"perplexity": target, "attention": statistic}), FCOS)
    assert isinstance(spec, FGD)
    teacher = uneven(2)
    calibration = calibrated(spec, teacher)
    of = OF_CELL[statistic]
    for level, stride in STRIDES.items():
        found = calibration.temperatures["fgd"][level]
        of_cells, of_channels = [], []
        for map_CHW, (height, width) in zip(teacher.features[level], IMAGES, strict=True):
            inside = 0.3 / calibration.teacher_rms[level] * map_CHW[:, : -(-height // stride), : -(-width // stride)]
            cells = [float(of(cell)) for cell in inside.flatten(1).T]
            of_cells.append(perplexity(cells, found["spatial"]))
            of_channels.append(perplexity([float(of(each)) for each in inside], found["channel"]))
        assert statistics.median(of_cells) == pytest.approx(target, abs=1e-4)
        assert statistics.median(of_channels) == pytest.approx(target, abs=1e-4)
        assert calibration.perplexities["fgd"][level] == pytest.approx({"spatial": target, "channel": target})


@pytest.mark.parametrize("statistic", list(OF_CELL))
def test_the_size_of_the_teachers_maps_does_not_matter(statistic: str) -> None:
    spec = complete(FGD.model_validate({"perplexity": 0.5, "attention": statistic}), FCOS)
    assert isinstance(spec, FGD)
    found, loud = (calibrated(spec, uneven(2, size)).temperatures["fgd"] for size in (1.0, 64.0))
    for level, of_level in found.items():
        assert loud[level] == pytest.approx(of_level, rel=1e-4)


def method(spec: Any, calibration: Calibration, of: Callable[..., Method] = build) -> Method:
    torch.manual_seed(0)
    return of(spec, pair(), calibration, SCHEDULE)


@pytest.mark.parametrize(
    ("kind", "varied"), [(FGD, {}), (FGD, {"attend": "spatial"}), (FGD, {"attention": "sq"}), (FKD, {})]
)
def test_a_temperature_that_is_found_counts_as_one_that_is_given(kind: Any, varied: dict[str, str]) -> None:
    given, auto = (complete(kind.model_validate({"temperature": each, **varied}), FCOS) for each in (0.375, "auto"))
    softmaxes = dict.fromkeys(given.teacher_attention().softmaxes, 0.375)
    found = replace(CALIBRATION, temperatures={given.kind: dict.fromkeys(STRIDES, softmaxes)})
    expected = method(given, CALIBRATION)(uneven(1), uneven(2), batch())
    for name, term in method(auto, found)(uneven(1), uneven(2), batch()).items():
        assert term.item() == pytest.approx(expected[name].item(), rel=1e-6)


def test_levels_and_attentions_have_temperatures_of_their_own_in_both_ways_of_fgd() -> None:
    spec = complete(FGD(temperature="auto").but(lambda_=0.0), FCOS)
    warm = {"fgd": {"p3": {"spatial": 0.1, "channel": 0.7}, "p4": {"spatial": 2.0, "channel": 0.3}}}
    found = replace(CALIBRATION, temperatures=warm)
    fast, plain = (method(spec, found, each)(uneven(1), uneven(2), batch()) for each in (FGDLoss, VariedFGDLoss))
    assert fast.keys() == plain.keys() == {"fg", "bg", "attention"}
    for name, term in fast.items():
        assert term.item() == pytest.approx(plain[name].item(), rel=1e-5)
    for level in STRIDES:
        for softmax in ("spatial", "channel"):
            other = {each: dict(temperatures) for each, temperatures in warm["fgd"].items()}
            other[level][softmax] *= 3
            again = method(spec, replace(CALIBRATION, temperatures={"fgd": other}))(uneven(1), uneven(2), batch())
            assert all(again[name] != term for name, term in fast.items()), (level, softmax)


@pytest.mark.parametrize(
    ("spec", "softmaxes"),
    [
        (FGD(), ("spatial", "channel")),
        (FGD(attend="channel"), ("channel",)),
        (FGD(attend="none"), None),
        (FGD(alpha=0.0, beta=0.0, gamma=0.0), None),
        (FGD(alpha=0.0, beta=0.0), ("spatial", "channel")),
        (FGD(split=False, gamma=0.0), ("spatial", "channel")),
        (FKD(), ("spatial",)),
        (FKD(feature=0.0), None),
    ],
)
def test_only_an_attention_that_has_an_effect_is_measured(spec: FGD | FKD, softmaxes: tuple[str, ...] | None) -> None:
    attention = spec.teacher_attention()
    assert (attention.softmaxes if attention is not None else None) == softmaxes
    auto = complete(spec.but(temperature="auto"), FCOS)
    assert isinstance(auto, FGD | FKD)
    calibration = calibrated(auto, uneven(2))
    assert set(calibration.temperatures) == ({spec.kind} if softmaxes else set())
    assert all(term.isfinite() for term in method(auto, calibration)(uneven(1), uneven(2), batch()).values())


def test_only_the_levels_that_a_method_compares_are_measured() -> None:
    spec = complete(FKD(temperature="auto", levels=1), FCOS)
    assert isinstance(spec, FKD)
    assert set(calibrated(spec, uneven(2)).perplexities["fkd"]) == {"p3"}


def test_the_official_attention_is_measured_as_it_is_computed() -> None:
    """Maps as they are, padding and all."""
    spec = complete(FKD(compat="official"), FCOS)
    assert isinstance(spec, FKD)
    assert isinstance(spec.temperature, float)
    teacher = uneven(2)
    calibration = calibrated(spec, teacher)
    of_images = [
        perplexity([float(cell.abs().mean()) for cell in map_CHW.flatten(1).T], spec.temperature)
        for map_CHW in teacher.features["p3"]
    ]
    assert calibration.perplexities["fkd"]["p3"]["spatial"] == pytest.approx(statistics.median(of_images), rel=1e-4)
    assert calibration.temperatures == {}


def test_an_attention_on_hardly_anything_is_warned_of_whatever_its_temperature_comes_from() -> None:
    of_levels = {"p3": {"spatial": 0.04, "channel": 0.5}, "p4": {"spatial": 0.2, "channel": 0.099}}
    given = replace(CALIBRATION, perplexities={"fgd": of_levels, "fkd": {"p3": {"spatial": 0.1}}})
    (note,) = peaked(given)
    assert (note.code, note.level, note.data["method"]) == ("attention_peaked", "warning", "fgd")
    assert [(each["level"], each["softmax"]) for each in note.data["perplexities"]] == [
        ("p3", "spatial"),
        ("p4", "channel"),
    ]
    assert "4.0 % of the cells at p3, 9.9 % of the channels at p4" in note.message
    assert '"temperature": "auto"' in note.message
    (note,) = peaked(replace(given, temperatures={"fgd": of_levels}))
    assert "higher perplexity" in note.message


def test_what_was_found_is_said() -> None:
    warm = {"fgd": {"p3": {"spatial": 0.0123, "channel": 0.7}, "p4": {"spatial": 2.0, "channel": 0.25}}}
    said = in_words(replace(CALIBRATION, temperatures=warm))
    assert "temperature of fgd's spatial and channel attention: p3 0.0123 and 0.7, p4 2 and 0.25" in said
    assert in_words(CALIBRATION) == "RMS of the teacher's maps: p3 2.00, p4 0.50; 1.0 boxes per image"
