"""Random crops and colours of a training image. Knows nothing of files, steps or networks.

Like order and flips, all that is random is a hash of (seed, epoch, image): the same in a control and a distilled run,
after a resume, and in every version of every library.
"""

# K boxes, C channels, H x W pixels

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from fgd.data.transforms import Sample, draw
from fgd.spec import Augment, Crop, Photometric

TINY = 2.0**-32


def augmented(
    sample: Sample, spec: Augment, seed: int, epoch: int, fits: Callable[[int, int], bool] = lambda *_: True
) -> Sample:
    """The image cropped and recoloured as drawn. fits(height, width): whether a crop of that size can be used."""
    if spec.crop is not None:
        sample = cropped(sample, spec.crop, drawn("crop", seed, epoch, sample.image_id), fits)
    if spec.photometric is not None:
        pixels_CHW = recoloured(sample.pixels_CHW, spec.photometric, drawn("photometric", seed, epoch, sample.image_id))
        sample = Sample(sample.image_id, pixels_CHW, sample.boxes_K4, sample.labels_K)
    return sample


def drawn(what: str, seed: int, epoch: int, image_id: int) -> list[float]:
    """Eight numbers, each as if drawn evenly from [0, 1)."""
    words = draw(what, seed, epoch, image_id) + draw(f"{what}+", seed, epoch, image_id)
    return [int.from_bytes(words[at : at + 4], "big") * TINY for at in range(0, 32, 4)]


def between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


# --- colours --------------------------------------------------------------------------------------------------


def recoloured(pixels_CHW: Tensor, spec: Photometric, shares: list[float]) -> Tensor:
    """Brightness, contrast, saturation, hue in this order, each as torchvision does it; uint8 in and out."""
    adjusted = pixels_CHW
    if spec.brightness:
        adjusted = functional.adjust_brightness(adjusted, between(1 - spec.brightness, 1 + spec.brightness, shares[0]))
    if spec.contrast:
        adjusted = functional.adjust_contrast(adjusted, between(1 - spec.contrast, 1 + spec.contrast, shares[1]))
    if spec.saturation:
        adjusted = functional.adjust_saturation(adjusted, between(1 - spec.saturation, 1 + spec.saturation, shares[2]))
    if spec.hue:
        adjusted = functional.adjust_hue(adjusted, between(-spec.hue, spec.hue, shares[3]))
    return adjusted


# --- crops ----------------------------------------------------------------------------------------------------


def cropped(sample: Sample, spec: Crop, shares: list[float], fits: Callable[[int, int], bool]) -> Sample:
    """The part of the image that was drawn, and the boxes that are still in it, clipped. Without boxes it is legal."""
    height, width = (int(side) for side in sample.pixels_CHW.shape[1:])
    window = drawn_window(height, width, spec, shares)
    if window is None or not fits(window[3] - window[1], window[2] - window[0]):
        return sample
    x1, y1, x2, y2 = window
    kept_K = stays(sample.boxes_K4, window, spec)
    corner = torch.tensor([x1, y1, x1, y1], dtype=torch.float32)
    boxes_K4 = clipped(sample.boxes_K4[kept_K], window) - corner
    return Sample(sample.image_id, sample.pixels_CHW[:, y1:y2, x1:x2], boxes_K4, sample.labels_K[kept_K])


def drawn_window(height: int, width: int, spec: Crop, shares: list[float]) -> tuple[int, int, int, int] | None:
    """xyxy in whole pixels, inside the image; None: the image stays whole.

    The share of the area is even in [min_area, 1], the change of the aspect ratio even in its logarithm. A window that
    would stick out is made narrower, so that the other side keeps what was drawn.
    """
    if shares[0] >= spec.probability:
        return None
    area = between(spec.min_area, 1.0, shares[1])
    stretch = math.exp(between(-1.0, 1.0, shares[2]) * math.log(spec.max_aspect_change))
    w = max(1, min(width, round(width * math.sqrt(area * stretch))))
    h = max(1, min(height, round(height * math.sqrt(area / stretch))))
    x, y = int(shares[3] * (width - w + 1)), int(shares[4] * (height - h + 1))
    return x, y, x + w, y + h


def clipped(boxes_K4: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    x1, y1, x2, y2 = window
    low, high = torch.tensor([x1, y1, x1, y1]), torch.tensor([x2, y2, x2, y2])
    return torch.minimum(torch.maximum(boxes_K4, low.float()), high.float())


def stays(boxes_K4: Tensor, window: tuple[int, int, int, int], spec: Crop) -> Tensor:
    """K bools. A box of which less than a pixel's width is left is gone, unless it was as thin before."""
    x1, y1, x2, y2 = window
    sides_K2 = boxes_K4[:, 2:] - boxes_K4[:, :2]
    inside_K4 = clipped(boxes_K4, window)
    left_K2 = inside_K4[:, 2:] - inside_K4[:, :2]
    visible_K = (left_K2 > 0).all(dim=1) & (left_K2 >= sides_K2.clamp(max=1.0)).all(dim=1)
    if spec.keep == "share":
        enough_K = left_K2.double().prod(dim=1) >= spec.min_share * sides_K2.double().prod(dim=1)
        return visible_K & enough_K
    centre_K2 = (boxes_K4[:, :2] + boxes_K4[:, 2:]) / 2
    low, high = torch.tensor([x1, y1], dtype=torch.float32), torch.tensor([x2, y2], dtype=torch.float32)
    return visible_K & ((centre_K2 >= low) & (centre_K2 < high)).all(dim=1)
