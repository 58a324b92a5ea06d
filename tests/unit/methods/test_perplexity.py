"""The share of cells an attention rests on, and the temperature that gives a stated one."""

from __future__ import annotations

import math

import pytest
import torch

from fgd.methods.perplexity import median_perplexity, temperature_for


def test_an_even_attention_rests_on_all_cells_and_a_peaked_one_on_one() -> None:
    assert median_perplexity([torch.ones(50)], 0.5) == pytest.approx(1.0)
    assert median_perplexity([torch.tensor([100.0] + [0.0] * 49)], 0.5) == pytest.approx(1 / 50)


def test_half_the_cells_alike_and_the_rest_far_below_is_a_half() -> None:
    assert median_perplexity([torch.tensor([80.0, 80.0, 0.0, 0.0])], 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize("target", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("size", [1e-4, 1.0, 3e5])
def test_the_temperature_that_is_found_gives_the_perplexity_asked_for_at_any_scale(target: float, size: float) -> None:
    torch.manual_seed(0)
    images = [size * torch.rand(count) for count in (300, 200, 257)]
    found = temperature_for(images, target)
    assert median_perplexity(images, found) == pytest.approx(target, abs=1e-6)
    assert temperature_for([10 * each for each in images], target) == pytest.approx(10 * found)


def test_maps_of_one_number_have_a_temperature_too() -> None:
    found = temperature_for([torch.full((9,), 2.0)], 0.7)
    assert math.isfinite(found)
    assert found > 0
    assert temperature_for([torch.zeros(9)], 0.7) > 0
    noise = 2.0 + 1e-7 * torch.rand(9, dtype=torch.float64)
    assert temperature_for([noise], 0.7) == pytest.approx(2.0), "rounding is nothing to look at"


def test_an_image_counts_as_many_cells_as_it_has() -> None:
    """Images of one batch have different numbers of cells that are not padding."""
    images = [torch.tensor([80.0, 80.0, 0.0, 0.0]), torch.tensor([80.0, 80.0]), torch.tensor([80.0] + [0.0] * 9)]
    assert median_perplexity(images, 1.0) == pytest.approx(0.5)
    assert [median_perplexity([each], 1.0) for each in images] == pytest.approx([0.5, 1.0, 0.1])
