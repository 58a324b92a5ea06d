from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fgd.data.transforms import Sample, Transform
from fgd.detectors import DETECTORS, Recipe, build
from fgd.spec import FCOS
from fgd.types import Batch


@pytest.fixture(scope="module")
def detector():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return build(Recipe(detector=FCOS(fpn_channels=64), classes=("a", "b", "c"), min_size=96, max_size=128))


def batch_of(*sizes: tuple[int, int], boxes: bool = True) -> tuple[list[Tensor], Batch]:
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    samples = [
        Sample(
            image_id=i,
            pixels_CHW=each,
            boxes_K4=torch.tensor([[5.0, 8.0, 50.0, 60.0]] if boxes else []).reshape(-1, 4),
            labels_K=torch.tensor([2] if boxes else [], dtype=torch.int64),
        )
        for i, each in enumerate(pixels)
    ]
    return [each / 255 for each in pixels], Transform(96, 128)(samples)


def test_levels_have_the_strides_and_widths_the_spec_promises(detector) -> None:  # type: ignore[no-untyped-def]
    _, batch = batch_of((100, 120))
    features = detector.features(batch.images_NCHW)
    spec = detector.recipe.detector
    height, width = batch.padded_size
    assert list(features) == list(spec.levels())
    for level, stride in spec.levels().items():
        assert features[level].shape == (1, spec.channels(), -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("boxes", [True, False])
def test_losses_are_torchvisions_own(detector, boxes: bool) -> None:  # type: ignore[no-untyped-def]
    images, batch = batch_of((100, 120), (80, 90), boxes=boxes)
    targets = [
        {
            "boxes": torch.tensor([[5.0, 8.0, 50.0, 60.0]] if boxes else []).reshape(-1, 4),
            "labels": torch.tensor([2] if boxes else [], dtype=torch.int64),
        }
        for _ in images
    ]
    # batch statistics: both passes see the same batch
    detector.train()
    ours = detector.losses(detector.features(batch.images_NCHW), batch)
    theirs = detector.module(images, targets)
    assert ours.keys() == theirs.keys()
    for name, loss in ours.items():
        assert torch.equal(loss, theirs[name])


def test_detections_are_torchvisions_own_in_pixels_of_the_stored_image(detector) -> None:  # type: ignore[no-untyped-def]
    images, batch = batch_of((200, 240), (150, 130))
    detector.eval()
    with torch.no_grad():
        ours = detector.detect(detector.features(batch.images_NCHW), batch)
        theirs = detector.module(images)
    for mine, plain in zip(ours, theirs, strict=True):
        assert torch.equal(mine.boxes_K4, plain["boxes"])
        assert torch.equal(mine.scores_K, plain["scores"])
        assert torch.equal(mine.labels_K, plain["labels"])


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
            assert all(torch.equal(exact[level], again[level]) for level in exact)
        detector.train()
        features = detector.features(batch.images_NCHW)
        assert {each.dtype for each in features.values()} == {torch.float32}
        losses = detector.losses(features, batch)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
    finally:
        detector.bf16 = False


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


def test_every_detector_spec_has_its_family() -> None:
    assert set(DETECTORS) == {FCOS}
