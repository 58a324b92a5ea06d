"""FGD's choices: with the paper's they give what the fast way gives, and each changes what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fgd.method_specs import FGD
from fgd.methods.base import Method, Pair, SharedLevel
from fgd.methods.fgd import FGDLoss
from fgd.methods.fgd_variants import VariedFGDLoss, fgd_loss
from fgd.presets import fgd_for_retinanet
from tests.unit.methods.made_up import BOXES, CALIBRATION, IMAGES, SCHEDULE, STRIDES, WIDTH, batch, pair, view

pytestmark = pytest.mark.numeric
SPEC = fgd_for_retinanet()


def terms(method: Method) -> dict[str, Tensor]:
    found: dict[str, Tensor] = method(doubled(1), doubled(2), batch())
    return found


def made(spec: FGD, of: type[Method] | None = None, levels: Pair | None = None) -> Method:
    """With trained context blocks: at first they are the identity."""
    torch.manual_seed(0)
    method = (of or fgd_loss)(spec, levels or pair(), CALIBRATION, SCHEDULE)  # type: ignore[call-arg]
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    return method.double()


def test_the_papers_choices_take_the_fast_way() -> None:
    assert type(fgd_loss(SPEC, pair(), CALIBRATION, SCHEDULE)) is FGDLoss
    assert type(fgd_loss(SPEC.but(attend="spatial"), pair(), CALIBRATION, SCHEDULE)) is VariedFGDLoss


def doubled(of: int) -> Any:
    made = view(of)
    return type(made)({level: each.double() for level, each in made.features.items()})


@pytest.mark.parametrize("widths", [(WIDTH, WIDTH), (WIDTH, 32)])
def test_both_ways_give_the_same_terms(widths: tuple[int, int]) -> None:
    """In float64, also where levels are of several widths."""
    levels = Pair({name: SharedLevel(STRIDES[name], WIDTH, width) for name, width in zip(STRIDES, widths, strict=True)})
    student, teacher = doubled(1), doubled(2)
    for name, width in zip(STRIDES, widths, strict=True):
        teacher.features[name] = teacher.features[name][:, :width]
    fast, plain = made(SPEC, FGDLoss, levels), made(SPEC, VariedFGDLoss, levels)
    named = {name.replace("_related", "_context"): each for name, each in plain.named_parameters()}
    with torch.no_grad():
        for name, parameter in fast.named_parameters():
            parameter.copy_(named.pop(name))
    assert not named
    expected, found = (each(student, teacher, batch()) for each in (fast, plain))

    assert found.keys() == expected.keys() == {"fg", "bg", "attention", "global"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), "the scales are float32"


def test_unsplit_is_one_mean_over_all_cells_of_each_image() -> None:
    """Without attention a loop can say it."""
    spec = SPEC.but(split=False, attend="none", lambda_=0.0)
    student, teacher = doubled(1), doubled(2)
    (found,) = made(spec)(student, teacher, batch()).values()

    expected = 0.0
    for level, stride in STRIDES.items():
        scale = 0.3 / CALIBRATION.teacher_rms[level]
        for n, (height, width) in enumerate(IMAGES):
            lines, columns = -(-height // stride), -(-width // stride)
            apart = (student.features[level] - teacher.features[level])[n, :, :lines, :columns]
            expected += float((scale * apart).square().sum()) / (lines * columns) / len(BOXES)
    assert found.item() == pytest.approx((7.3 * 1e-3 + 5e-4) * 256 / WIDTH * expected, rel=1e-9)


def test_one_attention_alone_leaves_the_other_out() -> None:
    specs = [SPEC.but(attend=each, lambda_=0.0) for each in ("both", "spatial", "channel")]
    both, spatial, channel = (terms(made(each)) for each in specs)

    assert both["attention"].item() == pytest.approx((spatial["attention"] + channel["attention"]).item(), rel=1e-6)
    assert len({each["fg"].item() for each in (both, spatial, channel)}) == 3
    assert "attention" not in terms(made(SPEC.but(attend="none", lambda_=0.0)))


def test_each_statistic_is_another_attention() -> None:
    found = [terms(made(SPEC.but(attention=each, lambda_=0.0)))["fg"].item() for each in ("absmean", "absmax", "sq")]

    assert len(set(found)) == 3


@pytest.mark.parametrize("module", ["gc", "non_local", "relation"])
def test_each_global_module_has_its_term_and_only_its_own_parameters(module: str) -> None:
    global_only = SPEC.but(alpha=0.0, beta=0.0, gamma=0.0, global_module=module, attend="none")
    method = made(global_only)

    assert set(terms(method)) == {"global"}
    kinds = {type(each).__name__ for each in method.modules()}
    assert ("NonLocal" in kinds, "ContextBlock" in kinds) == (module == "non_local", module == "gc")
    assert bool(list(method.parameters())) == (module != "relation")


@pytest.mark.parametrize("choice", [{"split": False}, {"attend": "none"}, {"attention": "sq"}])
def test_official_has_no_choices(choice: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is the paper's FGD"):
        FGD(compat="official", **choice)
