from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fgd.data.transforms import Sample, Transform
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.recipe import Recipe
from fgd.types import Batch


@pytest.fixture(scope="module")
def detector():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return build(Recipe(detector=FCOS(fpn_channels=64), classes=("a", "b", "c"), min_size=96, max_size=128))


def batch_of(*sizes: tuple[int, int]) -> tuple[list[Tensor], Batch]:
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    samples = [
        Sample(
            image_id=i,
            pixels_CHW=each,
            boxes_K4=torch.tensor([[5.0, 8.0, 50.0, 60.0]]),
            labels_K=torch.tensor([2]),
        )
        for i, each in enumerate(pixels)
    ]
    return [each / 255 for each in pixels], Transform(96, 128)(samples)


@pytest.mark.numeric
def test_bf16_is_for_training_only_and_ends_at_the_neck(detector) -> None:  # type: ignore[no-untyped-def]
    _, batch = batch_of((100, 120))
    detector.bf16 = True
    try:
        detector.eval()
        with torch.no_grad():
            exact = detector.features(batch.images_NCHW)
            detector.bf16 = False
            again = detector.features(batch.images_NCHW)
            detector.bf16 = True
            assert all(torch.equal(exact[level], again[level]) for level in exact), "by the same calls"
        detector.train()
        features = detector.features(batch.images_NCHW)
        assert {each.dtype for each in features.values()} == {torch.float32}
        losses = detector.losses(detector.predict(features, batch), batch)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
    finally:
        detector.bf16 = False


@pytest.mark.numeric
def test_bf16_gives_finite_gradients_where_the_coarse_maps_are_one_cell_wide() -> None:
    torch.manual_seed(0)
    detector = build(Recipe(detector=FCOS(fpn_channels=64), classes=("a", "b", "c"), min_size=64, max_size=64)).train()
    images_NCHW = torch.rand(2, 3, 64, 64)
    detector.bf16 = True
    gradients: dict[str, Tensor] = {}
    for _ in range(4):  # garbage differs from run to run
        detector.zero_grad()
        garbage = [torch.full((size,), float("nan")) for size in (1 << 20, 1 << 16, 40_000, 1 << 14) * 3]
        del garbage
        maps = detector.features(images_NCHW)
        assert list(maps.values())[-1].shape[-2:] == (1, 1)
        torch.stack([each.square().mean() for each in maps.values()]).sum().backward()
        found = {
            name: parameter.grad.clone()
            for name, parameter in detector.module.backbone.named_parameters()  # type: ignore[union-attr,operator]
            if parameter.grad is not None
        }
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert all(torch.equal(found[name], gradient) for name, gradient in gradients.items())
        gradients = found
