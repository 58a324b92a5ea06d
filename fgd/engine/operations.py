"""One pass of a detector from pixels to final boxes: what it computes, and something to time."""

# N images, C channels, H x W pixels

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fgd.data.transforms import STRIDE
from fgd.detectors import Detector
from fgd.types import Batch, Target

Run = Callable[[], object]


def one_pass(detector: Detector, images_NCHW: Tensor) -> Run:
    """detector: in eval mode, on the device of the images, which are RGB in 0..1 and of one size."""
    device, (height, width) = images_NCHW.device, images_NCHW.shape[2:]
    recipe, count = detector.recipe, len(images_NCHW)
    mean, std = (
        torch.tensor(each, device=device).reshape(1, 3, 1, 1) for each in (recipe.image_mean, recipe.image_std)
    )
    nothing = Target(torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device))
    sizes = ((height, width),) * count

    def run() -> object:
        with torch.no_grad():
            normal_NCHW = (images_NCHW - mean) / std
            padded_NCHW = torch.nn.functional.pad(normal_NCHW, (0, -width % STRIDE, 0, -height % STRIDE))
            batch = Batch(padded_NCHW, sizes, sizes, (nothing,) * count, tuple(range(count)))
            found = detector.detect(detector.predict(detector.features(padded_NCHW), batch), batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found

    return run


def gflops(run: Run) -> float:
    """10^9 floating point operations of one run: convolutions, matrix products and attention, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9
