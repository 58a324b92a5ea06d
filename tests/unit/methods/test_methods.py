"""The registry of methods, and which levels a pair of detectors shares."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from fgd.detector_specs import FCOS
from fgd.method_specs import FGD, MethodSpec, Mimic
from fgd.methods import METHODS, Pair, build
from fgd.methods.base import Adapter, SharedLevel, adapters
from fgd.methods.fgd import FGDLoss
from fgd.methods.mimic import MimicLoss
from fgd.presets import fgd_for_fcos, mimic
from fgd.spec import Schedule
from fgd.types import Calibration
from tests.rounding import BF16, of_sum

PAIR = Pair.alike({"p3": 8, "p4": 16}, student_channels=32, teacher_channels=64)
CALIBRATION = Calibration(teacher_rms={"p3": 2.0, "p4": 3.0}, boxes_per_image=4.0)


def test_every_method_of_the_spec_has_a_module() -> None:
    assert set(METHODS) == set(get_args(get_args(MethodSpec)[0]))


@pytest.mark.parametrize("spec", [fgd_for_fcos(), mimic()])
def test_build_makes_the_module_of_the_spec(spec: FGD | Mimic) -> None:
    assert type(build(spec, PAIR, CALIBRATION, Schedule())) is {FGD: FGDLoss, Mimic: MimicLoss}[type(spec)]


@pytest.mark.parametrize("spec", [FGD(), Mimic()])
def test_build_wants_a_resolved_spec(spec: FGD | Mimic) -> None:
    with pytest.raises(AssertionError, match="resolve"):
        build(spec, PAIR, CALIBRATION, Schedule())


def test_a_pair_shares_the_levels_of_equal_stride() -> None:
    pair = Pair.of(FCOS(fpn_channels=96), FCOS(fpn_channels=128))

    strides = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    assert pair == Pair.alike(strides, student_channels=96, teacher_channels=128)


def test_adapters_are_one_1x1_convolution_a_level() -> None:
    align = adapters(PAIR)

    assert list(align) == ["p3", "p4"]
    assert {tuple(weight.shape) for weight in align.parameters()} == {(64, 32, 1, 1), (64,)}


@pytest.mark.parametrize("spec", [fgd_for_fcos(), mimic()])
def test_a_spec_says_which_adapters_its_module_trains(spec: FGD | Mimic) -> None:
    levels = {"p3": SharedLevel(8, 32, 64), "p4": SharedLevel(16, 48, 48)}
    method = build(spec, Pair(levels), CALIBRATION, Schedule())

    said = {name: spec.adapter(each.student_channels, each.teacher_channels) for name, each in levels.items()}
    assert said == {"p3": "1x1 convolution", "p4": "none"}
    assert isinstance(method.get_submodule("align.p3"), Adapter)
    assert not list(method.get_submodule("align.p4").parameters())


def test_equal_widths_need_no_adapter() -> None:
    align = adapters(Pair.alike({"p3": 8}, 32, 32))
    feature_NCHW = torch.rand(1, 32, 2, 2)

    assert list(align.parameters()) == []
    assert align["p3"](feature_NCHW) is feature_NCHW


@pytest.mark.numeric
def test_an_adapter_computes_in_bf16_only_in_training_and_gives_float32() -> None:
    """In bf16 each factor is rounded once and so is the sum: three roundings of 2^-8 of the sum of magnitudes, at most.
    In float32 it is a sum of 32 products and a bias."""
    torch.manual_seed(0)
    method = build(fgd_for_fcos(), PAIR, CALIBRATION, Schedule())
    adapter = method.get_submodule("align.p3")
    map_NCHW = torch.randn(2, 32, 5, 7)
    arguments = [each.double() for each in (map_NCHW, adapter.weight, adapter.bias)]
    exact = torch.nn.functional.conv2d(*arguments)
    magnitude = torch.nn.functional.conv2d(*(each.abs() for each in arguments))

    method.train_in_bf16(on=True)
    trained, evaluated = adapter(map_NCHW), adapter.eval()(map_NCHW)

    assert trained.dtype == evaluated.dtype == torch.float32
    assert ((trained - exact).abs() <= 3.1 * BF16 * magnitude).all()
    assert (trained - exact).abs().max() > of_sum(33) * magnitude.max(), "that was not bf16"
    assert ((evaluated - exact).abs() <= of_sum(33) * magnitude).all()
